"""Calls every method of every service of agentd.v1, with code that is generated from the proto files.

The services are read from the generated descriptors: a method without an exercise in EXERCISES fails
the script before anything is called, and so does an exercise whose method is gone. It prints one line
of JSON: the methods that were called. See tests/it/clients.rs.
"""

import argparse
import importlib
import json
import pathlib
import sys
import tempfile

import grpc
import grpc_tools
from google.protobuf import duration_pb2, timestamp_pb2
from grpc_tools import protoc

# Longest that any one call may take, in seconds; reaching it is an error, not a measurement.
PATIENCE = 60
PACKAGE = "agentd.v1"


class Daemon:
    """Stubs of all services, and what one exercise leaves to those after it."""

    def __init__(self, channel, metadata, modules, workspace):
        self.workspace = workspace
        self.run = None
        self._channel, self._metadata = channel, metadata
        self.called = []
        self.messages, self._services = {}, {}
        for messages, stubs in modules:
            for name in messages.DESCRIPTOR.message_types_by_name:
                self.messages[name] = getattr(messages, name)
            for name in messages.DESCRIPTOR.services_by_name:
                self._services[name] = getattr(stubs, f"{name}Stub")(channel)

    def call(self, service, method, **fields):
        """The answer of a unary method, or a list of all answers of a streaming one."""
        self.called.append(f"{service}/{method}")
        request = self.messages[f"{method}Request"](**fields)
        stub = getattr(self._services[service], method)
        answer = stub(request, timeout=PATIENCE, metadata=self._metadata)
        return list(answer) if isinstance(answer, grpc.Call) and hasattr(answer, "__next__") else answer


def create_run(daemon):
    wish = {"task": "write it", "agent": "executor", "workspace": daemon.workspace}
    wish |= {"request_id": "python", "labels": {"a": "b"}}
    run = daemon.call("RunService", "CreateRun", **wish).run
    assert run.id and run.labels["a"] == "b", run
    again = daemon.call("RunService", "CreateRun", **wish)
    assert again.existed and again.run.id == run.id, again
    daemon.run = run.id


def wait_run(daemon):
    timeout = duration_pb2.Duration(seconds=PATIENCE)
    answer = daemon.call("RunService", "WaitRun", id=daemon.run, timeout=timeout)
    states = daemon.messages["Run"].DESCRIPTOR.fields_by_name["state"].enum_type.values_by_name
    assert not answer.timed_out, answer
    assert answer.run.state == states["RUN_STATE_SUCCEEDED"].number, answer


def get_run(daemon):
    run = daemon.call("RunService", "GetRun", id=daemon.run).run
    assert run.answer == "done" and run.usage.tool_calls == 1, run


def list_runs(daemon):
    page = daemon.call("RunService", "ListRuns", page_size=1)
    assert [run.id for run in page.runs] == [daemon.run], page


def stream_run_events(daemon):
    events = daemon.call("RunService", "StreamRunEvents", id=daemon.run, follow=True)
    entries = [event.entry for event in events if event.WhichOneof("event") == "entry"]
    assert [entry.sequence for entry in entries] == list(range(1, len(entries) + 1)), entries
    assert entries[-1].kind == "run_finished", entries[-1]


def list_tool_calls(daemon):
    calls = daemon.call("RunService", "ListToolCalls", run_id=daemon.run).tool_calls
    assert [(call.tool, call.outcome) for call in calls] == [("write_file", "done")], calls


def get_run_diff(daemon):
    patch = b"".join(answer.chunk for answer in daemon.call("RunService", "GetRunDiff", id=daemon.run))
    assert b"+hello" in patch, patch


def resolve_tool_call(daemon):
    """Of a run that stands still for no call."""
    try:
        daemon.call("RunService", "ResolveToolCall", run_id=daemon.run, turn=1, resolution="CALL_RESOLUTION_RETRY")
        raise AssertionError("nothing is unresolved")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error


def list_pending_approvals(daemon):
    assert not daemon.call("RunService", "ListPendingApprovals").approvals


def decide(daemon, method):
    """About a call that nobody is asked about."""
    try:
        daemon.call("RunService", method, run_id=daemon.run, turn=1, digest="00" * 32)
        raise AssertionError("nothing waits")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error


def approve_tool_call(daemon):
    decide(daemon, "ApproveToolCall")


def deny_tool_call(daemon):
    decide(daemon, "DenyToolCall")


def list_checkpoints(daemon):
    found = daemon.call("RunService", "ListCheckpoints", run_id=daemon.run).checkpoints
    assert [one.wants_input for one in found][-1] and found[0].item_count == 1, found


def fork_run(daemon):
    """Which ends at once: the script has no more turns."""
    answer = daemon.call("RunService", "ForkRun", id=daemon.run, input="one more thing", request_id="python-fork")
    assert answer.run.forked_from.run_id == daemon.run and not answer.existed, answer
    daemon.call("RunService", "CancelRun", id=answer.run.id)


def refused_after_the_end(daemon, method, **fields):
    try:
        daemon.call("RunService", method, id=daemon.run, **fields)
        raise AssertionError("the run has ended")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error


def pause_run(daemon):
    refused_after_the_end(daemon, "PauseRun", why="lunch")


def resume_run(daemon):
    refused_after_the_end(daemon, "ResumeRun", budget={"max_turns": 500})


def send_run_input(daemon):
    refused_after_the_end(daemon, "SendRunInput", text="one more thing")


def cancel_run(daemon):
    run = daemon.call("RunService", "CancelRun", id=daemon.run, why="too late").run
    assert run.id == daemon.run and run.answer == "done", run


def get_server_info(daemon):
    info = daemon.call("AdminService", "GetServerInfo")
    assert info.version and info.tools, info


def get_health(daemon):
    health = daemon.call("AdminService", "GetHealth")
    assert health.store_works and health.backends[0].name == "default", health


def probe_backend(daemon):
    probed = daemon.call("AdminService", "ProbeBackend")
    assert probed.backend.name == "default" and probed.models, probed


def get_config(daemon):
    keys = [value.key for value in daemon.call("AdminService", "GetConfig").values]
    assert "backend.base_url" in keys, keys


def drain(daemon):
    drained = daemon.call("AdminService", "Drain", undo=True)
    assert not drained.draining, drained


def backup_database(daemon):
    answers = daemon.call("AdminService", "BackupDatabase")
    content = b"".join(answer.chunk for answer in answers)
    assert content.startswith(b"SQLite format 3") and answers[-1].summary.bytes == len(content)


def list_agents(daemon):
    agents = daemon.call("AdminService", "ListAgents").agents
    assert "executor" in [agent.name for agent in agents], agents


def verify_audit(daemon):
    report = daemon.call("AuditService", "VerifyAudit", deep=True)
    assert report.intact and report.entries > 0 and len(report.head_hash) == 32, report


def prune_runs(daemon):
    # Whether it may go is not asked of a run that others look at: nothing ended that long ago.
    long_ago = timestamp_pb2.Timestamp(seconds=1)
    page = daemon.call("AuditService", "PruneRuns", ended_before=long_ago, dry_run=True)
    assert not page.runs and not page.has_more, page


def list_audit_entries(daemon):
    page = daemon.call("AuditService", "ListAuditEntries", filter={"kinds": ["run_created"]})
    assert daemon.run in [entry.run_id for entry in page.entries], page


def stream_audit_entries(daemon):
    answers = daemon.call("AuditService", "StreamAuditEntries", filter={"run_id": daemon.run})
    assert answers[0].entry.kind == "run_created", answers[0]


def export_audit(daemon):
    chunks = daemon.call("AuditService", "ExportAudit", filter={"run_id": daemon.run})
    lines = b"".join(answer.chunk for answer in chunks).decode().splitlines()
    assert json.loads(lines[0])["kind"] == "run_created", lines[0]


def get_policy(daemon):
    policy = daemon.call("PolicyService", "GetPolicy").policy
    assert policy.revision.startswith("sha256:") and policy.rules and not policy.faults, policy


def validate_policy(daemon):
    report = daemon.call("PolicyService", "ValidatePolicy")
    assert report.revision == report.current_revision and not report.faults, report


def test_policy(daemon):
    report = daemon.call("PolicyService", "TestPolicy")
    assert report.passed_count == len(report.tests) > 0 and not report.faults, report
    found = [(test.found, test.passed) for test in report.tests if test.name == "read .env"]
    assert found == [("deny by secrets.env", True)], report


def explain_decision(daemon):
    found = daemon.call(
        "PolicyService", "ExplainDecision", tool="read_file", arguments=json.dumps({"path": ".env"})
    )
    assert (found.decision, found.rule) == ("deny", "secrets.env") and found.candidates, found


def reload_policy(daemon):
    revision = daemon.call("PolicyService", "GetPolicy").policy.revision
    report = daemon.call("PolicyService", "ReloadPolicy", expected_revision=revision)
    assert report.revision == report.previous_revision == revision, report


def list_policy_revisions(daemon):
    revision = daemon.call("PolicyService", "GetPolicy").policy.revision
    newest = daemon.call("PolicyService", "ListPolicyRevisions", page_size=1).revisions[0]
    states = newest.DESCRIPTOR.fields_by_name["state"].enum_type.values_by_name
    assert newest.state == states["POLICY_REVISION_STATE_CURRENT"].number, newest
    assert (newest.revision, newest.caller) == (revision, ""), newest


def list_tools(daemon):
    tools = daemon.call("ToolService", "ListTools").tools
    assert "read_file" in [tool.name for tool in tools], tools


def get_tool(daemon):
    tool = daemon.call("ToolService", "GetTool", name="read_file").tool
    assert json.loads(tool.parameters_schema)["type"] == "object", tool


# In the order in which they are done: what needs a run comes after what makes one.
EXERCISES = {
    "RunService/CreateRun": create_run,
    "RunService/WaitRun": wait_run,
    "RunService/GetRun": get_run,
    "RunService/ListRuns": list_runs,
    "RunService/StreamRunEvents": stream_run_events,
    "RunService/ListToolCalls": list_tool_calls,
    "RunService/GetRunDiff": get_run_diff,
    "RunService/ResolveToolCall": resolve_tool_call,
    "RunService/ListPendingApprovals": list_pending_approvals,
    "RunService/ApproveToolCall": approve_tool_call,
    "RunService/DenyToolCall": deny_tool_call,
    "RunService/ListCheckpoints": list_checkpoints,
    "RunService/PauseRun": pause_run,
    "RunService/ResumeRun": resume_run,
    "RunService/SendRunInput": send_run_input,
    "RunService/CancelRun": cancel_run,
    "RunService/ForkRun": fork_run,
    "AdminService/GetHealth": get_health,
    "AdminService/ProbeBackend": probe_backend,
    "AdminService/GetServerInfo": get_server_info,
    "AdminService/GetConfig": get_config,
    "AdminService/BackupDatabase": backup_database,
    "AdminService/Drain": drain,
    "AdminService/ListAgents": list_agents,
    "AuditService/ListAuditEntries": list_audit_entries,
    "AuditService/StreamAuditEntries": stream_audit_entries,
    "AuditService/ExportAudit": export_audit,
    "AuditService/PruneRuns": prune_runs,
    "AuditService/VerifyAudit": verify_audit,
    "PolicyService/GetPolicy": get_policy,
    "PolicyService/ValidatePolicy": validate_policy,
    "PolicyService/TestPolicy": test_policy,
    "PolicyService/ExplainDecision": explain_decision,
    "PolicyService/ReloadPolicy": reload_policy,
    "PolicyService/ListPolicyRevisions": list_policy_revisions,
    "ToolService/ListTools": list_tools,
    "ToolService/GetTool": get_tool,
}


def generated(proto, out):
    """The generated modules of every proto file: messages, and stubs."""
    files = sorted(proto.glob("agentd/v1/*.proto"))
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    options = [f"-I{proto}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(["protoc", *options, *map(str, files)]) != 0:
        sys.exit("protoc refused the proto files")
    sys.path.insert(0, str(out))
    names = [f"agentd.v1.{file.stem}_pb2" for file in files]
    return [(importlib.import_module(name), importlib.import_module(f"{name}_grpc")) for name in names]


def methods_of(modules):
    return {
        f"{service.name}/{method.name}"
        for messages, _ in modules
        for service in messages.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--address", required=True, help="HOST:PORT of the daemon")
    arguments.add_argument("--token-file", required=True, type=pathlib.Path)
    arguments.add_argument("--workspace", required=True, help="absolute path, top of a git repository")
    arguments.add_argument("--proto", required=True, type=pathlib.Path, help="the directory proto")
    given = arguments.parse_args()

    with tempfile.TemporaryDirectory() as out:
        modules = generated(given.proto, pathlib.Path(out))
    methods = methods_of(modules)
    if missing := sorted(methods - EXERCISES.keys()):
        sys.exit(f"add to EXERCISES in tests/it/python/every_method.py: {', '.join(missing)}")
    if gone := sorted(EXERCISES.keys() - methods):
        sys.exit(f"take out of EXERCISES in tests/it/python/every_method.py: {', '.join(gone)}")

    metadata = (("authorization", f"Bearer {given.token_file.read_text().strip()}"),)
    with grpc.insecure_channel(given.address) as channel:
        daemon = Daemon(channel, metadata, modules, given.workspace)
        for name, exercise in EXERCISES.items():
            before = len(daemon.called)
            exercise(daemon)
            if name not in daemon.called[before:]:
                sys.exit(f"the exercise of {name} in tests/it/python/every_method.py does not call it")
    print(json.dumps(sorted(set(daemon.called))))


if __name__ == "__main__":
    main()
