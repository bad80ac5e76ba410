"""A run that sleeps or waits holds no worker, and is woken when it is time."""

from __future__ import annotations

import asyncio
import time

import pytest

from perdure.durable.context import DurableContext
from perdure.durable.runner import emit_event
from perdure.store.protocol import RunStore
from perdure.testing.samples import finish
from tests.durable.handles import (
    MANIFEST,
    Body,
    Handles,
    attempts_of,
    is_in,
    read,
    steps_of,
    until,
)
from tests.durable.workshop import submit, working


async def test_a_sleeping_run_holds_nobody_and_wakes_by_itself(store: RunStore) -> None:
    entries = Body()

    async def task(context: DurableContext) -> float:
        entries()
        await context.step("before", lambda: 1)
        await context.sleep(200)
        return await context.step("after", lambda: 2)

    async with working(store, {"task": task}, concurrency_max=1) as worker:
        await submit(store)
        await until(lambda: is_in(store, "sleeping"))
        begun = time.monotonic()
        await worker.submit("task", run_id="other", manifest=MANIFEST)
        await until(lambda: is_in(store, "sleeping", "other"))
        await until(lambda: is_in(store, "completed"))
        assert time.monotonic() - begun < 1.5, "it must wake by itself, not by the next sweep"
        await until(lambda: is_in(store, "completed", "other"))
    assert entries.calls == 4
    assert (await read(store)).strikes == 0
    assert [one.ended for one in await attempts_of(store)] == ["sleeping", "completed"]


async def approved(context: DurableContext) -> object:
    return await context.await_event("approved", timeout_ms=None)


@pytest.mark.parametrize("same_handle", [True, False])
async def test_an_emit_wakes_a_worker_quickly(handles: Handles, same_handle: bool) -> None:
    store = await handles.open()
    outside = store if same_handle else await handles.open()
    async with working(store, {"task": approved}):
        await submit(store)
        await until(lambda: is_in(outside, "waiting"))
        begun = time.monotonic()
        await emit_event(outside, "run", "approved", "yes")
        await until(lambda: is_in(outside, "completed"))
    assert time.monotonic() - begun < 1.0
    assert [step.result for step in await steps_of(store)] == ["yes"]


async def test_an_event_that_comes_first_costs_no_wait(store: RunStore) -> None:
    await submit(store)
    await emit_event(store, "run", "approved", "yes")
    async with working(store, {"task": approved}):
        await until(lambda: is_in(store, "completed"))
    assert len(await attempts_of(store)) == 1


async def test_a_swallowed_suspension_cannot_be_outlived(store: RunStore) -> None:
    later = Body()

    async def task(context: DurableContext) -> str:
        try:
            await context.await_event("approved", timeout_ms=None)
        except BaseException:
            try:
                await context.step("later", later)
            except BaseException:
                return "outlived"
        return "approved"

    async with working(store, {"task": task}):
        await submit(store)
        await until(lambda: is_in(store, "waiting"))
        await emit_event(store, "run", "approved", "yes")
        await until(lambda: is_in(store, "completed"))
    assert later.calls == 0
    assert [step.intent for step in await steps_of(store)] == ["event:approved"]


async def test_a_suspension_interrupts_what_the_task_does_beside_it(store: RunStore) -> None:
    interrupted = Body()

    async def task(context: DurableContext) -> object:
        waiting = asyncio.ensure_future(approved(context))
        if not await is_in(store, "completed", "other"):
            try:
                await asyncio.Event().wait()
            finally:
                interrupted()
        return await waiting

    async with working(store, {"task": task}):
        await submit(store)
        await until(lambda: is_in(store, "waiting"))
        await until(lambda: interrupted.calls == 1)
        await finish(store, "other")
        await emit_event(store, "run", "approved", "yes")
        await until(lambda: is_in(store, "completed"))


async def test_a_suspension_in_a_group_of_tasks_suspends(store: RunStore) -> None:
    async def task(context: DurableContext) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(_approved(context))

    async def _approved(context: DurableContext) -> None:
        await context.await_event("approved", timeout_ms=None)

    async with working(store, {"task": task}):
        await submit(store)
        await until(lambda: is_in(store, "waiting"))
        await emit_event(store, "run", "approved", "yes")
        await until(lambda: is_in(store, "completed"))


async def test_a_deadline_is_kept_across_workers(handles: Handles) -> None:
    store = await handles.open(clock=handles.clock)

    async def task(context: DurableContext) -> object:
        return await context.await_event("approved", timeout_ms=60_000)

    async with working(store, {"task": task}):
        await submit(store)
        await until(lambda: is_in(store, "waiting"))
    handles.clock.advance(60_000)
    async with working(store, {"task": task}):
        await until(lambda: is_in(store, "failed"))
    (step,) = await steps_of(store)
    assert step.error is not None
    assert step.error.code == "await_event_timeout"
