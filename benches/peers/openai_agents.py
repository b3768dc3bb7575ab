"""The benchmark's work on the OpenAI Agents SDK for Python: each run one Runner.run with a session in SQLite.

What is particular to this SDK is here; the flags, the clock and the output are in common.py. It must not be
tuned beyond what the SDK's own documentation says, nor held back: it is here to be compared with.
"""

import contextlib
import sys

# The tree is no place for bytecode.
sys.dont_write_bytecode = True

from agents import (
    Agent,
    ModelSettings,
    OpenAIResponsesModel,
    RunContextWrapper,
    Runner,
    SQLiteSession,
    function_tool,
    set_tracing_disabled,
)

import common


# Async, for a plain function would be sent to a thread at each call, which costs more than so small a write.
@function_tool
async def write_file(context: RunContextWrapper[common.Place], path: str, content: str) -> str:
    """Writes a file."""
    return context.context.write(path, content)


@contextlib.asynccontextmanager
async def opened(options):
    # A trace would be sent to another server than the one that is measured with.
    set_tracing_disabled(True)
    async with common.client(options) as client:
        agent = Agent(
            name="writer",
            instructions="You write files.",
            model=OpenAIResponsesModel(model="m", openai_client=client),
            # The server counts the outputs in the request, so the whole conversation is sent each time.
            model_settings=ModelSettings(store=False),
            tools=[write_file],
        )

        async def carry_out(place):
            # One file for all, for the sessions of a process take turns at it.
            session = SQLiteSession(place.name, options.directory / "sessions.sqlite")
            try:
                result = await Runner.run(
                    agent,
                    common.TASK,
                    context=place,
                    max_turns=options.steps + 2,
                    session=session,
                )
            finally:
                session.close()
            return result.final_output

        yield carry_out


if __name__ == "__main__":
    common.main(
        common.Peer(
            name="openai-agents (Python)",
            package="openai-agents",
            keeps="session in SQLite, synced after each turn",
            opened=opened,
        )
    )
