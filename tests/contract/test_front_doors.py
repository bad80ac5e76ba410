"""What a newcomer mistakes at each front door is refused at once, with the way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from perdure import (
    AgentTaskSpec,
    ChatTurnEngine,
    DurableContext,
    MemoryStore,
    RunManifest,
    Worker,
    answer_with,
    run_durable,
)
from perdure.agent import (
    AgentTaskProducer,
    CallableBackend,
    DurableSessionStore,
    SessionChoice,
    classify_intent,
    run_agent_task_stream,
)
from perdure.backends import ScriptedBackend
from perdure.errors import UsageError, ValidationError
from perdure.observe import usage_summary

TASK = AgentTaskSpec("support", "Answer a customer")
MANIFEST = RunManifest("shop", TASK)
ADDRESS: Any = "sqlite:chat.db"
MODEL: Any = ScriptedBackend()
RUNS: Any = MemoryStore()
LISTED: Any = [{"prompt": "You greet."}]
DOER: Any = CallableBackend(lambda _: "done")


@pytest.mark.parametrize(
    ("mistake", "way_out"),
    [
        (lambda: ChatTurnEngine(RUNS, produce=MODEL), "answer_with"),
        (lambda: ChatTurnEngine(RUNS, produce=DOER), "AgentTaskProducer"),
        (lambda: ChatTurnEngine(ADDRESS, produce=answer_with(MODEL)), "open_store"),
        (lambda: Worker(ADDRESS), "open_store"),
        (lambda: run_agent_task_stream(TASK, MODEL), "ModelBackend"),
        (
            lambda: AgentTaskProducer(
                MODEL, task_of=lambda _: TASK, sessions=DurableSessionStore(RUNS)
            ),
            "ModelBackend",
        ),
        (lambda: SessionChoice(RUNS, "customer-7"), "DurableSessionStore"),
        (lambda: classify_intent("Good morning", LISTED), "mapping"),
    ],
)
def test_what_is_taken_for_another_thing_is_refused(
    mistake: Callable[[], object], way_out: str
) -> None:
    with pytest.raises((UsageError, ValidationError), match=way_out):
        mistake()


async def test_the_address_of_a_store_is_no_store() -> None:
    async def task(context: DurableContext) -> None: ...

    with pytest.raises(UsageError, match="open_store"):
        await run_durable(ADDRESS, run_id="run", manifest=MANIFEST, task=task)


async def test_an_id_of_a_session_is_no_identity() -> None:
    engine = ChatTurnEngine(MemoryStore(), produce=answer_with(MODEL))
    session: Any = "kitchen"
    with pytest.raises(UsageError, match="ChatTurnIdentity"):
        await engine.submit(session, "Hi")


async def test_a_sum_by_what_there_is_not_is_refused() -> None:
    month: Any = "month"
    with pytest.raises(UsageError, match="day"):
        await usage_summary(MemoryStore(), by=month)


async def test_a_task_that_forgets_to_await_its_step_has_failed_and_goes_on_when_it_is_mended() -> (
    None
):
    store = MemoryStore()

    async def careless(context: DurableContext) -> Any:
        return context.step("pay", lambda: "paid")

    async def mended(context: DurableContext) -> str:
        return await context.step("pay", lambda: "paid")

    with pytest.raises(UsageError, match="await"):
        await run_durable(store, run_id="run", manifest=MANIFEST, task=careless)
    done = await run_durable(store, run_id="run", manifest=MANIFEST, task=mended)
    assert done.result == "paid"
