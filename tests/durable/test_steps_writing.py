"""What a step writes, and when others see it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from perdure.core.changes import BeginStep, Change, CompleteStep
from perdure.core.records import Effect, Lease, Retry, StepKind, Written
from perdure.durable.context import DurableContext
from perdure.durable.steps import current_step, report_usage
from perdure.errors import (
    UsageError,
)
from perdure.store.forwarding import ForwardingStore
from perdure.store.protocol import RunStore
from perdure.testing.samples import hold
from tests.durable.handles import (
    Broken,
    Handles,
    Trouble,
    TroubledStore,
    crash_after,
    run,
    steps_of,
    until,
    within,
)

QUICK = Retry(tries_max=3, backoff_ms=1)

T = TypeVar("T")


async def test_a_short_step_costs_exactly_one_write(store: RunStore) -> None:
    trouble = Trouble()

    async def task(context: DurableContext) -> None:
        for index in range(5):
            await context.step(f"step {index}", lambda: 1)

    await run(TroubledStore(store, trouble), task)
    assert trouble.calls == ["start_or_resume", *["write"] * 5, "write"]


async def test_a_long_step_becomes_visible_while_it_runs(store: RunStore) -> None:
    go_on = asyncio.Event()

    async def task(context: DurableContext) -> None:
        await context.step("short", lambda: 1)
        await context.step("long", go_on.wait)

    running = asyncio.create_task(run(store, task))
    try:
        await until(lambda: _statuses(store, ["completed", "running"]))
    finally:
        go_on.set()
    assert [step.status for step in (await running).steps] == ["completed", "completed"]


async def _statuses(store: RunStore, expected: list[str]) -> bool:
    return [step.status for step in await steps_of(store)] == expected


async def test_open_steps_are_recorded_with_the_write_of_another(store: RunStore) -> None:
    go_on = asyncio.Event()
    trouble = Trouble()
    seen: list[str] = []

    async def task(context: DurableContext) -> None:
        slow = asyncio.ensure_future(context.step("slow", go_on.wait))
        await asyncio.sleep(0)
        await context.step("quick", lambda: 1)
        seen.extend(step.status for step in await steps_of(store))
        go_on.set()
        await slow

    await run(TroubledStore(store, trouble), task)
    assert seen == ["running", "completed"]
    assert trouble.writes == 3


class Heard(ForwardingStore):
    """A store that notes which completions are said to end what was begun."""

    def __init__(self, inner: RunStore) -> None:
        super().__init__(inner)
        self.begun: dict[str, bool] = {}

    def for_tenant(self, tenant: str) -> Heard:
        return Heard(self._inner.for_tenant(tenant))

    async def write(self, lease: Lease, *changes: Change) -> Written:
        self.begun |= {
            change.intent: change.is_begun for change in changes if isinstance(change, CompleteStep)
        }
        return await super().write(lease, *changes)


async def test_a_store_is_told_whether_a_step_was_begun_before_it_is_completed(
    store: RunStore,
) -> None:
    async def slow() -> None:
        await until(lambda: _statuses(store, ["completed", "running"]))

    async def task(context: DurableContext) -> None:
        await context.step("interrupted", lambda: 1)
        await context.step("slow", slow)
        await context.step("tool", lambda: 1, kind="tool")
        await context.step("short", lambda: 1)

    await crash_after(store, BeginStep(0, "interrupted"))
    heard = Heard(store)
    await run(heard, task)
    assert heard.begun == {"interrupted": True, "slow": True, "tool": True, "short": False}


@pytest.mark.parametrize(
    ("kind", "effect"), [("llm", "pure"), ("tool", "idempotent"), ("logic", "at_most_once")]
)
async def test_what_must_be_visible_after_a_crash_is_begun_before_its_body(
    store: RunStore, kind: StepKind, effect: Effect
) -> None:
    async def body() -> list[object]:
        (step,) = await steps_of(store)
        usage = (await store.read_details("run")).usage
        return [step.status, step.kind, step.effect, [one.state for one in usage]]

    async def task(context: DurableContext) -> list[object]:
        found: list[object] = await context.step("work", body, kind=kind, effect=effect)
        return found

    usage = ["intended"] if kind == "llm" else []
    assert (await run(store, task)).result == ["running", kind, effect, usage]


async def test_the_usage_of_a_model_call_is_settled_with_its_step(store: RunStore) -> None:
    trouble = Trouble()

    def body() -> str:
        report_usage(model="m", tokens_in=10, tokens_out=2, request_id="r")
        return "answer"

    async def task(context: DurableContext) -> None:
        await context.step("ask", body, kind="llm")
        await context.step("ask", lambda: "unreported", kind="llm")

    await run(TroubledStore(store, trouble), task)
    first, second = (await store.read_details("run")).usage
    assert (first.state, first.model, first.tokens_in, first.tokens_out, first.step_index) == (
        "settled",
        "m",
        10,
        2,
        0,
    )
    assert (first.request_id, first.tokens_cached) == ("r", None)
    assert (second.state, second.step_index, second.tokens_in) == ("unknown", 1, None)
    assert trouble.writes == 5


async def test_every_try_of_a_model_call_has_its_own_usage(store: RunStore) -> None:
    def body() -> str:
        report_usage(tokens_in=current_step().tries)
        if current_step().tries < 3:
            raise Broken
        return "answer"

    async def task(context: DurableContext) -> None:
        await context.step("ask", body, kind="llm", retry=QUICK)

    await run(store, task)
    usage = (await store.read_details("run")).usage
    assert [(one.call, one.state, one.tokens_in) for one in usage] == [
        (0, "settled", 1),
        (1, "settled", 2),
        (2, "settled", 3),
    ]


async def test_a_model_call_that_was_cut_off_keeps_what_it_reported(store: RunStore) -> None:
    reported = asyncio.Event()

    async def body() -> None:
        report_usage(tokens_in=10)
        reported.set()
        await asyncio.Event().wait()

    async def task(context: DurableContext) -> None:
        await context.step("ask", body, kind="llm")

    running = asyncio.create_task(run(store, task))
    await within(reported.wait())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    (usage,) = (await store.read_details("run")).usage
    assert (usage.state, usage.tokens_in) == ("settled", 10)


async def test_a_lost_worker_still_settles_its_bill(handles: Handles) -> None:
    store = await handles.open(clock=handles.clock)
    other = await handles.open(clock=handles.clock)

    async def body() -> str:
        handles.clock.advance(60_000)
        await hold(other)
        report_usage(tokens_in=10)
        return "too late"

    async def task(context: DurableContext) -> None:
        await context.step("ask", body, kind="llm")

    with pytest.raises(Exception, match="lease"):
        await within(run(store, task))
    (usage,) = (await store.read_details("run")).usage
    assert (usage.epoch, usage.state, usage.tokens_in) == (1, "settled", 10)
    assert (await steps_of(store))[0].status == "running"


async def test_usage_is_reported_inside_model_calls_only_and_in_whole_tokens(
    store: RunStore,
) -> None:
    with pytest.raises(UsageError, match="kind 'llm'"):
        report_usage(tokens_in=1)

    async def logic(context: DurableContext) -> None:
        await context.step("work", lambda: report_usage(tokens_in=1))

    async def model(context: DurableContext) -> None:
        await context.step("work", lambda: report_usage(tokens_in=-1), kind="llm")

    with pytest.raises(UsageError, match="kind 'llm'"):
        await run(store, logic)
    with pytest.raises(UsageError, match="tokens_in"):
        await run(store, model, run_id="other")


class Overtaking(Trouble):
    """A store in which a begin that is written alone stays away while later writes get through."""

    def __init__(self) -> None:
        super().__init__()
        self.begin_is_away = asyncio.Event()
        self.begin_arrives = asyncio.Event()

    async def write(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        if name == "write" and not self.begin_is_away.is_set():
            self.begin_is_away.set()
            await self.begin_arrives.wait()
        return await super().write(name, call)


async def test_the_end_of_a_step_is_never_overtaken_by_its_begin(store: RunStore) -> None:
    trouble = Overtaking()

    async def body() -> None:
        await within(trouble.begin_is_away.wait())
        asyncio.get_running_loop().call_later(0.01, trouble.begin_arrives.set)
        raise Broken

    async def task(context: DurableContext) -> None:
        await context.step("work", body)

    with pytest.raises(Broken):
        await within(run(TroubledStore(store, trouble), task))
    assert [step.status for step in await steps_of(store)] == ["failed"]
