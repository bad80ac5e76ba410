"""Agents of Pydantic AI: what readers see of them, and whom they ask."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from pydantic_ai import (
    Agent,
    CustomEvent,
    DeferredToolRequests,
    RunContext,
    UserPromptPart,
)
from pydantic_ai.exceptions import ApprovalRequired
from pydantic_ai.external_events import ExternalEventError, wait_for_external_event
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.test import TestModel

from bench.agent_process import MANIFEST
from perdure import (
    ChatTurnEngine,
    ChatTurnIdentity,
    DurableContext,
    MemoryStore,
    Worker,
)
from perdure.agent.tool_approval import Approval, answer_approval, pending_approvals
from perdure.engines.pydantic_ai import AgentTurns, durably
from perdure.errors import UsageError
from perdure.store.protocol import RunStore
from tests.engines.scripted_agents import answers, asked, durable, intents, told

# Events.


@dataclass(kw_only=True)
class Halfway(CustomEvent, name="halfway"):
    done: int


async def test_what_an_event_handler_was_given_and_recorded_it_is_not_given_again() -> None:
    store, seen = MemoryStore(), Counter[str]()

    async def handle(_: Any, events: AsyncIterable[Any]) -> None:
        async for event in events:
            seen[event.event_kind] += 1

    async def look(ctx: RunContext[Any]) -> str:
        await ctx.emit(Halfway(done=1))
        return "seen"

    agent = durable(
        answers([("look", {}), ("look", {})], "Fine."), look, event_stream_handler=handle
    )
    await asked(store, agent)
    assert seen["function_tool_call"] == seen["function_tool_result"] == 2
    assert seen["custom"] == 2
    assert seen["part_start"] > 2
    before = seen.copy()
    assert (await asked(store, agent)).result == "Fine. "
    assert seen == before
    assert "a__event_stream_handler #1" in await intents(store)


async def test_readers_see_text_tools_and_output_and_the_ledger_each_request() -> None:
    store = MemoryStore()

    @dataclass
    class Trip:
        seats: int

    def weather(city: str) -> str:
        return f"sun in {city}"

    model = answers(["Let me see", ("weather", {"city": "Faro"})], ("final_result", {"seats": 2}))
    engine = ChatTurnEngine(
        store, produce=AgentTurns(durable(model, weather, output_type=Trip)), name="a"
    )
    events = await told(engine, "Where to?")
    assert "".join(each["data"].get("delta", "") for each in events) == "Let me see "
    parts = [each["data"]["part"] for each in events if "state" in each["data"].get("part", {})]
    assert [part.get("args", part.get("result")) for part in parts] == [
        {"city": "Faro"}, "sun in Faro"
    ]  # fmt: skip
    assert [each["data"] for each in events if each["type"] == "output"] == [{"seats": 2}]
    usage = (await store.read_details("chat:s:0")).usage
    assert len([row for row in usage if row.model == "scripted" and row.tokens_out]) == 2
    await engine.aclose()


async def test_the_next_turn_knows_what_was_said_before() -> None:
    store = MemoryStore()
    known: list[int] = []

    async def stream(messages: Any, _: Any) -> AsyncIterator[str]:
        known.append(len([p for m in messages for p in m.parts if isinstance(p, UserPromptPart)]))
        yield "Hello."

    agent = durable(FunctionModel(stream_function=stream))
    engine = ChatTurnEngine(store, produce=AgentTurns(agent), name="a")
    await told(engine, "Hi", 0)
    await told(engine, "Hi again", 1)
    assert known == [1, 2]
    await engine.aclose()


async def test_a_stop_ends_the_model_and_keeps_what_it_said() -> None:
    store, ended = MemoryStore(), asyncio.Event()

    async def stream(messages: Any, _: Any) -> AsyncIterator[str]:
        try:
            yield "Hello "
            await asyncio.Event().wait()
        finally:
            ended.set()

    agent = durable(FunctionModel(stream_function=stream))
    engine = ChatTurnEngine(store, produce=AgentTurns(agent), name="a")
    who = ChatTurnIdentity("", "s", "ann", 0)
    turn = await engine.submit(who, "Hi")
    async for lines in turn.lines():
        if b"Hello" in lines:
            await engine.stop(who)
    await ended.wait()
    run = (await store.list_runs(with_answer=True))[0]
    answer: Any = run.answer
    assert (run.state, answer["finalText"]) == ("stopped", "Hello ")
    await engine.aclose()


def test_an_agent_without_the_capability_answers_no_turns() -> None:
    with pytest.raises(UsageError, match="no PerdureDurability"):
        AgentTurns(Agent(TestModel(), name="bare"))


# Humans.


def deleting() -> tuple[Agent[Any, Any], list[str]]:
    """Return an agent that deletes two files if a human lets it, and what it deleted."""
    deleted: list[str] = []
    agent = durable(
        answers([("delete", {"path": "a"}), ("delete", {"path": "b"})], "Done."),
        event_stream_handler=None,
    )

    @agent.tool(requires_approval=True)
    def delete(_: RunContext[Any], path: str) -> str:
        deleted.append(path)
        return f"{path} deleted"

    return agent, deleted


async def decided(store: RunStore, run_id: str) -> None:
    """Allow one call with other arguments, and deny the other."""
    while len(requests := await pending_approvals(store, run_id)) < 2:
        await store.wait_for_change(run_id, timeout_ms=10)
    assert [each.arguments for each in requests] == [{"path": "a"}, {"path": "b"}]
    await answer_approval(store, run_id, requests[1], Approval(False, "not this one"))
    await answer_approval(store, run_id, requests[0], Approval(True, arguments={"path": "c"}))


async def test_a_worker_holds_no_run_while_a_human_thinks() -> None:
    store = MemoryStore()
    agent, deleted = deleting()

    async def task(context: DurableContext) -> Any:
        with durably(context):
            return (await agent.run("Go")).output

    worker = Worker(store, tasks={"files": task})
    await worker.submit("files", run_id="r", manifest=MANIFEST)
    working = asyncio.create_task(worker.run())
    for state in ("waiting", "completed"):
        while (found := await store.read_run("r")) is None or found.state != state:
            await store.wait_for_change("r", timeout_ms=10)
        if state == "waiting":
            await decided(store, "r")
    await worker.drain()
    await working
    assert deleted == ["c"]
    assert await intents(store) == [
        "a__model.request #1", "a__approval_request #1.1", "a__approval_request #1.2",
        "event:approval:a:1.1", "event:approval:a:1.2",
        "a__function_toolset__<agent>.call_tool:delete #1.1", "a__model.request #2",
    ]  # fmt: skip


async def test_a_turn_shows_what_is_asked_and_what_was_decided() -> None:
    store = MemoryStore()
    agent, deleted = deleting()
    engine = ChatTurnEngine(store, produce=AgentTurns(agent), name="a")
    events, _ = await asyncio.gather(told(engine, "Go"), decided(store, "chat:s:0"))
    kinds = Counter(event["type"] for event in events)
    assert (kinds["tool_approval_request"], kinds["tool_approval"]) == (2, 2)
    errors = [event["data"].get("part", {}).get("error") for event in events]
    assert {"code": "denied", "message": "a human has denied this call: not this one"} in errors
    assert deleted == ["c"]
    await engine.aclose()


async def test_nobody_in_time_is_a_no_and_an_agent_may_ask_by_itself() -> None:
    def delete() -> str:
        raise ApprovalRequired

    store = MemoryStore()
    model = answers(("delete", {}), "Done.")
    await asked(store, durable(model, delete, approval_timeout_ms=1))
    assert (await intents(store))[-2] == "event:approval:a:1.1"
    own = durable(model, delete, asks=False, output_type=[str, DeferredToolRequests])
    output = (await asked(store, own, "own")).result
    assert [call.tool_name for call in output.approvals] == ["delete"]


async def test_input_from_outside_comes_as_an_event_that_the_token_names() -> None:
    store = MemoryStore()
    tokens: list[str] = []

    async def name() -> str:
        return str(await wait_for_external_event("name", ask=tokens.append))

    async def late() -> str:
        try:
            await wait_for_external_event(
                "late", ask=tokens.append, timeout=timedelta(milliseconds=1)
            )
        except ExternalEventError as error:
            return str(error)
        raise AssertionError

    agent = durable(answers(("name", {}), ("late", {}), "Done."))
    for tool in (name, late):
        agent.tool_plain(metadata={"perdure": False})(tool)
    running = asyncio.create_task(asked(store, agent))
    while not tokens:
        await store.wait_for_change("r", timeout_ms=10)
    run_id, _, key = tokens[0].partition("/")
    await store.emit_event(run_id, key, "Ann")
    assert (await running).result == "Done."
    assert (run_id, key) == ("r", "input:a:1")
    assert "event:input:a:2" in await intents(store)
