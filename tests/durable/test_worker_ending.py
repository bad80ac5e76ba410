"""A worker that is drained, cancelled or cut off from its store loses nothing."""

from __future__ import annotations

import asyncio

import pytest

from perdure.durable.context import DurableContext
from perdure.durable.worker import Worker
from perdure.errors import StoreUnavailableError, UsageError
from perdure.store.protocol import RunStore
from tests.durable.handles import (
    Body,
    Handles,
    Hanging,
    Trouble,
    TroubledStore,
    is_in,
    read,
    until,
    within,
)
from tests.durable.workshop import one_step, submit, working


async def test_a_drain_lets_jobs_finish_and_run_returns_only_then(store: RunStore) -> None:
    task = Hanging()
    worker = Worker(store, tasks={"task": task})
    running = asyncio.create_task(worker.run())
    await submit(store)
    await within(task.begun.wait())
    draining = asyncio.create_task(worker.drain())
    await asyncio.sleep(0.02)
    await submit(store, "later")
    await asyncio.sleep(0.02)
    assert not running.done()
    task.go_on.set()
    await within(asyncio.gather(draining, running))
    assert (await read(store)).state == "completed"
    assert (await read(store, "later")).state == "queued"


async def test_a_drain_gives_back_what_does_not_finish_in_time(store: RunStore) -> None:
    task = Hanging()
    worker = Worker(store, tasks={"task": task})
    running = asyncio.create_task(worker.run())
    await submit(store)
    await within(task.begun.wait())
    await within(worker.drain(timeout_ms=10))
    await within(running)
    found = await read(store)
    assert (found.state, found.lease_holder_id, found.strikes) == ("running", None, 0)
    assert task.interrupted
    task.go_on.set()
    async with working(store, {"task": task}):
        await until(lambda: is_in(store, "completed"))
    assert task.first.calls == 1


async def test_a_cancelled_worker_gives_everything_back(store: RunStore) -> None:
    tasks = [Hanging() for _ in range(3)]

    async def task(context: DurableContext) -> object:
        return await tasks[int(context.run_id)](context)

    async with working(store, {"task": task}):
        for number, hanging in enumerate(tasks):
            await submit(store, str(number))
            await within(hanging.begun.wait())
    for number in range(3):
        found = await read(store, str(number))
        assert (found.state, found.lease_holder_id) == ("running", None)


async def test_a_worker_that_is_cancelled_while_it_claims_loses_no_claim(store: RunStore) -> None:
    class Slow(Trouble):
        async def write(self, name, call):  # as in Trouble
            answer = await super().write(name, call)
            if name == "claim_due" and answer:
                claimed.set()
                await go_on.wait()
            return answer

    claimed, go_on = asyncio.Event(), asyncio.Event()
    await submit(store)
    worker = Worker(TroubledStore(store, Slow()), tasks={"task": one_step})
    running = asyncio.create_task(worker.run())
    await within(claimed.wait())
    running.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await within(running)
    found = await read(store)
    assert (found.lease_holder_id, found.strikes) == (None, 0)


async def test_a_loop_that_shuts_down_gives_leases_back(handles: Handles) -> None:
    task = Hanging()

    def elsewhere() -> None:
        asyncio.run(main())

    async def main() -> None:
        store = await handles.open_alone()
        await submit(store)
        worker = Worker(store, tasks={"task": task})
        keep.append(asyncio.ensure_future(worker.run()))
        await task.begun.wait()
        # Whoever returns from `main` now has every asyncio task cancelled at once.

    keep: list[object] = []
    await asyncio.to_thread(elsewhere)
    found = await read(await handles.open())
    assert (found.state, found.lease_holder_id, found.strikes) == ("running", None, 0)


async def test_a_worker_runs_once_and_a_drained_one_returns_at_once(store: RunStore) -> None:
    worker = Worker(store, tasks={"task": one_step})
    running = asyncio.create_task(worker.run())
    await asyncio.sleep(0)
    with pytest.raises(UsageError, match="running already"):
        await worker.run()
    await worker.drain()
    await within(running)
    await within(worker.run())


@pytest.mark.parametrize("concurrency_max", [0, -1])
async def test_a_worker_needs_room(store: RunStore, concurrency_max: int) -> None:
    with pytest.raises(UsageError, match="concurrency_max"):
        Worker(store, concurrency_max=concurrency_max)


async def test_an_outage_does_not_stop_the_worker(store: RunStore) -> None:
    trouble = Trouble()
    async with working(TroubledStore(store, trouble), {"task": one_step}):
        await submit(store)
        await until(lambda: is_in(store, "completed"))
        trouble.is_down = True
        await submit(store, "during")
        await until(lambda: trouble.failures >= 2)
        trouble.is_down = False
        await until(lambda: is_in(store, "completed", "during"))


async def test_an_outage_is_not_answered_with_a_storm(store: RunStore) -> None:
    trouble = Trouble()
    trouble.is_down = True
    async with working(TroubledStore(store, trouble), {"task": one_step}):
        await asyncio.sleep(0.3)
    assert 1 <= trouble.failures < 10


async def test_an_idle_worker_asks_seldom(store: RunStore) -> None:
    trouble = Trouble()
    async with working(TroubledStore(store, trouble), {"task": one_step}):
        await submit(store)
        await until(lambda: is_in(store, "completed"))
        await asyncio.sleep(0.1)
        before = trouble.calls.count("claim_due")
        await asyncio.sleep(0.4)
    assert trouble.calls.count("claim_due") - before <= 2


async def test_a_drain_does_not_wait_for_the_end_of_an_outage(store: RunStore) -> None:
    trouble = Trouble()
    trouble.is_down = True
    worker = Worker(TroubledStore(store, trouble), tasks={"task": one_step})
    running = asyncio.create_task(worker.run())
    await until(lambda: trouble.failures)
    await within(worker.drain(), 2)
    await within(running, 2)


async def test_a_run_that_met_a_broken_store_is_left_alone_for_a_while(store: RunStore) -> None:
    body = Body()

    async def task(context: DurableContext) -> None:
        body()
        raise StoreUnavailableError("only this task's store")

    async with working(store, {"task": task}):
        await submit(store)
        await until(lambda: is_in(store, "sleeping"))
        await asyncio.sleep(0.2)
    found = await read(store)
    assert (body.calls, found.reason, found.strikes) == (1, "store", 0)
