"""run_durable: one call claims, replays, executes and settles, and says how it ended."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from perdure.core.changes import CompleteStep, Release
from perdure.core.records import RunOutcome, StepRecord
from perdure.durable.context import DurableContext
from perdure.durable.runner import run_durable
from perdure.errors import (
    DurableRunError,
    LeaseHeldError,
    NotSerializableError,
    RunInputMismatchError,
    StepFailedError,
    StoreUnavailableError,
    UsageError,
)
from perdure.store.protocol import RunStore
from perdure.testing.samples import hold, manifest
from tests.durable.handles import (
    MANIFEST,
    Body,
    Broken,
    Trouble,
    TroubledStore,
    attempts_of,
    is_in,
    leave_behind,
    read,
    run,
    until,
    within,
)


async def test_a_finished_run_has_its_result_its_record_and_its_steps(store: RunStore) -> None:
    async def task(context: DurableContext) -> str:
        await context.step("one", lambda: 1)
        return "result"

    done = await run(store, task, default_outcome=RunOutcome(passed=True, score=0.5, notes="fine"))
    assert done.result == "result"
    assert (done.record.state, done.record.status) == ("completed", "completed")
    assert done.record.outcome == RunOutcome(passed=True, score=0.5, notes="fine")
    assert done.record.lease_holder_id is None
    assert [(step.intent, step.result) for step in done.steps] == [("one", 1)]
    assert [one.ended for one in await attempts_of(store)] == ["completed"]


async def test_what_a_run_held_is_free_when_it_ends_without_a_collection(store: RunStore) -> None:
    class Agent:
        async def work(self, context: DurableContext) -> str:
            return await context.step("one", lambda: "result")

    agent = Agent()
    gone = weakref.ref(agent)
    work = agent.work
    del agent
    gc.disable()
    try:
        done = await run(store, work)
        del work
        assert done.result == "result"
        assert gone() is None
    finally:
        gc.enable()


async def test_a_completed_run_replays_read_only(store: RunStore) -> None:
    body = Body(7)

    async def task(context: DurableContext) -> list[object]:
        emitted = await context.emit_event("key", 1)
        return [await context.step("one", body), await context.now(), emitted]

    trouble = Trouble()
    first = await run(store, task)
    before = await read(store)
    details = await store.read_details("run")
    again = await run(TroubledStore(store, trouble), task)
    assert again.result[:2] == first.result[:2]
    assert (first.result[2], again.result[2]) == (True, False)
    assert (await read(store), await store.read_details("run")) == (before, details)
    assert trouble.calls == ["start_or_resume"]
    assert body.calls == 1


async def test_any_number_of_callers_replay_at_once(store: RunStore) -> None:
    gathered = Body()

    async def task(context: DurableContext) -> object:
        answer = await context.step("one", Body(7))
        gathered()
        await until(lambda: gathered.calls % 8 == 1)
        return answer

    await run(store, task)
    done = await within(asyncio.gather(*(run(store, task) for _ in range(8))))
    assert [one.result for one in done] == [7] * 8


async def test_a_failed_run_did_not_pass_and_keeps_the_default_notes(store: RunStore) -> None:
    async def task(context: DurableContext) -> None:
        raise Broken("it broke")

    default = RunOutcome(passed=True, score=1.0, notes="all well", metadata={"suite": "a"})
    with pytest.raises(Broken):
        await run(store, task, default_outcome=default)
    found = await read(store)
    assert found.state == "failed"
    assert found.outcome == RunOutcome(
        passed=False, notes="it broke", metadata={"suite": "a", "defaultNotes": "all well"}
    )
    (attempt,) = await attempts_of(store)
    assert attempt.error is not None
    assert (attempt.ended, attempt.error.message, attempt.error.code) == (
        "failed",
        "it broke",
        "broken",
    )


@pytest.mark.parametrize(
    ("error", "notes"), [(Broken(), "Broken"), (Broken("x" * 2_000_000), "x" * 1_000)]
)
async def test_the_notes_of_a_failure_are_there_and_short(
    store: RunStore, error: Exception, notes: str
) -> None:
    async def task(context: DurableContext) -> None:
        raise error

    with pytest.raises(Broken):
        await run(store, task)
    outcome = (await read(store)).outcome
    assert outcome is not None
    assert (outcome.notes or "").startswith(notes)
    assert len(outcome.notes or "") < 10_000


async def test_a_failed_run_is_running_while_it_is_retried_and_may_complete(
    store: RunStore,
) -> None:
    body, states = Body(fails=1), list[str]()

    async def task(context: DurableContext) -> object:
        found = await read(store)
        states.append(f"{found.state} {found.completed_at}")
        return body()

    with pytest.raises(Broken):
        await run(store, task)
    done = await run(store, task)
    assert states == ["running None"] * 2
    assert (done.record.state, done.record.outcome) == ("completed", None)


@pytest.mark.parametrize("wrong", [{"metadata": {"a": {1}}}, {"score": "high"}])
async def test_an_outcome_that_cannot_be_stored_is_refused_before_any_work(
    store: RunStore, wrong: dict[str, Any]
) -> None:
    body = Body()

    async def task(context: DurableContext) -> None:
        await context.step("work", body)

    with pytest.raises((UsageError, NotSerializableError)):
        await run(store, task, default_outcome=RunOutcome(**wrong))
    assert body.calls == 0
    assert await store.read_run("run") is None


@pytest.mark.parametrize("run_id", ["", "@acme/run", "a\x00b", 7])
async def test_an_id_that_cannot_be_one_is_refused(store: RunStore, run_id: Any) -> None:
    async def task(context: DurableContext) -> None: ...

    with pytest.raises(UsageError, match="run_id"):
        await run(store, task, run_id=run_id)


async def test_a_lease_without_length_is_refused(store: RunStore) -> None:
    async def task(context: DurableContext) -> None: ...

    with pytest.raises(UsageError, match="lease_ms"):
        await run(store, task, lease_ms=0)


async def test_another_manifest_is_refused_and_changes_nothing(store: RunStore) -> None:
    async def task(context: DurableContext) -> None:
        raise Broken

    with pytest.raises(Broken):
        await run(store, task)
    before = await read(store)
    with pytest.raises(RunInputMismatchError):
        await run_durable(store, run_id="run", manifest=manifest("another"), task=task)
    assert await read(store) == before


async def test_a_task_that_cancels_itself_has_failed(store: RunStore) -> None:
    async def task(context: DurableContext) -> None:
        raise asyncio.CancelledError

    with pytest.raises(DurableRunError, match="cancelled from within"):
        await within(run(store, task))
    assert await is_in(store, "failed")


async def test_an_error_that_is_no_exception_ends_the_run_too(store: RunStore) -> None:
    class Odd(BaseException): ...

    async def task(context: DurableContext) -> None:
        raise Odd

    with pytest.raises(Odd):
        await within(run(store, task))
    assert await is_in(store, "failed")


async def test_the_recorded_steps_are_all_reported(store: RunStore) -> None:
    async def task(context: DurableContext) -> None:
        await context.step("one", lambda: 1)

    await leave_behind(store, CompleteStep(0, "one", "1"), CompleteStep(1, "beyond", "2"))
    done = await run(store, task)
    assert [step.intent for step in done.steps] == ["one", "beyond"]
    assert all(isinstance(step, StepRecord) for step in done.steps)


async def test_a_store_that_dies_at_the_end_leaves_the_run_to_be_completed(
    store: RunStore,
) -> None:
    trouble, body = Trouble(), Body()

    async def task(context: DurableContext) -> object:
        answer = await context.step("work", body)
        trouble.is_down = True
        return answer

    with pytest.raises(Exception, match="away"):
        await within(run(TroubledStore(store, trouble), task, lease_ms=600))
    trouble.is_down = False
    assert await is_in(store, "running")
    await until(lambda: _is_free(store))
    done = await run(store, lambda context: context.step("work", body))
    assert (done.result, body.calls) == ("done", 1)


async def test_a_store_that_dies_does_not_hide_why_the_task_failed(store: RunStore) -> None:
    trouble = Trouble()

    async def task(context: DurableContext) -> None:
        trouble.is_down = True
        raise Broken("the real trouble")

    with pytest.raises(StoreUnavailableError) as away:
        await within(run(TroubledStore(store, trouble), task, lease_ms=600))
    assert isinstance(away.value.__cause__, Broken)
    assert await is_in(store, "running")


async def _is_free(store: RunStore) -> bool:
    try:
        lease = await hold(store, handler=None)
    except LeaseHeldError:
        return False
    await store.write(lease, Release())
    return True


async def test_the_manifest_that_was_given_is_the_one_that_is_stored(store: RunStore) -> None:
    done = await run(store, lambda context: context.step("work", lambda: 1))
    assert done.record.manifest == MANIFEST


async def test_a_replayed_failure_of_a_completed_run_is_raised(store: RunStore) -> None:
    async def lenient(context: DurableContext) -> str:
        try:
            await context.step("work", Body(fails=1))
        except StepFailedError:
            return "well"
        return "better"

    async def strict(context: DurableContext) -> object:
        return await context.step("work", Body())

    await run(store, lenient)
    with pytest.raises(StepFailedError, match="it broke"):
        await run(store, strict)
    assert await is_in(store, "completed")


@pytest.mark.parametrize("lease_ms", [0, -1, 10**15, 0.5, True, "5"])
async def test_a_lease_that_is_no_length_is_refused_before_anything_is_recorded(
    store: RunStore, lease_ms: Any
) -> None:
    async def task(ctx: DurableContext) -> None:
        raise AssertionError("it was not to run")

    with pytest.raises(UsageError, match="lease_ms"):
        await run_durable(store, run_id="r", manifest=MANIFEST, task=task, lease_ms=lease_ms)
    assert await store.read_run("r") is None
