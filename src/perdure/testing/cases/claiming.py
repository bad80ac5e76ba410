"""Who gets a run: creation, races, takeover, lost replies, retry, and replay as a pure read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from perdure.core.changes import Change, EndRun, Release, SaveHandle, Suspend
from perdure.core.limits import LEASE_MS
from perdure.core.records import AgentTaskSpec, Claim, RunManifest
from perdure.errors import LeaseHeldError
from perdure.store.protocol import RunStore
from perdure.testing.lab import StoreLab, case, check, read, refused, same, snapshot, unchanged
from perdure.testing.samples import begun, completed, ended, finish, hold, manifest, row


async def _race(stores: Sequence[RunStore]) -> list[Claim]:
    """Let every store claim the same run at once; return the claims that were granted."""
    answers = await asyncio.gather(
        *(
            store.start_or_resume("run", manifest(), worker_id=f"worker-{index}")
            for index, store in enumerate(stores)
        ),
        return_exceptions=True,
    )
    claims = [answer for answer in answers if isinstance(answer, Claim)]
    for answer in answers:
        if isinstance(answer, BaseException):
            check(isinstance(answer, LeaseHeldError), f"the loser got {answer!r}")
    return claims


@case
async def a_new_run_is_created_running_under_the_first_epoch(lab: StoreLab) -> None:
    store = await lab.open()
    claim = await store.start_or_resume("run", manifest(), worker_id="ann", lease_ms=9_000)
    if claim.lease is None:
        raise AssertionError("a new run should be leased to its creator")
    same((claim.lease.epoch, claim.lease.worker_id), (1, "ann"), "epoch and holder")
    same(list(claim.steps), [], "the steps of a new run")
    same(claim.next_seq, 1, "the first seq")
    run = claim.run
    same((run.run_id, run.status, run.state), ("run", "running", "running"), "the new run")
    same((run.epoch, run.strikes, run.step_count), (1, 0, 0), "epoch, strikes, step count")
    same(run.created_at, lab.clock.iso(), "created_at")
    same(run.lease_holder_id, "ann", "the holder")
    same(run.lease_expires_at, lab.clock.iso(9_000), "the deadline")
    same(run, await read(store, "run"), "the claimed run, as it is read")


@case
async def a_claim_stores_all_that_a_stranger_needs_to_go_on(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    whole = RunManifest(
        project_id="lab",
        task=AgentTaskSpec(
            id="t",
            intent="Answer",
            domain="letters",
            inputs={"depth": 2},
            required_knowledge=["alphabet"],
            budget={"tokens": 9},
            metadata={"colour": "grün"},
        ),
        input={"list": [1, 2.5, None, True, {"a": "b"}]},
        scenario_id="night",
        tags={"team": "north"},
    )
    await first.start_or_resume("run", whole, worker_id="ann", handler="letters")
    run = await read(second, "run")
    if run.manifest is None:
        raise AssertionError("the manifest should be stored")
    task = run.manifest.task._replace(required_knowledge=list(run.manifest.task.required_knowledge))
    same(run.manifest._replace(task=task), whole, "the stored manifest")
    same((run.project_id, run.scenario_id), ("lab", "night"), "project and scenario")
    same(run.handler, "letters", "the handler")


@case
async def of_two_handles_that_create_a_run_at_once_one_wins(lab: StoreLab) -> None:
    claims = await _race([await lab.open(), await lab.open()])
    same(len(claims), 1, "the number of leases granted")
    same(claims[0].run.epoch, 1, "the winner's epoch")


@case
async def of_many_claims_of_a_new_run_one_wins(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    claims = await _race([first, second] * 8)
    same(len(claims), 1, "the number of leases granted")
    same(len((await first.read_details("run")).attempts), 1, "the number of attempts")


@case
async def of_two_handles_that_take_over_a_lapsed_run_one_wins(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    await hold(first)
    lab.clock.advance(LEASE_MS)
    claims = await _race([first, second])
    same(len(claims), 1, "the number of leases granted")
    same((claims[0].run.epoch, claims[0].run.strikes), (2, 1), "epoch and strikes")


@case
async def a_live_lease_is_held_until_the_millisecond_of_its_deadline(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    await hold(first, lease_ms=10_000)
    lab.clock.advance(9_999)
    before = await snapshot(first, "run")
    with refused(LeaseHeldError):
        await hold(second, worker_id="bob")
    await unchanged(first, "run", before)
    lab.clock.advance(1)
    lease = await hold(second, worker_id="bob")
    same((lease.epoch, lease.worker_id), (2, "bob"), "the lease at the deadline")


@case
async def a_takeover_raises_the_epoch_counts_a_strike_and_sees_the_history(lab: StoreLab) -> None:
    first, second = await lab.open(code_version="v1"), await lab.open(code_version="v2")
    lease = await hold(first)
    await first.write(lease, completed(0, {"x": 1}), row(1, "a", "b"))
    await first.write(lease, begun(1), SaveHandle('{"call": "c9"}'))
    lab.clock.advance(LEASE_MS)
    claim = await second.start_or_resume("run", manifest(), worker_id="bob")
    same((claim.run.epoch, claim.run.strikes), (2, 1), "epoch and strikes")
    same([step.status for step in claim.steps], ["completed", "running"], "the steps")
    same(claim.steps[0].result, {"x": 1}, "the recorded result")
    same(claim.next_seq, 3, "the next seq")
    same(claim.run.upstream, {"call": "c9"}, "the handle of the upstream call")
    same(claim.run.handler, "letters", "the handler, which the claimer did not name")
    attempts = (await first.read_details("run")).attempts
    same([attempt.epoch for attempt in attempts], [1, 2], "the attempts")
    same([attempt.holder for attempt in attempts], ["ann", "bob"], "their holders")
    same([attempt.ended for attempt in attempts], ["lost", None], "how they ended")
    same(attempts[0].ended_at, lab.clock.iso(), "the moment at which the loss was found")
    same([attempt.code_version for attempt in attempts], ["v1", "v2"], "their code versions")


@case
async def every_crash_counts_a_strike(lab: StoreLab) -> None:
    store = await lab.open()
    for strikes in range(4):
        await hold(store, worker_id=f"worker-{strikes}")
        same((await read(store, "run")).strikes, strikes, "strikes")
        lab.clock.advance(LEASE_MS)


@case
async def a_lease_that_was_given_back_counts_no_strike(lab: StoreLab) -> None:
    store = await lab.open()
    gone: tuple[Change, ...] = (
        Release(),
        Suspend("sleeping", wake_in_ms=5),
        Suspend("waiting", wake_key="go"),
    )
    for epoch, change in enumerate(gone, start=1):
        lease = await hold(store)
        same((lease.epoch, (await read(store, "run")).strikes), (epoch, 0), "epoch and strikes")
        await store.write(lease, change)
    await hold(store)
    same((await read(store, "run")).strikes, 0, "strikes")


@case
async def giving_a_lease_back_forgives_no_strike(lab: StoreLab) -> None:
    store = await lab.open()
    await hold(store)
    lab.clock.advance(LEASE_MS)
    for change in (Release(), Suspend("sleeping", wake_in_ms=5), Suspend("waiting")):
        lease = await hold(store)
        same((await read(store, "run")).strikes, 1, "strikes")
        await store.write(lease, change)
    same((await read(store, "run")).strikes, 1, "strikes")


@case
async def the_same_token_twice_is_the_same_claim(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    claims = [
        await store.start_or_resume("run", manifest(), worker_id="ann", token="t-1")
        for store in (first, first, second)
    ]
    lease = claims[0].lease
    check(lease is not None, "the first claim should be granted")
    for claim in claims:
        same(claim.lease, lease, "the lease of a repeated claim")
        same((claim.run.epoch, claim.run.strikes), (1, 0), "epoch and strikes")
    same(len((await first.read_details("run")).attempts), 1, "the number of attempts")
    lab.clock.advance(1_000)
    await second.start_or_resume("run", manifest(), worker_id="ann", token="t-1")
    deadline = (await read(first, "run")).lease_expires_at
    same(deadline, lab.clock.iso(LEASE_MS), "the deadline, from the last repetition on")


@case
async def the_token_of_a_claim_does_not_serve_another_worker(lab: StoreLab) -> None:
    store = await lab.open()
    await store.start_or_resume("run", manifest(), worker_id="ann", token="t-1")
    before = await snapshot(store, "run")
    with refused(LeaseHeldError):
        await store.start_or_resume("run", manifest(), worker_id="bob", token="t-1")
    await unchanged(store, "run", before)
    lab.clock.advance(LEASE_MS)
    claim = await store.start_or_resume("run", manifest(), worker_id="bob", token="t-1")
    same((claim.run.epoch, claim.run.strikes), (2, 1), "epoch and strikes after it lapsed")


@case
async def a_repeated_claim_of_a_run_that_has_ended_is_a_pure_read(lab: StoreLab) -> None:
    store = await lab.open()
    claim = await store.start_or_resume("run", manifest(), worker_id="ann", token="t-1")
    if claim.lease is None:
        raise AssertionError("a new run should be leased to its creator")
    await store.write(claim.lease, ended("completed"))
    before = await snapshot(store, "run")
    again = await store.start_or_resume("run", manifest(), worker_id="ann", token="t-1")
    same(again.lease, None, "the lease on an ended run")
    await unchanged(store, "run", before)


@case
async def a_worker_does_not_own_a_lease_by_its_name(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    await hold(first, worker_id="ann")
    before = await snapshot(first, "run")
    for store in (first, second):
        with refused(LeaseHeldError):
            await hold(store, worker_id="ann")
    await unchanged(first, "run", before)


@case
async def every_claim_has_a_token_of_its_own(lab: StoreLab) -> None:
    store = await lab.open()
    tokens = {(await hold(store, f"run-{number}")).token for number in range(20)}
    same(len(tokens), 20, "the number of different tokens")
    check(all(len(token) >= 16 for token in tokens), f"tokens should be hard to guess: {tokens}")


@case
async def a_finished_run_is_replayed_by_any_number_of_callers_without_a_write(
    lab: StoreLab,
) -> None:
    first, second = await lab.open(), await lab.open()
    await finish(first, "run", completed(0, "answer"), row(1, "an", "swer"))
    before = await snapshot(first, "run")
    lab.clock.advance(LEASE_MS * 5)
    for retry in (False, True):
        claims = await asyncio.gather(
            *(
                store.start_or_resume("run", manifest(), worker_id=f"w{number}", retry=retry)
                for store in (first, second)
                for number in range(10)
            )
        )
        for claim in claims:
            same(claim.lease, None, "the lease of a replay")
            same(claim.run, before.run, "the replayed run")
            same(list(claim.steps), list(before.steps), "the replayed steps")
            same(claim.next_seq, 3, "the next seq")
    await unchanged(second, "run", before)


@case
async def a_retry_of_a_failed_run_starts_with_a_clean_slate(lab: StoreLab) -> None:
    store = await lab.open()
    await hold(store)
    lab.clock.advance(LEASE_MS)
    lease = await hold(store)
    await store.write(lease, completed(0, 1))
    await store.request_stop("run")
    await store.write(lease, EndRun("failed", reason="broken"))
    lab.clock.advance(1_000)
    claim = await store.start_or_resume("run", manifest(), worker_id="bob", retry=True)
    check(claim.lease is not None, "a retry should get the lease")
    run = claim.run
    same((run.status, run.state, run.reason), ("running", "running", None), "the retried run")
    same((run.completed_at, run.stop_requested_at), (None, None), "completed_at and the stop")
    same((run.strikes, run.epoch), (0, 3), "strikes and epoch")
    same([step.result for step in claim.steps], [1], "the recorded results")


@case
async def a_retry_of_a_parked_run_starts_with_a_clean_slate(lab: StoreLab) -> None:
    store = await lab.open()
    await hold(store)
    lab.clock.advance(LEASE_MS)
    lease = await hold(store)
    await store.request_stop("run")
    await store.write(lease, Suspend("parked", reason="strikes"))
    same((await read(store, "run")).strikes, 1, "the strikes of a parked run")
    claim = await store.start_or_resume("run", manifest(), worker_id="bob", retry=True)
    run = claim.run
    same((run.state, run.reason), ("running", None), "the retried run")
    same((run.strikes, run.stop_requested_at), (0, None), "strikes and the stop")


@case
async def a_retry_in_the_queue_starts_with_a_clean_slate(lab: StoreLab) -> None:
    store = await lab.open()
    changes = (EndRun("failed", reason="broken"), Suspend("parked", wake_in_ms=5, reason="strikes"))
    for change in changes:
        run_id = change.state
        await hold(store, run_id)
        lab.clock.advance(LEASE_MS)
        lease = await hold(store, run_id)
        await store.request_stop(run_id)
        await store.write(lease, change)
        same((await read(store, run_id)).reason, change.reason, "the reason")
        lab.clock.advance(5)
        run = await store.enqueue(run_id, manifest(), handler="letters", retry=True)
        same((run.status, run.state, run.reason), ("pending", "queued", None), "the queued run")
        same((run.strikes, run.stop_requested_at), (0, None), "strikes and the stop")
        same((run.completed_at, run.wake_at, run.wake_key), (None, None, None), "its marks")
        same((run.epoch, run.updated_at), (2, lab.clock.iso()), "epoch and updated_at")
        same((await hold(store, run_id)).epoch, 3, "the epoch of the next attempt")


@case
async def a_run_keeps_the_handler_that_it_was_first_given(lab: StoreLab) -> None:
    store = await lab.open()
    await hold(store, handler=None)
    same((await read(store, "run")).handler, None, "the handler of a direct call")
    for handler in ("first", "second", None):
        lab.clock.advance(LEASE_MS)
        await hold(store, handler=handler)
        same((await read(store, "run")).handler, "first", "the handler")
    queued = await store.enqueue("queued", manifest(), handler="first")
    again = await store.enqueue("queued", manifest(), handler="second")
    same(again, queued, "a run that was queued before")
    await store.write(await hold(store, "direct", handler=None), ended("failed"))
    run = await store.enqueue("direct", manifest(), handler="late", retry=True)
    same(run.handler, "late", "the handler of a direct call that is queued for its retry")


@case
async def of_two_retries_of_a_failed_run_one_wins(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    await finish(first, "run", state="failed")
    answers = await asyncio.gather(
        first.start_or_resume("run", manifest(), worker_id="ann", retry=True),
        second.start_or_resume("run", manifest(), worker_id="bob", retry=True),
        return_exceptions=True,
    )
    kinds = sorted(type(answer).__name__ for answer in answers)
    same(kinds, ["Claim", "LeaseHeldError"], "the answers to two retries")
    same((await read(first, "run")).epoch, 2, "the epoch")


@case
async def an_attempt_tells_how_it_ended_and_why(lab: StoreLab) -> None:
    store = await lab.open()
    trouble = json.dumps({"message": "It broke", "code": "broken", "type": "OSError"})
    endings: tuple[Change, ...] = (
        Release("drained"),
        Suspend("sleeping", wake_in_ms=5),
        Suspend("waiting", wake_key="go"),
        Suspend("parked", reason="divergence", error_text=trouble),
        EndRun("failed", error_text=trouble),
        EndRun("completed"),
    )
    for change in endings:
        lab.clock.advance(10)
        await store.write(await hold(store, retry=True), change)
    attempts = (await store.read_details("run")).attempts
    same(
        [attempt.ended for attempt in attempts],
        ["drained", "sleeping", "waiting", "parked", "failed", "completed"],
        "how the attempts ended",
    )
    same(attempts[-1].ended_at, lab.clock.iso(), "the end of the last attempt")
    messages = [attempt.error and attempt.error.message for attempt in attempts]
    same(messages, [None, None, None, "It broke", "It broke", None], "their errors")
    codes = [attempt.error and (attempt.error.code, attempt.error.type) for attempt in attempts]
    same(codes[3], ("broken", "OSError"), "the code and type of an error")
