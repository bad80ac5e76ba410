"""Workers and schedules in real time: who fires, and how soon."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from perdure.core.effects import epoch_ms, system_clock
from perdure.durable.context import DurableContext
from perdure.durable.schedules import TaskSchedules
from perdure.durable.worker import SWEEP_MS, Worker
from perdure.errors import UsageError
from perdure.store.protocol import RunStore
from perdure.testing.crashing import CrashingStore, Process
from tests.durable.handles import MANIFEST, Handles, is_in, read, run, until, within
from tests.durable.workshop import one_step, working


async def test_two_workers_run_each_due_time_once(handles: Handles) -> None:
    ran: Counter[str] = Counter()

    async def beat(context: DurableContext) -> str:
        due_at: str = context.input["due_at"]
        assert context.run_id == f"schedule:beat:{due_at}"
        await context.step("count", lambda: ran.update([due_at]))
        return due_at

    stores = [await handles.open(clock=system_clock) for _ in range(2)]
    async with (
        working(stores[0], {"beat": beat}) as one,
        working(stores[1], {"beat": beat}) as other,
    ):
        for worker in (one, other):
            await worker.schedule("beat", task="beat", every_ms=100, catch_up="all")
        await until(lambda: len(ran) >= 5)
        await one.schedules.pause("beat")
        fired = {each.run_id.split(":", 2)[2] for each in await stores[0].list_runs()}
        await until(lambda: set(ran) == fired)
    moments = sorted(map(epoch_ms, ran))
    assert set(ran.values()) == {1}
    assert [moment - moments[0] for moment in moments] == [100 * n for n in range(len(moments))]


async def test_a_worker_wakes_at_the_due_time_and_not_at_its_next_sweep(store: RunStore) -> None:
    async with working(store, {"task": one_step}) as worker:
        kept = await worker.schedule("beat", task="task", every_ms=300)
        run_id = f"schedule:beat:{kept.next_due_at}"
        await until(lambda: is_in(store, "completed", run_id))
    late_ms = epoch_ms((await read(store, run_id)).created_at) - epoch_ms(kept.next_due_at)
    assert 0 <= late_ms < SWEEP_MS / 2


async def test_a_schedule_of_another_process_is_noticed(handles: Handles) -> None:
    store, other = [await handles.open(clock=system_clock) for _ in range(2)]
    async with working(store, {"task": one_step}):
        schedules = TaskSchedules(other)
        kept = await schedules.add("beat", task="task", every_ms=200, catch_up="all")
        await until(lambda: is_in(other, "completed", f"schedule:beat:{kept.next_due_at}"))


async def test_a_schedule_is_for_a_task_of_the_worker(store: RunStore) -> None:
    worker = Worker(store, tasks={"task": one_step})
    with pytest.raises(UsageError, match="no task 'other'"):
        await worker.schedule("beat", task="other", every_ms=1_000)
    assert await worker.schedules.list() == []


async def test_a_store_without_schedules_has_workers_all_the_same(store: RunStore) -> None:
    class Bare(CrashingStore):
        schedules: Any = None

    bare = Bare(store, Process())
    async with working(bare, {"task": one_step}) as worker:
        await worker.submit("task", run_id="run", manifest=MANIFEST)
        await until(lambda: is_in(store, "completed"))
        with pytest.raises(UsageError, match="Bare keeps no schedules"):
            await worker.schedule("beat", task="task", every_ms=1_000)


async def test_a_task_reads_the_input_of_its_run(store: RunStore) -> None:
    async def task(context: DurableContext) -> object:
        return dict(context.input)

    assert (await within(run(store, task))).result == dict(MANIFEST.input)
    assert (await within(run(store, task))).result == dict(MANIFEST.input), "replayed"
