"""Steps: the first result is final, a write is whole or nothing, progress forgives crashes."""

from __future__ import annotations

import asyncio
import json

from perdure.core.changes import (
    BeginStep,
    Change,
    CompleteStep,
    FailStep,
    IntendUsage,
    SaveHandle,
    Suspend,
)
from perdure.core.limits import LEASE_MS
from perdure.core.records import JsonValue, StepError, Written
from perdure.errors import DivergenceError, PerdureError, StoreCorruptError
from perdure.testing.lab import StoreLab, case, check, read, refused, same, snapshot, unchanged
from perdure.testing.samples import (
    begun,
    completed,
    delivery,
    ended,
    failed,
    hold,
    restart_row,
    row,
)


@case
async def a_begun_step_is_seen_running(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    lab.clock.advance(7)
    change = BeginStep(2, "call", kind="llm", input_hash="h1", tries=1, effect="at_most_once")
    same(list((await store.write(lease, change)).steps), [], "the answer to a begin")
    [step] = await store.read_steps("run")
    same((step.run_id, step.step_index, step.intent), ("run", 2, "call"), "the step")
    same((step.kind, step.input_hash, step.effect), ("llm", "h1", "at_most_once"), "its labels")
    same((step.status, step.attempts, step.epoch), ("running", 1, 1), "its standing")
    same((step.started_at, step.completed_at), (lab.clock.iso(), None), "its moments")
    same((await read(store, "run")).step_count, 3, "the step count of the run")


@case
async def a_completed_step_keeps_its_result_and_its_labels(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.write(lease, BeginStep(0, "call", kind="tool", input_hash="h", effect="pure"))
    started_at = lab.clock.iso()
    lab.clock.advance(30)
    result: JsonValue = {"list": [1, 2.5, None, True], "text": "née", "deep": {"a": {"b": []}}}
    change = CompleteStep(
        0, "call", json.dumps(result), kind="tool", input_hash="h", effect="pure", frames_to=4
    )
    [answer] = (await store.write(lease, change)).steps
    [step] = await store.read_steps("run")
    same(answer, step, "the record in the answer, as it is read")
    same((step.status, step.result, step.error), ("completed", result, None), "the step")
    same((step.kind, step.input_hash, step.effect), ("tool", "h", "pure"), "its labels")
    same((step.started_at, step.completed_at), (started_at, lab.clock.iso()), "its moments")
    same(step.frames_to, 4, "the last seq that belongs to it")


@case
async def a_step_may_be_completed_without_a_begin_of_its_own(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    started_at = lab.clock.iso()
    lab.clock.advance(12)
    change = CompleteStep(1, "lazy", "5", kind="logic", tries=2, started_at=started_at)
    await store.write(lease, change)
    [step] = await store.read_steps("run")
    same((step.status, step.result, step.attempts), ("completed", 5, 2), "the step")
    same((step.started_at, step.completed_at), (started_at, lab.clock.iso()), "its moments")
    same((await read(store, "run")).step_count, 2, "the step count")


@case
async def a_step_may_fail_without_a_begin_of_its_own(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    error = json.dumps({"message": "It broke", "code": "E1", "type": "OSError", "stack": "at 3"})
    [answer] = (await store.write(lease, FailStep(0, "lazy", error, tries=3))).steps
    [step] = await store.read_steps("run")
    same(answer, step, "the record in the answer, as it is read")
    expected = StepError("It broke", "E1", "at 3", "OSError")
    same(step.error, expected, "the error")
    same((step.status, step.attempts, step.result), ("failed", 3, None), "the step")
    same(step.completed_at, lab.clock.iso(), "the moment of the failure")


@case
async def a_result_may_be_null(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.write(lease, completed(0, None))
    [step] = await store.read_steps("run")
    same((step.status, step.result), ("completed", None), "a step that returned nothing")


@case
async def the_first_result_of_a_step_is_final(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.write(lease, begun(0), completed(0, "first"))
    before = await store.read_steps("run")
    lab.clock.advance(10)
    attempts: tuple[Change, ...] = (completed(0, "second", tries=2), failed(0, tries=2))
    for change in attempts:
        [winner] = (await store.write(lease, change)).steps
        same(winner, before[0], "what the loser is answered")
    await store.write(lease, begun(0, tries=2))
    same(list(await store.read_steps("run")), list(before), "the completed step")


@case
async def an_error_may_be_kept_beside_a_result(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.write(lease, begun(0), completed(0, "first"), failed(1))
    [before, _] = await store.read_steps("run")
    lab.clock.advance(10)
    late = failed(0, "Too late", tries=2)._replace(beside_result=True)
    [answer] = (await store.write(lease, late)).steps
    kept = before._replace(error=StepError("Too late", "broken"))
    same(answer, kept, "the answer: the result with the error beside it")
    await store.write(lease, begun(0, tries=2), completed(0, "second"), failed(0))
    same((await store.read_steps("run"))[0], kept, "the step behind what else came")
    instead = failed(1, "Once more")._replace(beside_result=True)
    [answer] = (await store.write(lease, instead)).steps
    same((answer.status, answer.error), ("failed", StepError("Once more", "broken")), "no result")


@case
async def a_later_attempt_gets_the_first_result_instead_of_its_own(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    await first.write(await hold(first), completed(0, "first"))
    lab.clock.advance(LEASE_MS)
    lease = await hold(second, worker_id="bob")
    written = await second.write(lease, completed(0, "second"), completed(1, "mine"))
    same([step.result for step in written.steps], ["first", "mine"], "the answers, in order")
    same([step.epoch for step in written.steps], [1, 2], "the attempts that recorded them")


@case
async def one_answer_comes_for_each_result_in_order(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    written = await store.write(
        lease, begun(0), completed(1, "b"), row(1, "x"), failed(0, "no"), completed(2, "c")
    )
    same([step.step_index for step in written.steps], [1, 0, 2], "the answered positions")
    same([step.status for step in written.steps], ["completed", "failed", "completed"], "statuses")
    positions = [step.step_index for step in await store.read_steps("run")]
    same(positions, [0, 1, 2], "the recorded steps by position")


@case
async def a_begin_counts_its_tries_and_starts_anew(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.write(lease, BeginStep(0, "step-0", kind="llm", input_hash="first"))
    lab.clock.advance(50)
    await store.write(lease, BeginStep(0, "step-0", kind="tool", input_hash="second", tries=2))
    [step] = await store.read_steps("run")
    same((step.status, step.attempts), ("running", 2), "the step")
    same(step.started_at, lab.clock.iso(), "the begin of its latest try")
    same((step.kind, step.input_hash), ("llm", "first"), "its labels, which are of the first begin")


@case
async def a_later_attempt_begins_an_open_step_under_its_own_epoch(lab: StoreLab) -> None:
    store = await lab.open()
    await store.write(await hold(store), begun(0))
    lab.clock.advance(LEASE_MS)
    await store.write(await hold(store), begun(0, tries=2))
    [step] = await store.read_steps("run")
    same((step.epoch, step.attempts, step.status), (2, 2, "running"), "the step begun again")


@case
async def a_step_names_the_attempt_that_settled_it(lab: StoreLab) -> None:
    store = await lab.open()
    await store.write(await hold(store), begun(0), begun(1), failed(2))
    lab.clock.advance(LEASE_MS)
    lease = await hold(store)
    await store.write(lease, completed(0), failed(1), completed(2))
    epochs = [step.epoch for step in await store.read_steps("run")]
    same(epochs, [2, 2, 2], "the attempts that settled the steps")


@case
async def a_failed_step_that_is_begun_again_forgets_its_failure(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.write(lease, begun(0), failed(0))
    lab.clock.advance(5)
    await store.write(lease, begun(0, tries=2))
    [step] = await store.read_steps("run")
    same((step.status, step.error, step.completed_at), ("running", None, None), "the step")
    await store.write(lease, failed(0, "Again", tries=2))
    [step] = await store.read_steps("run")
    same(step.error and step.error.message, "Again", "the error of the second try")


@case
async def a_failed_step_that_completes_forgets_its_failure(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.write(lease, failed(0))
    await store.write(lease, completed(0, "at last", tries=2))
    [step] = await store.read_steps("run")
    same((step.status, step.result, step.error), ("completed", "at last", None), "the step")
    same(step.attempts, 2, "its tries")


@case
async def another_step_at_a_recorded_position_is_a_divergence(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.write(lease, completed(0, "done"), failed(1), begun(2))
    lab.clock.advance(10)
    before = await snapshot(store, "run")
    for position in range(3):
        others: tuple[Change, ...] = (
            CompleteStep(position, "other", "1"),
            FailStep(position, "other", '{"message": "no"}'),
        )
        for change in others:
            with refused(DivergenceError):
                await store.write(lease, change)
    for position in (1, 2):
        with refused(DivergenceError):
            await store.write(lease, BeginStep(position, "other"))
    await unchanged(store, "run", before)


async def _is_rolled_back(lab: StoreLab, wrong: Change, kind: type[PerdureError]) -> None:
    """Check that a write of good changes before a wrong one leaves nothing behind."""
    store = await lab.open()
    await hold(store)
    lab.clock.advance(LEASE_MS)
    lease = await hold(store)
    await store.write(lease, begun(0), row(1, "a"))
    lab.clock.advance(10)
    before = await snapshot(store, "run")
    good: tuple[Change, ...] = (
        completed(0, "lost"),
        begun(1),
        failed(2),
        completed(3, "lost"),
        row(2, "b", "c"),
        restart_row(4, "d"),
        SaveHandle('{"call": 1}'),
        IntendUsage(0),
        delivery(0),
    )
    with refused(kind):
        await store.write(lease, *good, wrong)
    await unchanged(store, "run", before)
    with refused(kind):
        await store.write(lease, *good, wrong, ended("completed"))
    await unchanged(store, "run", before)
    with refused(kind):
        await store.write(lease, *good, wrong, Suspend("parked"))
    await unchanged(store, "run", before)
    await store.write(lease, *good)


@case
async def a_write_that_diverges_at_its_end_leaves_nothing_behind(lab: StoreLab) -> None:
    await _is_rolled_back(lab, CompleteStep(0, "other", "1"), DivergenceError)


@case
async def a_write_whose_last_frames_leave_a_gap_leaves_nothing_behind(lab: StoreLab) -> None:
    await _is_rolled_back(lab, row(9, "gap"), StoreCorruptError)


@case
async def a_refused_write_spoils_no_other_that_waits_beside_it(lab: StoreLab) -> None:
    store = await lab.open()
    leases = [await hold(store, f"run-{number}") for number in range(6)]
    answers = await asyncio.gather(
        *(
            store.write(lease, completed(0, number), row(9 if number % 2 else 1, "x"))
            for number, lease in enumerate(leases)
        ),
        return_exceptions=True,
    )
    for number, answer in enumerate(answers):
        wanted = StoreCorruptError if number % 2 else Written
        check(isinstance(answer, wanted), f"write {number} was answered with {answer!r}")
        count = len(await store.read_steps(f"run-{number}"))
        same(count, 0 if number % 2 else 1, f"the steps of run {number}")


@case
async def completing_a_step_is_progress_and_forgives_the_crashes(lab: StoreLab) -> None:
    store = await lab.open()
    changes: tuple[tuple[Change, int], ...] = (
        (begun(0), 1),
        (row(1, "a"), 1),
        (failed(0), 1),
        (SaveHandle("1"), 1),
        (IntendUsage(0), 1),
        (delivery(0), 1),
        (completed(1), 0),
    )
    await hold(store)
    lab.clock.advance(LEASE_MS)
    lease = await hold(store)
    for change, strikes in changes:
        await store.write(lease, change)
        same((await read(store, "run")).strikes, strikes, f"the strikes after {change}")


@case
async def ending_a_run_is_progress_and_parking_it_is_none(lab: StoreLab) -> None:
    store = await lab.open()
    for change, strikes in ((ended("completed"), 0), (ended("failed"), 0), (Suspend("parked"), 1)):
        run_id = f"run-{type(change).__name__}-{change.state}"
        await hold(store, run_id)
        lab.clock.advance(LEASE_MS)
        await store.write(await hold(store, run_id), change)
        same((await read(store, run_id)).strikes, strikes, f"the strikes after {change}")


@case
async def an_upstream_handle_is_kept_until_it_is_forgotten(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    handle: JsonValue = {"provider": "p", "id": "r-1", "n": [1, None]}
    await store.write(lease, SaveHandle(json.dumps(handle)))
    same((await read(store, "run")).upstream, handle, "the saved handle")
    await store.write(lease, SaveHandle('"second"'))
    same((await read(store, "run")).upstream, "second", "the handle that replaced it")
    await store.write(lease, SaveHandle(None))
    same((await read(store, "run")).upstream, None, "the forgotten handle")


@case
async def an_end_records_outcome_reason_and_moment(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    lab.clock.advance(40)
    outcome = {"pass": False, "score": 0.25, "notes": "so so", "metadata": {"k": [1]}}
    change = ended("completed")._replace(outcome_text=json.dumps(outcome), reason="limit")
    await store.write(lease, completed(0), change)
    run = await read(store, "run")
    same((run.status, run.state, run.reason), ("completed", "completed", "limit"), "the run")
    check(run.outcome is not None, "the outcome should be stored")
    same(run.outcome and tuple(run.outcome), (False, 0.25, "so so", {"k": [1]}), "the outcome")
    same((run.lease_holder_id, run.lease_expires_at), (None, None), "the lease")
    same((run.completed_at, run.updated_at), (lab.clock.iso(), lab.clock.iso()), "the moments")


@case
async def a_stopped_run_counts_as_completed_and_a_failed_one_does_not(lab: StoreLab) -> None:
    store = await lab.open()
    for state, status in (("stopped", "completed"), ("failed", "failed")):
        await store.write(await hold(store, state), ended(state))
        run = await read(store, state)
        same((run.status, run.state), (status, state), f"a {state} run")


@case
async def an_end_without_an_outcome_clears_an_earlier_one(lab: StoreLab) -> None:
    store = await lab.open()
    first = ended("failed")._replace(outcome_text='{"pass": false}')
    await store.write(await hold(store), first)
    check((await read(store, "run")).outcome is not None, "the outcome should be stored")
    await store.write(await hold(store, retry=True), ended("failed"))
    same((await read(store, "run")).outcome, None, "the outcome")
