"""Graphs that answer durable turns: what is recorded, what readers see, what a crash costs."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, Send, interrupt

from perdure import ChatTurnEngine, ChatTurnIdentity, MemoryStore, erase_user, open_store
from perdure.core.records import StepKind, StepRecord
from perdure.engines.langgraph import GraphTurns, PerdureSaver
from perdure.engines.langgraph.nodes import GraphWork
from perdure.engines.showing import Showing
from perdure.errors import UsageError
from perdure.store.protocol import RunStore
from perdure.testing import crash_everywhere
from tests.contract.test_stores import LABS
from tests.engines.graph_process import FINAL, graph_turns, noting
from tests.engines.test_langgraph import two_at_once

ROOT = Path(__file__).parents[2]
THREAD: Any = {"configurable": {"thread_id": "s"}}


class Polite(GenericFakeChatModel):
    """A chat model that greets in three pieces, and says what that took."""

    async def _astream(self, *_: Any, **__: Any) -> AsyncIterator[ChatGenerationChunk]:
        for word in ("Hello ", "dear ", "friend"):
            yield ChatGenerationChunk(message=AIMessageChunk(content=word))
        used: Any = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
        yield ChatGenerationChunk(message=AIMessageChunk(content="", usage_metadata=used))


def chain(store: RunStore, **nodes: Any) -> Any:
    """Return a compiled graph of nodes one after the other."""
    builder = StateGraph(MessagesState)
    for name, node in nodes.items():
        builder.add_node(name, node)
    for one, next_one in zip((START, *nodes), (*nodes, END), strict=True):
        builder.add_edge(one, next_one)
    return builder.compile(checkpointer=PerdureSaver(store))


async def told(engine: ChatTurnEngine, number: int, message: str, *, revision: int = 0) -> Any:
    """Run a turn; return its events, without those of the run."""
    turn = await engine.submit(ChatTurnIdentity("", "s", "ann", number, revision), message)
    body = b"".join([lines async for lines in turn.lines()])
    events = [json.loads(line) for line in body.splitlines()]
    return [event for event in events if not event["type"].startswith("session.run.")]


def text_in(events: Any) -> str:
    return "".join(event["data"].get("delta", "") for event in events)


async def test_a_model_in_a_node_streams_to_readers_and_its_tokens_are_counted() -> None:
    store = MemoryStore()
    model = Polite(messages=iter([]))

    async def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    kinds: dict[str, StepKind] = {"ask": "llm"}
    engine = ChatTurnEngine(store, produce=GraphTurns(chain(store, ask=ask), kinds=kinds), name="g")
    events = await told(engine, 0, "Hi")
    assert text_in(events) == "Hello dear friend"
    assert len(events) == 3
    assert [(step.intent, step.kind) for step in await store.read_steps("chat:s:0")][1:] == [
        ("langgraph: begin", "logic"),
        ("node ask 1", "llm"),
        ("langgraph: save", "logic"),
    ]
    usage = (await store.read_details("chat:s:0")).usage
    assert [(row.step_index, row.tokens_in, row.tokens_out) for row in usage][1:] == [(2, 7, 3)]
    await engine.aclose()


async def test_a_killed_node_alone_runs_again_and_a_reader_goes_on(tmp_path: Path) -> None:
    url, notes = f"sqlite:{tmp_path / 'runs.db'}", tmp_path / "notes.txt"
    words = [sys.executable, "-m", "tests.engines.graph_process", url, str(notes)]
    process = await asyncio.to_thread(subprocess.run, words, cwd=ROOT, timeout=30, check=False)
    assert process.returncode == -signal.SIGKILL
    store = await open_store(url)
    turns = graph_turns(store, noting(notes))
    engine = ChatTurnEngine(store, produce=turns, name="graph")
    events = await told(engine, 0, "Look and listen")
    assert text_in(events[-3:]).endswith("Answered twice.")
    assert Counter(notes.read_text().split()) == {"look": 1, "listen": 1, "answer": 2}
    run = (await store.list_runs(with_answer=True))[0]
    answer: Any = run.answer
    assert run.state == "completed"
    assert answer["finalText"] == FINAL
    state = await chain(store).aget_state(THREAD)
    assert [message.content for message in state.values["messages"]] == [
        "Look and listen", "Looked. ", "Answered twice."
    ]  # fmt: skip
    await engine.aclose()
    await store.close()


async def test_turn_and_thread_come_to_the_same_end_wherever_the_process_dies() -> None:
    async def scenario(store: RunStore) -> Any:
        turns = graph_turns(store, lambda _: None)
        engine = ChatTurnEngine(store, produce=turns, name="graph", recover=False)
        await told(engine, 0, "Look and listen")
        await engine.aclose()
        run = (await store.list_runs(session_id="s", with_answer=True))[0]
        answer: Any = run.answer
        kept = [each async for each in PerdureSaver(store).alist(None)]
        said = [each.content for each in kept[0].checkpoint["channel_values"]["messages"]]
        return run.state, answer["finalText"], len(kept), said

    report = await crash_everywhere(scenario, lambda: LABS["memory"](Path()))
    said = ["Look and listen", "Looked. ", "Answered twice."]
    assert report.outcome == ("completed", FINAL, 1, said)
    assert len(report.points) > 30
    gc.collect()  # What the crashes left is told of here, not at the end of all tests.


async def test_the_next_message_answers_what_the_graph_asked() -> None:
    store = MemoryStore()
    asked = Counter[str]()

    def before(state: MessagesState) -> dict[str, Any]:
        asked["before"] += 1
        return {"messages": [AIMessage("Let me see. ")]}

    def confirm(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(f"You said {interrupt('Sure?')}.")]}

    graph = chain(store, before=before, confirm=confirm)
    engine = ChatTurnEngine(store, produce=GraphTurns(graph), name="g")
    events = await told(engine, 0, "Delete it")
    assert (events[-1]["type"], events[-1]["data"]["value"]) == ("interrupt", "Sure?")
    assert text_in(await told(engine, 1, "yes")) == "You said yes."
    assert asked == {"before": 1}
    await engine.aclose()


async def test_another_answer_to_a_turn_begins_where_that_turn_began() -> None:
    store = MemoryStore()
    seen: list[list[str]] = []

    def answer(state: MessagesState) -> dict[str, Any]:
        seen.append([str(message.content) for message in state["messages"]])
        return {"messages": [AIMessage(f"answer {len(seen)}")]}

    graph = chain(store, answer=answer)
    engine = ChatTurnEngine(store, produce=GraphTurns(graph), name="g")
    await told(engine, 0, "one")
    await told(engine, 1, "two")
    await told(engine, 1, "two again", revision=1)
    await told(engine, 2, "three")
    assert seen[2] == ["one", "answer 1", "two again"]
    assert seen[3] == ["one", "answer 1", "two again", "answer 3", "three"]
    await engine.aclose()


async def test_nodes_that_are_sent_route_and_belong_to_subgraphs_are_steps_too() -> None:
    store = MemoryStore()

    async def word(state: Any) -> dict[str, Any]:
        return {"messages": [AIMessage(f"<{state['word']}>")]}

    inner = StateGraph(MessagesState)
    inner.add_node("deep", lambda state: {"messages": [AIMessage("deep")]})
    inner.add_edge(START, "deep")
    builder = StateGraph(MessagesState)
    builder.add_node("plan", lambda state: Command(goto=[Send("word", {"word": w}) for w in "ab"]))
    builder.add_node("word", word)
    builder.add_node("outer", inner.compile())
    builder.add_edge(START, "plan")
    builder.add_edge("word", "outer")
    graph = builder.compile(checkpointer=PerdureSaver(store))
    engine = ChatTurnEngine(store, produce=GraphTurns(graph), name="g")
    assert text_in(await told(engine, 0, "Go")) == "<a><b>deep"
    assert [step.intent for step in await store.read_steps("chat:s:0")][1:] == [
        "langgraph: begin", "node plan 1", "node word 2/0", "node word 2/1",
        "node outer 3:deep 1", "langgraph: save",
    ]  # fmt: skip
    await engine.aclose()


async def test_a_turn_goes_on_from_delta_channels_too() -> None:
    store = MemoryStore()
    turns = GraphTurns(
        two_at_once(PerdureSaver(store)),
        input_of=lambda turn, state: {"said": [turn.user_message]},
    )
    engine = ChatTurnEngine(store, produce=turns, name="g")
    for number in range(4):
        await told(engine, number, f"in{number}")
    state = await two_at_once(PerdureSaver(store)).aget_state(THREAD)
    assert state.values["said"][-3:] == ["in3", "a10", "b10"]
    await engine.aclose()


async def test_a_failed_turn_leaves_the_thread_as_it_was() -> None:
    store = MemoryStore()

    def fail(state: MessagesState) -> dict[str, Any]:
        raise ValueError("no")

    engine = ChatTurnEngine(store, produce=GraphTurns(chain(store, fail=fail)), name="g")
    await told(engine, 0, "Go")
    run = await store.read_run("chat:s:0")
    assert run is not None
    assert run.state == "failed"
    assert (await chain(store).aget_state(THREAD)).values == {}
    await engine.aclose()


async def test_tenants_have_threads_of_their_own_which_go_with_their_user() -> None:
    store = MemoryStore()
    graph = chain(store, answer=lambda state: {"messages": [AIMessage("yes")]})
    engine = ChatTurnEngine(store, produce=GraphTurns(graph), name="g")
    turn = await engine.submit(ChatTurnIdentity("acme", "s", "ann", 0), "Hi")
    assert [line async for line in turn.lines()]
    assert (await graph.aget_state(THREAD)).values == {}
    theirs = chain(store.for_tenant("acme"), answer=lambda state: {})
    assert len((await theirs.aget_state(THREAD)).values["messages"]) == 2
    assert (await erase_user(store.for_tenant("acme"), "ann")).sessions == 2
    assert (await theirs.aget_state(THREAD)).values == {}
    await engine.aclose()


async def test_nodes_at_once_take_their_positions_in_the_recorded_order() -> None:
    intents = {2: "node b 1", 4: "node a 1", 5: "node c 1"}
    recorded = [
        StepRecord("r", at, intent, "logic", "completed", 1) for at, intent in intents.items()
    ]
    unused: Any = None
    work = GraphWork(unused, Showing(), unused, {}, recorded)
    order: list[str] = []

    async def take(name: str) -> None:
        await work.its_turn(f"node {name} 1")
        order.append(name)

    await asyncio.gather(*map(take, "xcayb"))
    assert order == ["b", "x", "a", "c", "y"]


async def test_a_graph_without_the_checkpointer_is_refused() -> None:
    with pytest.raises(UsageError, match="must be compiled with a PerdureSaver"):
        GraphTurns(
            StateGraph(MessagesState).add_node("a", lambda state: {}).add_edge(START, "a").compile()
        )
