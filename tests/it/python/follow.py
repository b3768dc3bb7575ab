"""Follows one run of agentd over gRPC, knowing only what the server's reflection tells.

It submits a run, follows its journal, drops the connection after so many entries, comes back where
it stopped, and so on to the end. It prints one line of JSON: what it saw, entry by entry. It never
judges what it saw, and never holds generated code: see tests/it/real_parts.rs.
"""

import argparse
import collections
import json
import pathlib
import sys
import uuid

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

# Longest that any one call may take, in seconds; reaching it is an error, not a measurement.
PATIENCE = 60

RUNS = "agentd.v1.RunService"
HEALTH = "grpc.health.v1.Health"


class Details(
    collections.namedtuple(
        "Details", ("method", "timeout", "metadata", "credentials", "wait_for_ready", "compression")
    ),
    grpc.ClientCallDetails,
):
    """The details of a call, as an interceptor has to hand them on."""


class Bearer(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Puts the token into every call, those of the reflection library included."""

    def __init__(self, token):
        self._header = ("authorization", f"Bearer {token}")

    def _signed(self, call):
        metadata = [*(call.metadata or ()), self._header]
        return Details(
            call.method,
            call.timeout,
            metadata,
            call.credentials,
            call.wait_for_ready,
            call.compression,
        )

    def intercept_unary_unary(self, continuation, client_call_details, request):
        return continuation(self._signed(client_call_details), request)

    def intercept_unary_stream(self, continuation, client_call_details, request):
        return continuation(self._signed(client_call_details), request)

    def intercept_stream_stream(self, continuation, client_call_details, request_iterator):
        return continuation(self._signed(client_call_details), request_iterator)


class Connection:
    """One TCP connection to the daemon, and what its reflection said over it."""

    def __init__(self, address, token):
        # Without a pool of its own a new channel could take over the old one's connection.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        self._bare = grpc.insecure_channel(address, options)
        self._signed = grpc.intercept_channel(self._bare, Bearer(token))
        self._reflection = ProtoReflectionDescriptorDatabase(self._signed)
        self._pool = descriptor_pool.DescriptorPool(self._reflection)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bare.close()

    def services(self):
        """Full names of the services, sorted."""
        return sorted(self._reflection.get_services())

    def call(self, service, method, **fields):
        """The answer of a unary call."""
        return self._prepared(self._signed, service, method)(fields)

    def follow(self, run, after):
        """The entries of a run's journal after a sequence, as they come, until the run has ended."""
        watch = self._prepared(self._signed, RUNS, "StreamRunEvents")
        for answer in watch({"id": run, "after_sequence": after, "follow": True}):
            if answer.WhichOneof("event") == "entry":
                yield answer.entry

    def health(self, service):
        """How a service is, asked without the token: whoever watches over a daemon has none."""
        answer = self._prepared(self._bare, HEALTH, "Check")({"service": service})
        return enum_name(answer, "status")

    def _prepared(self, channel, service, method):
        described = self._pool.FindServiceByName(service).methods_by_name[method]
        asked = message_factory.GetMessageClass(described.input_type)
        answered = message_factory.GetMessageClass(described.output_type)
        kind = channel.unary_stream if described.server_streaming else channel.unary_unary
        send = kind(
            f"/{service}/{method}",
            request_serializer=asked.SerializeToString,
            response_deserializer=answered.FromString,
        )
        return lambda fields: send(asked(**fields), timeout=PATIENCE)


def enum_name(message, field):
    described = message.DESCRIPTOR.fields_by_name[field].enum_type
    return described.values_by_number[getattr(message, field)].name


def take(entries, most):
    """The next entries, at most so many, or all where it is None; each as sequence, kind and hash."""
    taken = []
    for entry in entries:
        taken.append([entry.sequence, entry.kind, entry.hash.hex()])
        if len(taken) == most:
            break
    return taken


def main():
    arguments = argparse.ArgumentParser(description="Follows one run of agentd through dropped connections.")
    arguments.add_argument("--address", required=True, help="HOST:PORT of the daemon")
    arguments.add_argument("--token-file", required=True, type=pathlib.Path)
    arguments.add_argument("--workspace", required=True, help="absolute path")
    arguments.add_argument("--task", required=True)
    arguments.add_argument(
        "--drop-after",
        type=int,
        action="append",
        default=[],
        metavar="ENTRIES",
        help="drop the connection after so many entries; once for each connection to drop",
    )
    given = arguments.parse_args()
    token = given.token_file.read_text().strip()
    told = {}

    wish = {"task": given.task, "agent": "executor", "workspace": given.workspace, "request_id": str(uuid.uuid4())}
    with Connection(given.address, token) as daemon:
        told["services"] = daemon.services()
        told["health"] = {name: daemon.health(name) for name in ("", RUNS)}
        run = daemon.call(RUNS, "CreateRun", **wish).run.id
    # As one asks whose answer was lost on the way: the same id and body, on another connection.
    with Connection(given.address, token) as daemon:
        again = daemon.call(RUNS, "CreateRun", **wish)
        told["created_once"] = again.existed and again.run.id == run

    told["run"] = run
    told["entries"] = []
    told["entries_by_connection"] = []
    for most in [*given.drop_after, None]:
        after = told["entries"][-1][0] if told["entries"] else 0
        with Connection(given.address, token) as daemon:
            taken = take(daemon.follow(run, after), most)
        told["entries"] += taken
        told["entries_by_connection"].append(len(taken))
        if most is not None:
            print(f"dropped after {len(told['entries'])}", file=sys.stderr, flush=True)

    with Connection(given.address, token) as daemon:
        told["state"] = enum_name(daemon.call(RUNS, "GetRun", id=run).run, "state")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
