"""Workers and direct calls share runs, and none is executed twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import pytest

from perdure.durable.context import DurableContext
from perdure.durable.execution import live_runs
from perdure.durable.runner import emit_event
from perdure.errors import LeaseHeldError
from perdure.store.protocol import RunStore
from tests.durable.handles import (
    MANIFEST,
    Body,
    Handles,
    Hanging,
    Trouble,
    TroubledStore,
    attempts_of,
    is_in,
    run,
    until,
    within,
)
from tests.durable.workshop import one_step, submit, working

T = TypeVar("T")


class SlowSweeps(Trouble):
    """Sweeps whose claims are granted, and answered only when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.claimed, self.go_on = asyncio.Event(), asyncio.Event()
        self.sweep_is_first = False

    async def write(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        if name == "start_or_resume" and self.sweep_is_first:
            await self.claimed.wait()
        answer = await super().write(name, call)
        if name == "claim_due" and answer:
            self.claimed.set()
            await self.go_on.wait()
        return answer


async def test_two_workers_share_without_double_execution(handles: Handles) -> None:
    stores = [await handles.open(), await handles.open()]
    executed: list[str] = []

    async def task(context: DurableContext) -> None:
        run_id = context.run_id

        async def body() -> None:
            executed.append(run_id)
            await asyncio.sleep(0.02)

        await context.step("work", body)

    runs = [f"run {number}" for number in range(60)]
    async with (
        working(stores[0], {"task": task}, concurrency_max=4),
        working(stores[1], {"task": task}, concurrency_max=4),
    ):
        for run_id in runs:
            await submit(stores[0], run_id)

        async def all_done() -> bool:
            done = await stores[0].list_runs(state="completed", limit=100)
            return len(done) == len(runs)

        await until(all_done)
    assert sorted(executed) == sorted(runs)
    holders = {(await attempts_of(stores[0], run_id))[0].holder for run_id in runs}
    assert len(holders) == 2, "both have worked"


async def test_no_more_runs_at_a_time_than_allowed(store: RunStore) -> None:
    now, most = [0], [0]

    async def task(context: DurableContext) -> None:
        now[0] += 1
        most[0] = max(most[0], now[0])
        await asyncio.sleep(0.005)
        now[0] -= 1

    for number in range(12):
        await submit(store, f"run {number}")
    async with working(store, {"task": task}, concurrency_max=3):
        for number in range(12):
            await until(partial(is_in, store, "completed", f"run {number}"))
    assert most == [3]


async def test_a_direct_call_of_a_run_that_the_worker_has_joins_it(store: RunStore) -> None:
    task = Hanging()
    async with working(store, {"task": task}):
        await submit(store)
        await within(task.begun.wait())
        call = asyncio.create_task(run(store, task))
        await asyncio.sleep(0)
        task.go_on.set()
        assert (await within(call)).result == ["first", "second"]
    assert len(await attempts_of(store)) == 1


async def test_a_direct_call_that_joined_goes_on_itself_when_the_run_falls_asleep(
    store: RunStore,
) -> None:
    task = Hanging()

    async def sleepy(context: DurableContext) -> object:
        await task(context)
        return await context.await_event("go", timeout_ms=None)

    async with working(store, {"task": sleepy}):
        await submit(store)
        await within(task.begun.wait())
        call = asyncio.create_task(run(store, sleepy))
        await asyncio.sleep(0)
        task.go_on.set()
        await until(lambda: is_in(store, "waiting"))
        await emit_event(store, "run", "go", "gone")
        assert (await within(call)).result == "gone"


async def test_a_direct_call_right_after_the_submission_gets_the_result(store: RunStore) -> None:
    """Worker and call race for the claim; whoever wins, both see one execution."""
    body = Body()

    async def task(context: DurableContext) -> object:
        return await context.step("work", body)

    async with working(store, {"task": task}) as worker:
        for number in range(20):
            run_id = f"run {number}"
            await worker.submit("task", run_id=run_id, manifest=MANIFEST)
            for _ in range(number % 5):
                await asyncio.sleep(0)
            assert (await within(run(store, task, run_id=run_id))).result == "done"
    assert body.calls == 20


async def test_a_direct_call_waits_for_a_claim_of_its_own_process_that_is_under_way(
    store: RunStore,
) -> None:
    sweeps = SlowSweeps()
    slow = TroubledStore(store, sweeps)
    await submit(store)
    async with working(slow, {"task": one_step}):
        await within(sweeps.claimed.wait())
        call = asyncio.create_task(run(slow, one_step))
        await asyncio.sleep(0.02)  # By now it has been told that the run is held.
        assert not call.done()
        sweeps.go_on.set()
        assert (await within(call)).result == 7
    assert len(await attempts_of(store)) == 1


async def test_a_direct_call_that_slept_joins_a_worker_of_its_process_that_was_faster(
    store: RunStore,
) -> None:
    async def sleepy(context: DurableContext) -> object:
        return await context.await_event("go", timeout_ms=None)

    sweeps = SlowSweeps()
    slow = TroubledStore(store, sweeps)
    await submit(store)
    call = asyncio.create_task(run(slow, sleepy))
    await until(lambda: is_in(store, "waiting"))
    sweeps.sweep_is_first = True
    async with working(slow, {"task": sleepy}):
        await emit_event(store, "run", "go", "gone")
        await within(sweeps.claimed.wait())
        # The call has lost its lease, and knows that a sweep is under way.
        await until(lambda: live_runs.find(slow.handle, "run") is None)
        assert not call.done()
        sweeps.go_on.set()
        assert (await within(call)).result == "gone"
    assert len(await attempts_of(store)) == 2


async def test_a_direct_call_elsewhere_is_told_that_the_run_is_held(handles: Handles) -> None:
    store, other = await handles.open(), await handles.open()
    task = Hanging()
    async with working(store, {"task": task}):
        await submit(store)
        await within(task.begun.wait())
        with pytest.raises(LeaseHeldError):
            await run(other, task)
