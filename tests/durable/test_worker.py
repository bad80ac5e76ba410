"""A worker goes on with whatever nobody works on, once, and gives back what it cannot finish."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from perdure.core.changes import BeginStep, CompleteStep, Release
from perdure.core.records import Claim, DeliveryRecord
from perdure.durable import worker as workers
from perdure.durable.context import DurableContext
from perdure.durable.lease import keep_leases
from perdure.durable.runner import emit_event
from perdure.durable.worker import Worker
from perdure.errors import LeaseHeldError, RunInputMismatchError, StoreUnavailableError, UsageError
from perdure.store.protocol import RunStore
from perdure.testing.samples import delivery, finish, hold, manifest
from tests.durable.handles import (
    MANIFEST,
    Body,
    Broken,
    Handles,
    Hanging,
    Trouble,
    TroubledStore,
    attempts_of,
    is_in,
    read,
    run,
    steps_of,
    until,
    within,
)

Tasks = Mapping[str, Callable[[DurableContext], Awaitable[Any]]]


@asynccontextmanager
async def working(store: RunStore, tasks: Tasks, **options: Any) -> AsyncIterator[Worker]:
    """Run a worker as long as the block lasts."""
    worker = Worker(store, tasks=tasks, **options)
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def one_step(context: DurableContext) -> int:
    return await context.step("work", lambda: 7)


async def submit(store: RunStore, run_id: str = "run", task: str = "task") -> None:
    await store.enqueue(run_id, MANIFEST, handler=task)


# What it finds.


async def test_a_submitted_run_is_done(store: RunStore) -> None:
    async with working(store, {"task": one_step}) as worker:
        queued = await worker.submit("task", run_id="run", manifest=MANIFEST)
        assert (queued.state, queued.handler) == ("queued", "task")
        await until(lambda: is_in(store, "completed"))
    assert [step.result for step in await steps_of(store)] == [7]


async def test_submitting_twice_changes_nothing_and_another_manifest_is_refused(
    store: RunStore,
) -> None:
    worker = Worker(store, tasks={"task": one_step})
    first = await worker.submit("task", run_id="run", manifest=MANIFEST)
    assert await worker.submit("task", run_id="run", manifest=MANIFEST) == first
    with pytest.raises(RunInputMismatchError):
        await worker.submit("task", run_id="run", manifest=manifest("another"))


async def test_an_unknown_task_is_refused_and_the_known_ones_are_named(store: RunStore) -> None:
    worker = Worker(store, tasks={"count": one_step, "sort": one_step})
    with pytest.raises(UsageError, match=r"'sum' .*known: count, sort"):
        await worker.submit("sum", run_id="run", manifest=MANIFEST)
    with pytest.raises(UsageError, match="known: none"):
        await Worker(store).submit("sum", run_id="run", manifest=MANIFEST)


@pytest.mark.parametrize("how", ["queued", "released", "lapsed"])
async def test_a_run_that_nobody_works_on_is_found(handles: Handles, how: str) -> None:
    store = await handles.open(clock=handles.clock)
    if how == "queued":
        await submit(store)
    else:
        lease = await hold(store, handler="task")
        await store.write(lease, CompleteStep(0, "first", '"recorded"'))
        if how == "released":
            await store.write(lease, Release())
        else:
            handles.clock.advance(60_000)

    async def task(context: DurableContext) -> list[object]:
        return [await context.step("first", lambda: "fresh"), await context.step("more", Body())]

    async with working(store, {"task": task}):
        await until(lambda: is_in(store, "completed"))
    expected = "fresh" if how == "queued" else "recorded"
    assert [step.result for step in await steps_of(store)] == [expected, "done"]
    # A crash costs a strike until there is progress; a drain costs none.
    assert (await read(store)).strikes == 0


async def test_a_lapse_is_noticed_without_any_hint(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "SWEEP_MS", 50)
    await hold(store, handler="task", lease_ms=300)
    async with working(store, {"task": one_step}):
        await until(lambda: is_in(store, "completed"))
    assert [one.ended for one in await attempts_of(store)] == ["lost", "completed"]


async def test_runs_of_every_tenant_are_found(store: RunStore) -> None:
    acme = store.for_tenant("acme")
    await submit(acme)
    async with working(store, {"task": one_step}):
        await until(lambda: is_in(acme, "completed"))
    assert await store.read_run("run") is None


async def test_runs_of_other_handlers_failed_and_parked_ones_are_left_alone(
    store: RunStore,
) -> None:
    await submit(store, "foreign", "foreign")
    await finish(store, "failed", state="failed")
    async with working(store, {"task": one_step, "letters": one_step}):
        await submit(store, "mine")
        await until(lambda: is_in(store, "completed", "mine"))
    assert (await read(store, "foreign")).state == "queued"
    assert (await read(store, "failed")).state == "failed"


# What becomes of a run.


async def test_a_task_that_raises_ends_its_run_as_failed_and_the_worker_goes_on(
    store: RunStore,
) -> None:
    async def task(context: DurableContext) -> None:
        if context.run_id == "bad":
            raise Broken("it broke")

    async with working(store, {"task": task}):
        await submit(store, "bad")
        await submit(store, "good")
        await until(lambda: is_in(store, "failed", "bad"))
        await until(lambda: is_in(store, "completed", "good"))
    outcome = (await read(store, "bad")).outcome
    assert outcome is not None
    assert (outcome.passed, outcome.notes) == (False, "it broke")


async def test_an_error_that_is_no_exception_is_settled_like_any_other(
    store: RunStore, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(BaseException): ...

    async def task(context: DurableContext) -> None:
        raise Odd

    async with working(store, {"task": task}):
        await submit(store)
        await until(lambda: is_in(store, "failed"))
        await asyncio.sleep(0)
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_a_task_that_cancels_itself_is_not_run_for_ever(store: RunStore) -> None:
    body = Body()

    async def task(context: DurableContext) -> None:
        body()
        raise asyncio.CancelledError

    async with working(store, {"task": task}):
        await submit(store)
        await until(lambda: is_in(store, "failed"))
    assert body.calls == 1


async def test_a_divergence_parks_and_is_not_claimed_again(store: RunStore) -> None:
    lease = await hold(store, handler="task")
    await store.write(lease, CompleteStep(0, "other", "1"), Release())
    async with working(store, {"task": one_step}):
        await until(lambda: is_in(store, "parked"))
        await submit(store, "next")
        await until(lambda: is_in(store, "completed", "next"))
    assert len(await attempts_of(store)) == 2


async def test_strikes_park_at_the_limit(handles: Handles) -> None:
    store = await handles.open(clock=handles.clock)
    body = Body()
    for _ in range(3):
        await hold(store, handler="task")
        handles.clock.advance(60_000)

    async def task(context: DurableContext) -> None:
        body()

    async with working(store, {"task": task}, strikes_max=3):
        await until(lambda: is_in(store, "parked"))
    assert body.calls == 0
    assert (await read(store)).reason == "attempts_exhausted"


async def test_a_stop_reaches_the_task(store: RunStore) -> None:
    task = Hanging()
    keep_leases(store, beat_ms=20)
    async with working(store, {"task": task}):
        await submit(store)
        await within(task.begun.wait())
        await store.request_stop("run")
        await until(lambda: is_in(store, "stopped"))
    assert task.interrupted


# Sleeping.


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


# Several workers, and direct calls.


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


async def test_a_direct_call_elsewhere_is_told_that_the_run_is_held(handles: Handles) -> None:
    store, other = await handles.open(), await handles.open()
    task = Hanging()
    async with working(store, {"task": task}):
        await submit(store)
        await within(task.begun.wait())
        with pytest.raises(LeaseHeldError):
            await run(other, task)


# Ending.


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


# Outages.


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


# Engines, and what follows a run.


class Engine:
    """A handler that is no task: it takes claims and deliveries."""

    def __init__(self, store: RunStore, name: str = "letters") -> None:
        self.name = name
        self.claims: list[Claim] = []
        self.made: list[str] = []
        self.go_on = asyncio.Event()
        self._store = store

    async def work(self, claim: Claim) -> int | None:
        assert claim.lease is not None
        self.claims.append(claim)
        if claim.run.run_id == "broken":
            raise Broken("an engine's bug")
        await self._store.write(claim.lease, Release())
        return None

    async def deliver(self, one: DeliveryRecord) -> None:
        if one.run_id == "slow":
            await self.go_on.wait()
        self.made.append(one.run_id)


async def test_deliveries_are_made_for_engines(store: RunStore) -> None:
    engine = Engine(store)
    worker = Worker(store, engines=[engine])
    running = asyncio.create_task(worker.run())
    await finish(store, "run", delivery(0), delivery(1))
    await until(lambda: engine.made == ["run", "run"])
    await within(worker.drain())
    await within(running)


async def test_a_slow_delivery_holds_up_neither_runs_nor_other_deliveries(
    store: RunStore,
) -> None:
    engine = Engine(store)
    async with working(store, {"task": one_step}, engines=[engine]):
        await finish(store, "slow", delivery())
        await asyncio.sleep(0.02)
        await finish(store, "quick", delivery())
        await submit(store)
        await until(lambda: engine.made == ["quick"])
        await until(lambda: is_in(store, "completed"))
        engine.go_on.set()
        await until(lambda: engine.made == ["quick", "slow"])


async def test_a_drain_waits_for_deliveries(store: RunStore) -> None:
    engine = Engine(store)
    worker = Worker(store, engines=[engine])
    running = asyncio.create_task(worker.run())
    await finish(store, "slow", delivery())

    async def is_claimed() -> bool:
        (one,) = (await store.read_details("slow")).deliveries
        return one.tries == 1

    await until(is_claimed)
    draining = asyncio.create_task(worker.drain())
    await asyncio.sleep(0)
    engine.go_on.set()
    await within(asyncio.gather(draining, running))
    assert engine.made == ["slow"]


async def test_a_bug_of_an_engine_does_not_stop_the_worker(store: RunStore) -> None:
    engine = Engine(store)
    async with working(store, {"task": one_step}, engines=[engine]):
        await submit(store, "broken", "letters")
        await until(lambda: bool(engine.claims))
        await submit(store)
        await until(lambda: is_in(store, "completed"))


async def test_two_handlers_of_one_name_are_refused(store: RunStore) -> None:
    with pytest.raises(UsageError, match="two handlers"):
        Worker(store, tasks={"letters": one_step}, engines=[Engine(store)])
    with pytest.raises(UsageError, match="no task 'letters'"):
        await Worker(store, engines=[Engine(store)]).submit(
            "letters", run_id="run", manifest=MANIFEST
        )


async def test_a_step_that_was_cut_off_is_executed_again_by_the_next_worker(
    store: RunStore,
) -> None:
    lease = await hold(store, handler="task")
    await store.write(lease, BeginStep(0, "work"), Release())
    async with working(store, {"task": one_step}):
        await until(lambda: is_in(store, "completed"))
    (step,) = await steps_of(store)
    assert (step.attempts, step.result) == (2, 7)
