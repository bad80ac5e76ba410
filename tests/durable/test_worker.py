"""A worker finds whatever nobody works on, and brings it to its end."""

from __future__ import annotations

import asyncio
import gc

import pytest

from perdure.core.changes import BeginStep, CompleteStep, Release
from perdure.durable import worker as workers
from perdure.durable.context import DurableContext
from perdure.durable.lease import keep_leases
from perdure.durable.worker import Worker
from perdure.errors import RunInputMismatchError, UsageError
from perdure.store.protocol import RunStore
from perdure.testing.samples import delivery, finish, hold, manifest
from tests.durable.handles import (
    MANIFEST,
    Body,
    Broken,
    Handles,
    Hanging,
    attempts_of,
    is_in,
    read,
    steps_of,
    until,
    within,
)
from tests.durable.workshop import Engine, one_step, submit, working


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
