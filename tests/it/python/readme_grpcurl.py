"""Performs the grpcurl lines of README.md, as a shell would hand them over, through server reflection.

The block that holds them is run by bash with `grpcurl` as a function that only writes its words down; so
variables, quotes and continued lines are as for a reader who pastes them. Reflection is asked with the
very headers of the line, as grpcurl does. It prints one line of JSON: each line's method and its answer.
See tests/it/clients.rs.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys

import grpc
from follow import Details
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

# Longest that any one call may take, in seconds; reaching it is an error, not a measurement.
PATIENCE = 60
# Writes each word and a zero byte, and one more after the last.
RECORD = "grpcurl() { printf '%s\\0' \"$@\"; printf '\\0'; }\n"


class Headers(grpc.StreamStreamClientInterceptor):
    """Puts a line's headers into what the reflection library asks."""

    def __init__(self, headers):
        self._headers = headers

    def intercept_stream_stream(self, continuation, call, requests):
        signed = Details(
            call.method, call.timeout, self._headers, call.credentials, call.wait_for_ready, call.compression
        )
        return continuation(signed, requests)


def lines(readme):
    """The words of each grpcurl line, without its name."""
    blocks = re.findall(r"^```console\n(.*?)^```$", readme.read_text(), re.DOTALL | re.MULTILINE)
    blocks = [block for block in blocks if "grpcurl " in block]
    if not blocks:
        sys.exit(f"{readme} has no console block with grpcurl")
    found = []
    for block in blocks:
        told = subprocess.run(
            ["bash", "-euc", RECORD + block], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=True
        )
        calls = told.stdout.decode().split("\0\0")[:-1]
        written = len(re.findall(r"^grpcurl ", block, re.MULTILINE))
        if len(calls) != written:
            sys.exit(f"{written} lines begin with grpcurl, {len(calls)} ran: {calls}")
        found += [call.split("\0") for call in calls]
    return found


def parsed(words):
    parser = argparse.ArgumentParser(prog="grpcurl")
    parser.add_argument("-plaintext", action="store_true", required=True)
    parser.add_argument("-H", action="append", default=[])
    parser.add_argument("-d", default="{}")
    parser.add_argument("address")
    parser.add_argument("method")
    return parser.parse_args(words)


def perform(line, address):
    """What the line's method answers, as JSON gives it."""
    headers = [tuple(part.strip() for part in header.split(":", 1)) for header in line.H]
    with grpc.insecure_channel(address) as channel:
        reflection = ProtoReflectionDescriptorDatabase(grpc.intercept_channel(channel, Headers(headers)))
        if line.method == "list":
            return sorted(reflection.get_services())
        service, _, name = line.method.rpartition("/")
        method = descriptor_pool.DescriptorPool(reflection).FindServiceByName(service).methods_by_name[name]
        request = json_format.Parse(line.d, message_factory.GetMessageClass(method.input_type)())
        call = channel.unary_unary(
            f"/{line.method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        return json_format.MessageToDict(call(request, timeout=PATIENCE, metadata=headers))


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--readme", required=True, type=pathlib.Path)
    arguments.add_argument("--address", required=True, help="HOST:PORT, instead of the default one")
    given = arguments.parse_args()
    told = []
    for words in lines(given.readme):
        line = parsed(words)
        if line.address != "127.0.0.1:7080":
            sys.exit(f"{line.address} is not where agentd listens by default")
        told.append({"method": line.method, "answer": perform(line, given.address)})
    print(json.dumps(told))


if __name__ == "__main__":
    main()
