"""Waiting: a run sleeps without a worker, and its deadline is fixed once and for all."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from perdure.core.changes import BeginStep, CompleteStep, Suspend
from perdure.core.effects import epoch_ms
from perdure.durable.context import DurableContext
from perdure.durable.runner import emit_event
from perdure.errors import (
    AwaitEventTimeoutError,
    UsageError,
)
from perdure.store.protocol import RunStore
from perdure.testing.samples import hold
from tests.durable.handles import (
    Body,
    Broken,
    Handles,
    Trouble,
    TroubledStore,
    attempts_of,
    described,
    is_in,
    leave_behind,
    read,
    run,
    steps_of,
    until,
    within,
)


async def sleep_for_ever(context: DurableContext) -> None:
    await context.sleep(3_600_000)


async def await_approval(context: DurableContext) -> object:
    return await context.await_event("approved", timeout_ms=None)


# Sleeping.


async def test_a_sleep_lasts_as_long_as_it_should(store: RunStore) -> None:
    async def task(context: DurableContext) -> float:
        begun = time.monotonic()
        await context.sleep(120)
        return time.monotonic() - begun

    done = await run(store, task)
    assert 0.115 <= done.result < 5
    (step,) = done.steps
    assert (step.intent, step.kind, step.status) == (
        "deterministic:sleep",
        "deterministic",
        "completed",
    )
    assert step.result is None


@pytest.mark.parametrize("duration_ms", [0, 20])
async def test_a_short_sleep_keeps_the_lease(store: RunStore, duration_ms: int) -> None:
    done = await run(store, lambda context: context.sleep(duration_ms))
    assert done.record.epoch == 1


async def test_a_long_sleep_gives_the_lease_back_and_claims_again(store: RunStore) -> None:
    sleeping = asyncio.create_task(run(store, lambda context: context.sleep(150)))
    await until(lambda: is_in(store, "sleeping"))
    asleep = await read(store)
    assert (asleep.lease_holder_id, asleep.strikes) == (None, 0)
    assert asleep.wake_at is not None
    done = await sleeping
    assert (done.record.state, done.record.epoch, done.record.strikes) == ("completed", 2, 0)
    assert [one.ended for one in await attempts_of(store)] == ["sleeping", "completed"]


async def test_a_sleep_that_was_begun_counts_from_its_begin(store: RunStore) -> None:
    await leave_behind(store, BeginStep(0, "deterministic:sleep", kind="deterministic"))
    begun_at = (await steps_of(store))[0].started_at
    done = await run(store, lambda context: context.sleep(200))
    (step,) = done.steps
    assert step.started_at == begun_at, "a wait is never begun twice"
    assert begun_at is not None
    assert step.completed_at is not None
    assert 195 <= epoch_ms(step.completed_at) - epoch_ms(begun_at) < 5_000


async def test_a_sleep_that_is_over_is_only_completed(handles: Handles) -> None:
    store = await handles.open(clock=handles.clock)
    lease = await hold(store, handler=None)
    await store.write(
        lease,
        BeginStep(0, "deterministic:sleep", kind="deterministic"),
        Suspend("sleeping", wake_in_ms=3_600_000),
    )
    handles.clock.advance(3_600_000)
    done = await within(run(store, sleep_for_ever))
    assert (done.record.state, done.record.epoch) == ("completed", 2)


@pytest.mark.parametrize("length", [-1, 1.5, True, None, "1", 10**15])
async def test_a_length_that_is_no_length_is_refused(store: RunStore, length: Any) -> None:
    async def task(context: DurableContext) -> None:
        with pytest.raises(UsageError, match="duration_ms"):
            await context.sleep(length)
        if length is not None:
            with pytest.raises(UsageError, match="timeout_ms"):
                await context.await_event("key", timeout_ms=length)

    assert (await run(store, task)).steps == []


# Waiting for an event.


async def test_an_event_that_is_there_already_wins_over_any_time_out(store: RunStore) -> None:
    await leave_behind(store)
    await emit_event(store, "run", "approved", {"by": "ann"})

    async def task(context: DurableContext) -> object:
        return await context.await_event("approved", timeout_ms=0)

    done = await run(store, task)
    assert done.result == {"by": "ann"}
    (step,) = done.steps
    assert (step.intent, step.kind, step.input_hash) == ("event:approved", "event", "")


async def test_an_emit_from_outside_wakes_a_direct_call(store: RunStore) -> None:
    waiting = asyncio.create_task(run(store, await_approval))
    await until(lambda: is_in(store, "waiting"))
    asleep = await read(store)
    assert (asleep.wake_key, asleep.wake_at, asleep.lease_holder_id) == ("approved", None, None)
    begun = time.monotonic()
    assert await emit_event(store, "run", "approved", "yes")
    assert (await within(waiting)).result == "yes"
    assert time.monotonic() - begun < 0.5, "it must not wait for its own poll"
    assert not await emit_event(store, "run", "approved", "no")
    assert (await run(store, await_approval)).result == "yes"


async def test_an_emit_through_another_handle_wakes_a_direct_call(handles: Handles) -> None:
    store, other = await handles.open(), await handles.open()
    waiting = asyncio.create_task(run(store, await_approval))
    await until(lambda: is_in(other, "waiting"))
    begun = time.monotonic()
    await emit_event(other, "run", "approved", "yes")
    assert (await within(waiting)).result == "yes"
    assert time.monotonic() - begun < 0.5


async def test_an_event_that_comes_while_the_run_falls_asleep_is_not_missed(
    store: RunStore,
) -> None:
    trouble = Trouble()
    trouble.gate = asyncio.Event()
    waiting = asyncio.create_task(run(TroubledStore(store, trouble), await_approval))
    await within(trouble.held_up.wait())
    await emit_event(store, "run", "approved", "just in time")
    trouble.gate.set()
    assert (await within(waiting, 0.9)).result == "just in time"


async def test_a_time_out_counts_from_the_first_begin_across_attempts(handles: Handles) -> None:
    store = await handles.open(clock=handles.clock)

    async def task(context: DurableContext) -> object:
        return await context.await_event("approved", timeout_ms=60_000)

    await leave_behind(store, BeginStep(0, "event:approved", kind="event"))
    begun_at = (await steps_of(store))[0].started_at
    handles.clock.advance(59_950)
    with pytest.raises(AwaitEventTimeoutError, match="'approved' arrived within 60000 ms"):
        await within(run(store, task))
    assert (await steps_of(store))[0].started_at == begun_at


async def test_a_time_out_is_final_and_the_same_at_every_replay(store: RunStore) -> None:
    seen: list[object] = []

    async def task(context: DurableContext) -> object:
        try:
            return await context.await_event("approved", timeout_ms=60)
        except AwaitEventTimeoutError as error:
            seen.append(described(error))
            raise

    with pytest.raises(AwaitEventTimeoutError):
        await run(store, task)
    await emit_event(store, "run", "approved", "too late")
    with pytest.raises(AwaitEventTimeoutError):
        await run(store, task)
    assert len(seen) == 2
    assert seen[0] == seen[1]


async def test_a_task_may_go_on_after_a_time_out(store: RunStore) -> None:
    whole = Body("nobody answered", fails=1)

    async def task(context: DurableContext) -> object:
        with pytest.raises(AwaitEventTimeoutError):
            await context.await_event("approved", timeout_ms=0)
        await context.step("remind", lambda: 1)
        return whole()

    with pytest.raises(Broken):
        await run(store, task)
    assert (await run(store, task)).result == "nobody answered"


async def test_a_wait_for_another_key_diverges(store: RunStore) -> None:
    await leave_behind(store, CompleteStep(0, "event:approved", "1", kind="event"))

    async def task(context: DurableContext) -> object:
        return await context.await_event("denied")

    with pytest.raises(Exception, match="'event:denied' at position 0"):
        await run(store, task)
    assert await is_in(store, "parked")


# Beside other work.


async def test_a_wait_beside_an_open_step_keeps_the_lease(store: RunStore) -> None:
    go_on = asyncio.Event()

    async def task(context: DurableContext) -> None:
        await asyncio.gather(context.sleep(100), context.step("work", go_on.wait))

    running = asyncio.create_task(run(store, task))
    await until(lambda: _has(store, "deterministic:sleep", "completed"))
    found = await read(store)
    assert (found.state, found.epoch) == ("running", 1)
    go_on.set()
    assert (await running).record.epoch == 1


async def _has(store: RunStore, intent: str, status: str) -> bool:
    return any((step.intent, step.status) == (intent, status) for step in await steps_of(store))


async def test_the_last_of_several_waits_gives_the_lease_back(store: RunStore) -> None:
    async def task(context: DurableContext) -> None:
        await asyncio.gather(context.sleep(60), context.await_event("go", timeout_ms=None))

    running = asyncio.create_task(run(store, task))
    await until(lambda: is_in(store, "waiting"))
    assert await _has(store, "deterministic:sleep", "completed")
    await emit_event(store, "run", "go", 1)
    assert (await within(running)).record.epoch == 2


async def test_a_step_that_begins_while_a_wait_beside_it_sleeps_wakes_the_run(
    store: RunStore,
) -> None:
    async def task(context: DurableContext) -> object:
        waiting = asyncio.ensure_future(context.await_event("go", timeout_ms=None))
        await until(lambda: is_in(store, "waiting"))
        stepped = await context.step("meanwhile", lambda: "stepped")
        await context.emit_event("go", "gone")
        return [stepped, await waiting]

    done = await within(run(store, task))
    assert done.result == ["stepped", "gone"]
    assert done.record.epoch > 1


async def test_an_emit_of_the_sleeping_run_itself_wakes_it(store: RunStore) -> None:
    async def task(context: DurableContext) -> object:
        waiting = asyncio.ensure_future(context.await_event("go", timeout_ms=None))
        await until(lambda: is_in(store, "waiting"))
        await context.emit_event("go", "gone")
        return await waiting

    assert (await within(run(store, task))).result == "gone"


async def test_a_step_that_begins_while_the_lease_is_being_given_back_waits_for_it(
    store: RunStore,
) -> None:
    trouble = Trouble()

    async def task(context: DurableContext) -> object:
        trouble.gate = asyncio.Event()
        waiting = asyncio.ensure_future(context.await_event("go", timeout_ms=None))
        await within(trouble.held_up.wait())
        step = asyncio.ensure_future(context.step("meanwhile", lambda: "stepped"))
        await asyncio.sleep(0)
        trouble.gate.set()
        stepped = await step
        await context.emit_event("go", "gone")
        return [stepped, await waiting]

    done = await within(run(TroubledStore(store, trouble), task))
    assert done.result == ["stepped", "gone"]


async def test_a_task_that_gives_up_a_wait_may_still_finish(store: RunStore) -> None:
    async def task(context: DurableContext) -> str:
        waiting = asyncio.ensure_future(context.await_event("go", timeout_ms=None))
        await until(lambda: is_in(store, "waiting"))
        waiting.cancel()
        await asyncio.wait((waiting,))
        return "impatient"

    done = await within(run(store, task))
    assert (done.result, done.record.state) == ("impatient", "completed")
