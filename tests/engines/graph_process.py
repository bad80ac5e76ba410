"""A process that answers a turn by a graph, and kills itself in the middle of a node.

    python graph_process.py URL NOTES

Notes the name of each node that begins. The node `answer` dies behind its first word, as soon as
that is stored.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, MessagesState, StateGraph

from perdure import ChatTurnEngine, ChatTurnIdentity, RunStore, open_store
from perdure.engines.langgraph import GraphTurns, PerdureSaver

TURN = ChatTurnIdentity("", "s", "ann", 0)
FINAL = "Looked. Answered twice."


async def no_wait() -> None:
    """Answer at once."""


def graph_turns(
    store: RunStore, note: Callable[[str], None], *, pause: Callable[[], Awaitable[None]] = no_wait
) -> GraphTurns:
    """Return a graph that looks in two places at once, and answers in two words."""

    async def look(state: MessagesState) -> dict[str, Any]:
        note("look")
        return {"messages": [AIMessage("Looked. ")]}

    def listen(state: MessagesState) -> dict[str, Any]:
        note("listen")
        get_stream_writer()({"heard": len(state["messages"])})
        return {}

    async def answer(state: MessagesState) -> dict[str, Any]:
        note("answer")
        write = get_stream_writer()
        write("Answered ")
        await pause()
        write("twice.")
        return {"messages": [AIMessage("Answered twice.")]}

    builder = StateGraph(MessagesState)
    builder.add_node("look", look)
    builder.add_node("listen", listen)
    builder.add_node("answer", answer)
    builder.add_edge(START, "look")
    builder.add_edge(START, "listen")
    builder.add_edge(["look", "listen"], "answer")
    builder.add_edge("answer", END)
    return GraphTurns(builder.compile(checkpointer=PerdureSaver(store)), kinds={"look": "llm"})


def noting(path: str | Path) -> Callable[[str], None]:
    """Return what adds a line to a file that outlives the process."""

    def note(line: str) -> None:
        with Path(path).open("a") as file:
            file.write(f"{line}\n")

    return note


async def main(url: str, notes: str) -> None:
    store = await open_store(url)

    async def die_when_it_is_stored() -> None:
        while not any("Answered" in str(each.data) for each in await store.read_frames("chat:s:0")):
            await store.wait_for_change("chat:s:0", timeout_ms=10)
        os.kill(os.getpid(), signal.SIGKILL)

    turns = graph_turns(store, noting(notes), pause=die_when_it_is_stored)
    engine = ChatTurnEngine(store, produce=turns, name="graph")
    turn = await engine.submit(TURN, "Look and listen")
    async for _ in turn.lines():
        pass


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
