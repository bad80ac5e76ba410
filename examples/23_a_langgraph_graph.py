"""A LangGraph graph answers a chat turn; when its process is lost, one node alone runs again."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, MessagesState, StateGraph

from perdure import ChatTurnEngine, ChatTurnIdentity, RunStore, open_store
from perdure.engines.langgraph import GraphTurns, PerdureSaver

TURN = ChatTurnIdentity("", "trip", "ann", 0)
ran: list[str] = []
answering = asyncio.Event()


async def look(state: MessagesState) -> dict[str, Any]:
    ran.append("look")
    get_stream_writer()("24 degrees in Faro. ")
    return {"messages": [AIMessage("24 degrees in Faro. ")]}


async def answer(state: MessagesState) -> dict[str, Any]:
    """Stand in for a model that is lost with its process the first time."""
    ran.append("answer")
    get_stream_writer()("Go ")
    if not answering.is_set():
        answering.set()
        await asyncio.Event().wait()
    get_stream_writer()("there.")
    return {"messages": [AIMessage("Go there.")]}


def graph(store: RunStore) -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("look", look)
    builder.add_node("answer", answer)
    builder.add_edge(START, "look")
    builder.add_edge("look", "answer")
    builder.add_edge("answer", END)
    return builder.compile(checkpointer=PerdureSaver(store))


async def main(folder: Path) -> None:
    store = await open_store(f"sqlite:{folder / 'runs.db'}")
    first = ChatTurnEngine(store, produce=GraphTurns(graph(store)), name="trip")
    await first.submit(TURN, "Where is it warm?")
    await answering.wait()
    await first.aclose(drain_ms=0)
    print("the first engine is gone, in the middle of", ran)
    second = ChatTurnEngine(store, produce=GraphTurns(graph(store)), name="trip")
    turn = await second.submit(TURN, "Where is it warm?")
    async for lines in turn.lines():
        print(lines.decode(), end="")
    state = await graph(store).aget_state({"configurable": {"thread_id": "trip"}})
    await second.aclose()
    await store.close()
    said = "".join(message.content for message in state.values["messages"][1:])
    print(f"{ran.count('look')} look, {ran.count('answer')} answers begun, and the thread: {said}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(main(Path(place)))
