"""A store that is closed under live runs gives them back, and tells who waits for them."""

from __future__ import annotations

import asyncio

import pytest

from perdure.durable.context import DurableContext
from perdure.durable.worker import Worker
from perdure.errors import LeaseLostError, StoreClosedError
from perdure.store.protocol import RunStore
from tests.durable.doors import Doors
from tests.durable.handles import Handles, Hanging, is_in, read, run, steps_of, until, within
from tests.durable.workshop import one_step, submit, working


async def free(store: RunStore) -> None:
    """See that somebody else may claim the run at once and without a strike."""
    found = await read(store)
    assert (found.state, found.lease_holder_id, found.strikes) == ("running", None, 0)


async def test_closing_the_store_gives_a_run_back(handles: Handles) -> None:
    store, other, task = await handles.open(), await handles.open(), Hanging()
    calls = [asyncio.create_task(run(store, task)) for _ in range(2)]
    await within(task.begun.wait())
    await within(store.close())
    await within(asyncio.wait(calls))
    assert [type(call.exception()) for call in calls] == [StoreClosedError] * 2
    assert task.interrupted
    await free(other)
    assert (await steps_of(other))[0].status == "completed"
    task.go_on.set()
    assert (await within(run(other, task))).result == ["first", "second"]
    assert task.first.calls == 1


async def test_closing_the_store_waits_for_a_claim_that_is_under_way(handles: Handles) -> None:
    store, other, doors = await handles.open(), await handles.open(), Doors()
    call = asyncio.create_task(run(doors.before(store), Hanging()))
    await within(doors.granted.wait())
    close = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    doors.answer.set()
    await within(close)
    with pytest.raises(StoreClosedError):
        await within(call)
    await free(other)


async def test_a_claim_that_is_cancelled_while_the_store_closes_holds_nothing(
    handles: Handles,
) -> None:
    store, other, doors = await handles.open(), await handles.open(), Doors()
    call = asyncio.create_task(run(doors.before(store), Hanging()))
    await within(doors.granted.wait())
    close = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.sleep(0)
    doors.answer.set()
    await within(close)
    await within(asyncio.wait((call,)))
    assert call.cancelled()
    await free(other)


async def test_a_run_that_sleeps_in_place_stays_asleep_when_the_store_closes(
    handles: Handles,
) -> None:
    async def sleeper(context: DurableContext) -> None:
        await context.sleep(60_000)

    store, other = await handles.open(), await handles.open()
    call = asyncio.create_task(run(store, sleeper))
    await until(lambda: is_in(other, "sleeping"))
    await within(store.close())
    with pytest.raises(StoreClosedError):
        await within(call)
    found = await read(other)
    assert (found.state, found.lease_holder_id, found.strikes) == ("sleeping", None, 0)


async def test_a_task_that_closes_its_own_store_does_not_wait_for_itself(
    handles: Handles,
) -> None:
    store, other = await handles.open(), await handles.open()

    async def task(_: DurableContext) -> None:
        await store.close()

    with pytest.raises(StoreClosedError):
        await within(run(store, task))
    await free(other)


async def test_closing_the_store_ends_its_workers(handles: Handles) -> None:
    store, other, task = await handles.open(), await handles.open(), Hanging()
    async with working(store, {"task": task}) as worker:
        await submit(store)
        worker.wake()
        await within(task.begun.wait())
        await within(store.close())
        await free(other)
    task.go_on.set()
    async with working(other, {"task": task}):
        await until(lambda: is_in(other, "completed"))


async def test_a_worker_returns_when_its_store_is_closed(handles: Handles) -> None:
    store = await handles.open()
    running = asyncio.create_task(Worker(store, tasks={"task": one_step}).run())
    await asyncio.sleep(0)
    await within(store.close())
    await within(running)


async def test_a_sweep_that_is_under_way_is_given_back_when_the_store_closes(
    handles: Handles,
) -> None:
    store, other, doors = await handles.open(), await handles.open(), Doors()
    await submit(store)
    async with working(doors.before(store), {"task": Hanging()}):
        await within(doors.granted.wait())
        close = asyncio.create_task(store.close())
        await asyncio.sleep(0)
        doors.answer.set()
        await within(close)
        await free(other)


async def test_a_claim_that_was_answered_after_its_lease_is_not_worked_on(
    handles: Handles,
) -> None:
    store, task = await handles.open(), Hanging()
    with pytest.raises(LeaseLostError):
        await within(run(Doors(late_ms=120).before(store), task, lease_ms=100))
    other = await handles.open()
    await submit(other, "swept")
    async with working(Doors(late_ms=320).before(other), {"task": one_step}, lease_ms=300):
        await until(lambda: is_in(other, "completed", "swept"))
    assert (await read(other, "swept")).epoch > 1
