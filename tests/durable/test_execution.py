"""An attempt that is cancelled, stopped, lost or crashed leaves the run as it promised."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from perdure.core.changes import BeginStep, CompleteStep
from perdure.durable.context import DurableContext
from perdure.durable.lease import keep_leases
from perdure.errors import (
    LeaseLostError,
    RunParkedError,
    RunStoppedError,
)
from perdure.store.protocol import RunStore
from perdure.testing.samples import hold
from tests.durable.handles import (
    Body,
    Broken,
    Handles,
    Hanging,
    Trouble,
    TroubledStore,
    crash_after,
    is_in,
    leave_behind,
    read,
    run,
    steps_of,
    within,
)


async def test_a_cancelled_call_gives_the_lease_back_without_a_strike(store: RunStore) -> None:
    task = Hanging()
    call = asyncio.create_task(run(store, task))
    await within(task.begun.wait())
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(call)
    found = await read(store)
    assert (found.state, found.lease_holder_id, found.strikes) == ("running", None, 0)
    assert task.interrupted
    task.go_on.set()
    done = await run(store, task)
    assert (done.result, task.first.calls) == (["first", "second"], 1)
    assert (await read(store)).strikes == 0


async def test_a_call_that_is_cancelled_while_it_claims_holds_nothing(store: RunStore) -> None:
    class Slow(Trouble):
        async def write(self, name, call):  # as in Trouble
            answer = await super().write(name, call)
            if name == "start_or_resume" and not claimed.is_set():
                claimed.set()
                await asyncio.Event().wait()
            return answer

    claimed = asyncio.Event()
    call = asyncio.create_task(run(TroubledStore(store, Slow()), Hanging()))
    await within(claimed.wait())
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(call)
    found = await read(store)
    assert (found.state, found.lease_holder_id, found.strikes) == ("running", None, 0)


async def test_a_task_that_makes_an_error_of_its_cancellation_has_not_failed(
    store: RunStore,
) -> None:
    task = Hanging()

    async def stubborn(context: DurableContext) -> None:
        try:
            await task(context)
        except BaseException as error:
            raise Broken("because of the cancellation") from error

    call = asyncio.create_task(run(store, stubborn))
    await within(task.begun.wait())
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(call)
    assert await is_in(store, "running")


async def test_a_body_that_makes_an_error_of_its_cancellation_has_not_failed(
    store: RunStore,
) -> None:
    begun = asyncio.Event()

    async def body() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise Broken("because of the cancellation") from None

    async def task(context: DurableContext) -> None:
        await context.step("work", body)

    call = asyncio.create_task(run(store, task))
    await within(begun.wait())
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(call)
    assert await is_in(store, "running")
    assert all(step.status == "running" for step in await steps_of(store))


async def test_a_stop_interrupts_and_ends_as_stopped(store: RunStore) -> None:
    task = Hanging()
    keep_leases(store, beat_ms=20)
    call = asyncio.create_task(run(store, task))
    await within(task.begun.wait())
    await store.request_stop("run")
    with pytest.raises(RunStoppedError):
        await within(call)
    assert task.interrupted
    assert await is_in(store, "stopped")
    with pytest.raises(RunStoppedError):
        await run(store, task)
    assert (await steps_of(store))[0].status == "completed"


async def test_a_stop_is_heard_with_the_next_write(store: RunStore) -> None:
    later = Body()

    async def stopping(context: DurableContext) -> None:
        async def body() -> None:
            await store.request_stop("run")

        await context.step("stop", body)
        await context.step("later", later)

    with pytest.raises(RunStoppedError):
        await within(run(store, stopping))
    assert later.calls == 0
    assert [step.status for step in await steps_of(store)] == ["completed"]


async def test_a_swallowed_stop_cannot_be_outlived(store: RunStore) -> None:
    later = Body()

    async def task(context: DurableContext) -> str:
        async def body() -> None:
            await store.request_stop("run")

        for _ in range(3):
            try:
                await context.step("stop", body)
                await context.step("later", later)
            except BaseException:
                continue
        return "outlived"

    with pytest.raises(RunStoppedError):
        await within(run(store, task))
    assert later.calls == 0
    assert await is_in(store, "stopped")


async def test_a_task_that_returns_because_of_a_stop_is_stopped_all_the_same(
    store: RunStore,
) -> None:
    keep_leases(store, beat_ms=20)
    task = Hanging()

    async def polite(context: DurableContext) -> object:
        try:
            return await task(context)
        except asyncio.CancelledError:
            return "partial"

    call = asyncio.create_task(run(store, polite))
    await within(task.begun.wait())
    await store.request_stop("run")
    with pytest.raises(RunStoppedError):
        await within(call)
    assert await is_in(store, "stopped")


async def test_a_run_that_is_to_be_stopped_is_not_begun(store: RunStore) -> None:
    await leave_behind(store)
    await store.request_stop("run")
    body = Body()

    async def task(context: DurableContext) -> None:
        body()

    with pytest.raises(RunStoppedError):
        await run(store, task)
    assert body.calls == 0
    assert await is_in(store, "stopped")


async def test_too_many_crashes_park_the_run_before_any_code_of_the_user(
    store: RunStore,
) -> None:
    body = Body()

    async def task(context: DurableContext) -> object:
        return body()

    for _ in range(5):
        await crash_after(store)
    with pytest.raises(RunParkedError, match="5 attempts crashed"):
        await run(store, task)
    found = await read(store)
    assert (found.state, found.reason) == ("parked", "attempts_exhausted")
    assert body.calls == 0
    assert (await run(store, task)).result == "done"


async def test_one_crash_less_than_the_limit_goes_on(store: RunStore) -> None:
    for _ in range(4):
        await crash_after(store)
    assert (await run(store, lambda context: context.step("work", lambda: 1))).result == 1


async def test_progress_forgives_crashes_and_drains_cost_none(store: RunStore) -> None:
    for _ in range(4):
        await crash_after(store)
    await leave_behind(store, CompleteStep(0, "work", "1"))
    for _ in range(6):
        await leave_behind(store, BeginStep(1, "more"))
    for _ in range(4):
        await crash_after(store)
    assert (await read(store)).strikes == 3
    done = await run(store, lambda context: context.step("work", lambda: 2))
    assert done.result == 1


async def test_a_zombie_cannot_write(handles: Handles) -> None:
    store = await handles.open(clock=handles.clock)
    other = await handles.open(clock=handles.clock)
    begun, taken_over, later = asyncio.Event(), asyncio.Event(), Body()

    async def stubborn() -> str:
        begun.set()
        while not taken_over.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await taken_over.wait()
        return "zombie"

    async def zombie(context: DurableContext) -> object:
        with pytest.raises(LeaseLostError):
            await context.step("work", stubborn)
        with pytest.raises(LeaseLostError):
            await context.step("later", later)
        return "outlived"

    call = asyncio.create_task(run(store, zombie))
    await within(begun.wait())
    handles.clock.advance(60_000)
    done = await run(other, lambda context: context.step("work", lambda: "successor"))
    taken_over.set()
    with pytest.raises(LeaseLostError):
        await within(call)
    assert (await read(store), await steps_of(store)) == (done.record, done.steps)
    assert done.result == "successor"
    assert later.calls == 0


async def test_a_lost_lease_interrupts_a_long_step(handles: Handles) -> None:
    store = await handles.open(clock=handles.clock)
    other = await handles.open(clock=handles.clock)
    task = Hanging()
    call = asyncio.create_task(run(store, task, lease_ms=600))
    await within(task.begun.wait())
    handles.clock.advance(60_000)
    lease = await hold(other, handler=None)
    with pytest.raises(LeaseLostError):
        await within(call, 5)
    assert task.interrupted
    found = await read(other)
    assert (found.state, found.epoch) == ("running", lease.epoch)
