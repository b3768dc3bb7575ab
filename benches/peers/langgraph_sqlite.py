"""The benchmark's work on LangGraph: each run one thread of a graph of two nodes, with checkpoints in SQLite.

What is particular to LangGraph is here; the flags, the clock and the output are in common.py. It must not be
tuned beyond what its own documentation says, nor held back: it is here to be compared with. LangGraph leaves
the call of the model to whoever uses it. It is made with the client's plain post here: the client's typed
method takes six times the CPU, all of it for walking through the conversation, which is no fault of LangGraph.
"""

import contextlib
import json
import operator
import os
import sys
import typing

# The tree is no place for bytecode.
sys.dont_write_bytecode = True
# Before the imports, which look at them: a trace would be sent to another server than the one measured with.
for name in ("LANGSMITH_TRACING", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING", "LANGCHAIN_TRACING_V2"):
    os.environ[name] = "false"

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from openai.types.responses import Response

import common

WRITE_FILE = {
    "type": "function",
    "name": "write_file",
    "description": "Writes a file.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"path": {"type": "string"}, "content": {"type": "string"}},
        "required": ["path", "content"],
        "additionalProperties": False,
    },
}


class State(typing.TypedDict):
    """The conversation, as the items of a request."""

    items: typing.Annotated[list, operator.add]


def graph_of(client, saver):
    """The usual loop: the model, then its tools, until it calls none."""

    async def model(state: State):
        # The server counts the outputs in the request, so the whole conversation is sent each time.
        body = {
            "model": "m",
            "instructions": "You write files.",
            "input": state["items"],
            "tools": [WRITE_FILE],
            "store": False,
        }
        response = await client.post("/responses", cast_to=Response, body=body)
        return {"items": [item.model_dump(mode="json", exclude_none=True) for item in response.output]}

    async def tools(state: State, runtime: Runtime[common.Place]):
        outputs = []
        for call in calls(state):
            said = runtime.context.write(**json.loads(call["arguments"]))
            outputs.append({"type": "function_call_output", "call_id": call["call_id"], "output": said})
        return {"items": outputs}

    builder = StateGraph(State, context_schema=common.Place)
    builder.add_node("model", model)
    builder.add_node("tools", tools)
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", lambda state: "tools" if calls(state) else END, ["tools", END])
    builder.add_edge("tools", "model")
    return builder.compile(checkpointer=saver)


def calls(state):
    """The calls of the model's last answer, in its order; there is one at most."""
    return [item for item in state["items"][-1:] if item["type"] == "function_call"]


@contextlib.asynccontextmanager
async def opened(options):
    database = options.directory / "checkpoints.sqlite"
    async with common.client(options) as client, AsyncSqliteSaver.from_conn_string(str(database)) as saver:
        await saver.setup()
        graph = graph_of(client, saver)

        async def carry_out(place):
            # Two supersteps for each step, and some for the start and the end.
            config = {"configurable": {"thread_id": place.name}, "recursion_limit": 2 * options.steps + 5}
            # Durability is left at its default: a checkpoint is written while the next superstep runs.
            task = {"type": "message", "role": "user", "content": common.TASK}
            state = await graph.ainvoke({"items": [task]}, config, context=place)
            return state["items"][-1]["content"][0]["text"]

        yield carry_out


if __name__ == "__main__":
    common.main(
        common.Peer(
            name="LangGraph",
            package="langgraph",
            keeps="checkpoints in SQLite, synced, while the run goes on",
            opened=opened,
        )
    )
