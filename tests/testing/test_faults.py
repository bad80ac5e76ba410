"""`crash_everywhere` kills at every write, and tells a careful scenario from a careless one."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path

import pytest

from perdure.core.changes import BeginStep, CompleteStep, EndRun
from perdure.core.records import AgentTaskSpec, JsonValue, RunManifest, SessionKey
from perdure.errors import LeaseHeldError, LeaseLostError, RunStoppedError, StoreUnavailableError
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore, ThreadRenewal
from perdure.testing.clock import ManualClock
from perdure.testing.crashing import Process, crashing
from perdure.testing.faults import Crash, crash_everywhere
from perdure.testing.lab import StoreLab

MANIFEST = RunManifest(project_id="lab", task=AgentTaskSpec(id="sum", intent="Add up"))


def new_lab() -> StoreLab:
    data = MemoryData()

    async def open_handle(clock: ManualClock, code_version: str | None) -> RunStore:
        return MemoryStore(data, clock=clock, code_version=code_version)

    return StoreLab(open_handle)


def done(position: int, result: JsonValue) -> CompleteStep:
    return CompleteStep(position, f"add-{position}", json.dumps(result))


async def add_up(store: RunStore) -> JsonValue:
    """Three steps, each the sum of those before it and one; what is recorded is not done again."""
    claim = await store.start_or_resume("run", MANIFEST, worker_id="ann")
    results = [step.result for step in claim.steps if step.status == "completed"]
    if claim.lease is None:
        return results
    for position in range(len(results), 3):
        results.append(sum(results) + 1)
        await store.write(claim.lease, BeginStep(position, f"add-{position}"))
        await store.write(claim.lease, done(position, results[-1]))
    await store.write(claim.lease, EndRun("completed"))
    return results


async def test_a_careful_scenario_survives_every_crash() -> None:
    report = await crash_everywhere(add_up, new_lab)
    assert report.outcome == [1, 2, 4]
    assert report.calls == ("start_or_resume", *["write"] * 7)
    assert [(point.call, point.when) for point in report.points] == [
        (call, when) for call in range(1, 9) for when in ("before", "after")
    ]
    assert {point.name for point in report.points} == {"start_or_resume", "write"}
    assert all(point.attempts == 2 and point.outcome == [1, 2, 4] for point in report.points)


async def test_a_scenario_survives_on_a_store_that_writes_from_a_thread(tmp_path: Path) -> None:
    databases = (tmp_path / f"{number}.db" for number in itertools.count())

    def new_file_lab() -> StoreLab:
        url = f"sqlite:{next(databases)}"

        async def open_handle(clock: ManualClock, code_version: str | None) -> RunStore:
            return await open_store(url, clock=clock, code_version=code_version)

        return StoreLab(open_handle)

    report = await crash_everywhere(add_up, new_file_lab)
    assert [point.outcome for point in report.points] == [[1, 2, 4]] * 16


async def test_a_scenario_that_does_not_read_its_history_is_found_out() -> None:
    async def count_attempts(store: RunStore) -> int:
        claim = await store.start_or_resume("run", MANIFEST, worker_id="ann")
        if claim.lease is not None:
            await store.write(claim.lease, done(0, None))
        return claim.run.epoch

    with pytest.raises(AssertionError, match=r"the outcome is 2, not 1") as caught:
        await crash_everywhere(count_attempts, new_lab)
    assert caught.value.__notes__ == ["crash after call 1 of 2, start_or_resume"]


async def test_the_caller_may_say_what_a_same_outcome_is() -> None:
    outcomes: list[int] = []

    async def count_calls(store: RunStore) -> int:
        outcomes.append(len(outcomes))
        await store.enqueue("run", MANIFEST, handler="h")
        return outcomes[-1]

    report = await crash_everywhere(count_calls, new_lab, is_same=lambda mine, first: mine > first)
    assert [point.outcome for point in report.points] == [2, 4]


async def test_an_error_of_the_scenario_names_the_crash_that_led_to_it() -> None:
    async def give_up(store: RunStore) -> None:
        run = await store.read_run("run")
        if run is not None:
            raise RunStoppedError("it was there")
        await store.enqueue("run", MANIFEST, handler="h")

    with pytest.raises(RunStoppedError) as caught:
        await crash_everywhere(give_up, new_lab)
    assert caught.value.__notes__ == ["crash after call 1 of 1, enqueue"]


async def test_a_retryable_error_costs_one_more_attempt() -> None:
    report = await crash_everywhere(add_up, new_lab, downtime_ms=8_000)
    first, second = report.points[:2]
    assert (first.name, first.when, first.attempts) == ("start_or_resume", "before", 2)
    assert (second.name, second.when, second.attempts) == ("start_or_resume", "after", 3)


async def test_a_scenario_that_never_gets_through_is_given_up() -> None:
    with pytest.raises(AssertionError, match="20 attempts did not get through") as caught:
        await crash_everywhere(add_up, new_lab, downtime_ms=1)
    assert isinstance(caught.value.__cause__, LeaseHeldError)


async def test_what_a_dead_process_goes_on_doing_reaches_nothing() -> None:
    late: list[BaseException] = []

    async def with_a_companion(store: RunStore) -> list[str]:
        if await store.read_run("run") is not None:
            return [run.run_id for run in await store.list_runs()]
        companion = asyncio.ensure_future(write_at_the_end(store))
        await store.enqueue("run", MANIFEST, handler="h")
        companion.cancel()
        await asyncio.wait([companion])
        return ["run"]

    async def write_at_the_end(store: RunStore) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            try:
                await store.for_tenant("").enqueue("late", MANIFEST, handler="h")
            except BaseException as error:
                late.append(error)
                raise

    def same(mine: object, _first: object) -> bool:
        return mine == ["run"]

    await crash_everywhere(with_a_companion, new_lab, is_same=same)
    assert late
    assert {type(error) for error in late} == {Crash}


async def test_a_scenario_that_waits_for_a_dead_task_is_ended_with_it() -> None:
    async def wait_for_worker(store: RunStore) -> str:
        done = asyncio.Event()

        async def work() -> None:
            await add_up(store)
            done.set()

        worker = asyncio.ensure_future(work())
        await done.wait()
        await worker
        return "done"

    report = await crash_everywhere(wait_for_worker, new_lab)
    assert len(report.points) == 16


async def test_a_crash_cannot_be_held_up() -> None:
    async def stubborn(store: RunStore) -> str:
        for _ in range(3):
            try:
                await store.enqueue("run", MANIFEST, handler="h")
            except BaseException:
                continue
            return "done"
        return "gave up"

    report = await crash_everywhere(stubborn, new_lab)
    assert [point.outcome for point in report.points] == ["done", "done"]


async def test_a_reply_that_was_lost_leaves_its_write() -> None:
    async with new_lab() as lab:
        store = crashing(await lab.open(), Process(1, "after"))
        claim = await store.start_or_resume("run", MANIFEST, worker_id="ann")
        assert claim.lease is not None
        with pytest.raises(Crash, match="after write"):
            await store.write(claim.lease, done(0, 1))
        with pytest.raises(Crash, match="dead"):
            await store.read_steps("run")
        with pytest.raises(Crash, match="dead"):
            await store.close()
        assert [step.result for step in await (await lab.open()).read_steps("run")] == [1]


async def test_a_write_that_was_cut_off_leaves_nothing() -> None:
    async with new_lab() as lab:
        store = crashing(await lab.open(), Process(0, "before"))
        with pytest.raises(Crash, match="before start_or_resume"):
            await store.start_or_resume("run", MANIFEST, worker_id="ann")
        assert await (await lab.open()).read_run("run") is None


async def test_a_lease_that_is_lost_is_still_lost_through_the_crashing_store() -> None:
    async with new_lab() as lab:
        process = Process()
        store = crashing(await lab.open(), process)
        claim = await store.start_or_resume("run", MANIFEST, worker_id="ann")
        assert claim.lease is not None
        await store.write(claim.lease, EndRun("failed"))
        with pytest.raises(LeaseLostError):
            await store.write(claim.lease, done(0, 1))
        assert process.calls == ["start_or_resume", "write", "write"]


async def test_reads_and_views_belong_to_the_same_process() -> None:
    async with new_lab() as lab:
        process = Process(2, "before")
        inner = await lab.open()
        store = crashing(inner, process)
        view = store.for_tenant("acme")
        assert (view.tenant, view.handle) == ("acme", inner.handle)
        await view.enqueue("run", MANIFEST, handler="h", session=SessionKey("s", 0))
        await store.enqueue("run", MANIFEST, handler="h")
        assert [run.tenant for run in await view.list_runs()] == ["acme"]
        assert await store.load_event("run", "go") is None
        with pytest.raises(Crash):
            await view.emit_event("run", "go", 1)
        with pytest.raises(Crash):
            await store.list_runs()


async def test_a_thread_renews_until_its_process_is_dead() -> None:
    async with new_lab() as lab:
        process = Process(1, "before")
        store = crashing(await lab.open(), process)
        claim = await store.start_or_resume("run", MANIFEST, worker_id="ann")
        assert claim.lease is not None
        assert isinstance(store, ThreadRenewal)
        renewer = store.open_renewer()
        assert renewer.renew([claim.lease], 1_000) == {claim.lease: False}
        with pytest.raises(Crash):
            await store.request_stop("run")
        with pytest.raises(StoreUnavailableError):
            renewer.renew([claim.lease], 1_000)
        renewer.close()
