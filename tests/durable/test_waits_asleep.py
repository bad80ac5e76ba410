"""What may happen to a run while it sleeps in a direct call."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from perdure.core.changes import Release
from perdure.core.records import EventRecord
from perdure.durable.context import DurableContext
from perdure.durable.runner import emit_event
from perdure.errors import (
    LeaseLostError,
    RunStoppedError,
    StoreCorruptError,
    StoreUnavailableError,
)
from perdure.store.protocol import RunStore
from perdure.testing.samples import hold
from tests.durable.handles import (
    Body,
    Handles,
    Trouble,
    TroubledStore,
    is_in,
    read,
    run,
    until,
    within,
)


async def sleep_for_ever(context: DurableContext) -> None:
    await context.sleep(3_600_000)


async def await_approval(context: DurableContext) -> object:
    return await context.await_event("approved", timeout_ms=None)


async def test_a_stop_ends_a_sleeping_direct_call(store: RunStore) -> None:
    waiting = asyncio.create_task(run(store, await_approval))
    await until(lambda: is_in(store, "waiting"))
    await store.request_stop("run")
    with pytest.raises(RunStoppedError):
        await within(waiting)
    assert await is_in(store, "stopped")


async def test_whoever_finds_another_worker_when_it_wakes_has_lost_the_run(
    handles: Handles,
) -> None:
    store, other = await handles.open(), await handles.open()
    waiting = asyncio.create_task(run(store, await_approval))
    await until(lambda: is_in(other, "waiting"))
    lease = await hold(other, handler=None)
    await emit_event(other, "run", "approved", "yes")
    with pytest.raises(LeaseLostError, match="while it was asleep"):
        await within(waiting)
    assert lease.epoch == (await read(other)).epoch


async def test_a_lost_wake_up_cannot_be_outlived(handles: Handles) -> None:
    store, other = await handles.open(), await handles.open()
    later = Body()

    async def task(context: DurableContext) -> object:
        with pytest.raises(LeaseLostError):
            await await_approval(context)
        with pytest.raises(LeaseLostError):
            await context.step("later", later)
        return "outlived"

    waiting = asyncio.create_task(run(store, task))
    await until(lambda: is_in(other, "waiting"))
    await hold(other, handler=None)
    await emit_event(other, "run", "approved", "yes")
    with pytest.raises(LeaseLostError):
        await within(waiting)
    assert later.calls == 0


async def test_nobody_tries_twice_to_wake_up(handles: Handles) -> None:
    """Else a task that went on without its event could end the run after all."""
    store, other = await handles.open(), await handles.open()

    async def task(context: DurableContext) -> str:
        with pytest.raises(LeaseLostError):
            await await_approval(context)
        await other.write(lease, Release())
        return "outlived"

    waiting = asyncio.create_task(run(store, task))
    await until(lambda: is_in(other, "waiting"))
    lease = await hold(other, handler=None)
    await emit_event(other, "run", "approved", "yes")
    with pytest.raises(LeaseLostError):
        await within(waiting)
    found = await read(other)
    assert (found.state, found.epoch) == ("running", lease.epoch)


async def test_a_cancelled_sleep_leaves_the_run_asleep(store: RunStore) -> None:
    sleeping = asyncio.create_task(run(store, sleep_for_ever))
    await until(lambda: is_in(store, "sleeping"))
    sleeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(sleeping)
    assert await is_in(store, "sleeping")
    assert (await read(store)).strikes == 0


async def test_a_store_that_is_away_for_a_moment_does_not_end_a_sleep(store: RunStore) -> None:
    trouble = Trouble()
    waiting = asyncio.create_task(run(TroubledStore(store, trouble), await_approval))
    await until(lambda: is_in(store, "waiting"))
    trouble.failures_left = 3
    await emit_event(store, "run", "approved", "yes")
    assert (await within(waiting)).result == "yes"
    assert trouble.failures == 3


class Unreadable(TroubledStore):
    """A store that cannot read events any more once it is broken."""

    is_broken = False

    async def load_event(self, run_id: str, key: str) -> EventRecord | None:
        if self.is_broken:
            raise StoreCorruptError("the event cannot be read")
        return await super().load_event(run_id, key)


async def test_a_store_that_is_broken_cannot_be_outlived(store: RunStore) -> None:
    unreadable, later = Unreadable(store, Trouble()), Body()

    async def task(context: DurableContext) -> str:
        async def wait() -> None:
            with contextlib.suppress(StoreCorruptError):
                await await_approval(context)
            with contextlib.suppress(StoreCorruptError):
                await context.step("later", later)

        async def break_it() -> None:
            unreadable.is_broken = True
            await emit_event(store, "run", "approved", "yes")

        waiting = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        await context.step("work", break_it)
        await waiting
        return "outlived"

    with pytest.raises(StoreCorruptError):
        await within(run(unreadable, task))
    assert later.calls == 0
    assert await is_in(store, "running")


async def test_a_store_that_stays_away_ends_the_call_and_not_the_run(store: RunStore) -> None:
    trouble = Trouble()
    swallowed = Body()

    async def task(context: DurableContext) -> None:
        try:
            await context.await_event("approved", timeout_ms=None)
        except StoreUnavailableError:
            swallowed()

    waiting = asyncio.create_task(run(TroubledStore(store, trouble), task, lease_ms=200))
    await until(lambda: is_in(store, "waiting"))
    trouble.is_down = True
    await emit_event(store, "run", "approved", "yes")
    with pytest.raises(StoreUnavailableError):
        await within(waiting)
    assert swallowed.calls == 1
    assert await is_in(store, "waiting")
