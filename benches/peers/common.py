"""What the Python programs of benches/peers share: their flags, the directories of the runs, the clock, the
wait of mode `waiting`, and the one line of JSON.

Every program carries out the same work, that of the benchmark named `performance`, in one process: so many
runs at once, each a loop between the model and one tool that writes a small file. What belongs to one runtime
is in the program named after it, never here; nor may anything here run within a step, but for the tool and
the client of the model server, so that a peer is measured and not this file.
"""

import argparse
import asyncio
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import resource
import sys
import time
import urllib.parse

import httpx2
import openai

# Longest, in seconds, that the requests of mode `waiting` may take to be under way.
PATIENCE = 60

# Longest that a request may take, its connection included: the client's own limit for that, 5 s, is too low for
# a thousand runs that start at once in a process that has much else to do.
REQUEST_SECONDS = 600

TASK = "Write the file, step by step."
LAST_WORD = "done"


@dataclasses.dataclass
class Place:
    """The directory of one run, and how often the run's tool has written there. Its name is the run's."""

    directory: pathlib.Path
    written: int = 0

    @property
    def name(self):
        return self.directory.name

    def write(self, path, content):
        """Writes the file, without a sync, and gives what the model hears of it."""
        (self.directory / path).write_text(content)
        self.written += 1
        return "written"


@dataclasses.dataclass(frozen=True)
class Peer:
    """A runtime, and how to have it carry out runs.

    `opened(options)` is an async context manager. It gives `carry_out(place)`, which carries out one run and
    gives the model's last word. Whatever all runs share is made in it, so before the clock starts.
    """

    name: str
    package: str
    keeps: str
    opened: object


def main(peer):
    """Carries out what the flags ask for, and prints the figures; exits with 1 where a run went wrong."""
    options = flags()
    # A usual limit of 1024 is too low for SQLite connections: some runtimes open several for each run.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    version = importlib.metadata.version(peer.package)
    about = {"peer": peer.name, "version": version}
    if options.mode == "waiting":
        asyncio.run(wait(peer, options, about))
    wall, cpu, steps = asyncio.run(carry_out_all(peer, options))
    figures = {"keeps": peer.keeps, "steps": steps, "wall_seconds": wall, "cpu_seconds": cpu}
    print(json.dumps(about | figures))


def flags():
    parser = argparse.ArgumentParser(description="The benchmark's work, done by a runtime other than agentd.")
    parser.add_argument("--base-url", required=True, help="of the model server, with its /v1")
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True, help="of each run: the server decides, this checks")
    parser.add_argument("--directory", type=pathlib.Path, required=True, help="exists, and is empty")
    parser.add_argument("--mode", choices=("steps", "waiting"), required=True)
    return parser.parse_args()


def client(options):
    """A client of the model server, one for all runs, with as many connections as they want.

    Retries would hide a failure. The environment's proxies are for other servers than this one.
    Its typed methods walk through the whole conversation at each request: measured with openai 3.57.0, that is
    most of a step's CPU time where a runtime uses them, as OpenAI's SDK does.
    """
    http = openai.DefaultAsyncHttpxClient(
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None), trust_env=False
    )
    made = openai.AsyncOpenAI(
        base_url=options.base_url, api_key="none", max_retries=0, timeout=REQUEST_SECONDS, http_client=http
    )
    # The first use imports much: that is not part of a run.
    _ = made.responses
    return made


def make_places(options):
    return [make_place(options, number) for number in range(options.runs)]


def make_place(options, number):
    place = Place(options.directory / f"run-{number}")
    place.directory.mkdir()
    return place


async def carry_out_all(peer, options):
    """Wall and CPU seconds of all runs together, and how many steps they were."""
    first, places = [make_place(options, "first")], make_places(options)
    async with peer.opened(options) as carry_out:
        # The first run imports what is imported late and fills caches of types: no cost of a step.
        check(await last_words(carry_out, first), first, options)
        wall, cpu = time.perf_counter(), time.process_time()
        words = await last_words(carry_out, places)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        check(words, places, options)
    return wall, cpu, sum(place.written for place in places)


async def last_words(carry_out, places):
    """Carries out a run in each place, all at once. Gives what each ended with: a word or an exception."""
    return await asyncio.gather(*(carry_out(place) for place in places), return_exceptions=True)


def check(words, places, options):
    for word, place in zip(words, places):
        if word != LAST_WORD:
            fail(f"{place.name} ended with {word!r}, not with {LAST_WORD!r}")
        if place.written != options.steps:
            fail(f"{place.name} wrote {place.written} times, not {options.steps}")
        if options.steps and not any(place.directory.iterdir()):
            fail(f"{place.name} left no file")


async def wait(peer, options, about):
    """Prints what the process holds before the runs and while all of them wait, then ends it. Never returns.

    The figures differ by so many runs as the flags say; one more waits in both.
    """
    places = make_places(options)
    async with peer.opened(options) as carry_out:
        # One run waits already, for what the first imports late is no cost of each.
        tasks = [asyncio.create_task(carry_out(make_place(options, "first")))]
        await all_under_way(tasks, options)
        before = resident_kib()
        tasks += [asyncio.create_task(carry_out(place)) for place in places]
        await all_under_way(tasks, options)
        figures = {"runs": options.runs, "resident_kib_before": before, "resident_kib_after": resident_kib()}
        print(json.dumps(about | figures), flush=True)
        # To end the runs in order would take an answer that never comes.
        os._exit(0)


async def all_under_way(tasks, options):
    """Returns once each of the runs has a connection and the process has nothing left to do but wait."""
    deadline = time.monotonic() + PATIENCE
    while True:
        busy = time.process_time()
        await asyncio.sleep(0.2)
        busy = time.process_time() - busy
        for ended in (task for task in tasks if task.done()):
            fail(f"a run that was to wait has ended: {ended.exception() or ended.result()!r}")
        connected = connections(options.base_url)
        # A connection says that a request is about to be sent; idleness, that all have been.
        if connected >= len(tasks) and busy < 0.02:
            return
        if time.monotonic() > deadline:
            fail(f"{connected} of {len(tasks)} runs had a connection after {PATIENCE} seconds")


def connections(base_url):
    """How many connections this process has established to the server's port."""
    port = urllib.parse.urlsplit(base_url).port
    own = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            own.add(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            pass  # the descriptor of the listing itself
    found = 0
    for table in ("tcp", "tcp6"):
        path = pathlib.Path("/proc/net", table)
        for row in path.read_text().splitlines()[1:] if path.exists() else ():
            # The columns: number, local address, remote address, state (1 is established), …, inode.
            column = row.split()
            remote = int(column[2].rsplit(":")[-1], 16)
            found += remote == port and column[3] == "01" and f"socket:[{column[9]}]" in own
    return found


def resident_kib():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def fail(sentence):
    """Says it and ends the process at once: in order, each run that is left would add an error of its own."""
    print(sentence, file=sys.stderr, flush=True)
    os._exit(1)
