"""Deletion: everything of a run goes, and nothing of it comes back."""

from __future__ import annotations

from perdure.core.changes import IntendUsage, SaveHandle, SettleUsage, Suspend
from perdure.core.limits import DELIVERY_BACKOFF_MAX_MS, LEASE_MS
from perdure.core.records import Lease, SessionKey
from perdure.errors import LeaseLostError, RunNotFoundError, UsageError
from perdure.store.protocol import RunStore
from perdure.testing.lab import (
    Snapshot,
    StoreLab,
    case,
    check,
    read,
    refused,
    same,
    snapshot,
    unchanged,
)
from perdure.testing.samples import (
    HANDLER,
    begun,
    completed,
    delivery,
    ended,
    finish,
    hold,
    manifest,
    restart_row,
    row,
)


async def _full_run(store: RunStore, run_id: str = "run", *, state: str = "completed") -> Lease:
    """Make a run that has something of everything, and end it."""
    lease = await hold(store, run_id)
    await store.emit_event(run_id, "go", 1)
    await store.write(lease, begun(0), row(1, "a"), IntendUsage(0), SaveHandle("1"))
    await store.write(lease, completed(0), restart_row(2, "b"), delivery(0), ended(state))
    return lease


@case
async def nothing_of_a_deleted_run_is_left(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    lease = await _full_run(first)
    await _full_run(first, "other")
    other = await snapshot(first, "other")
    same(await second.delete("run"), True, "the deletion")
    same(await second.delete("run"), False, "a second deletion")
    for store in (first, second):
        same(await snapshot(store, "run"), Snapshot(None, [], None, []), "what is left")
        same(await store.load_event("run", "go"), None, "the event")
        same([run.run_id for run in await store.list_runs()], ["other"], "the runs")
        with refused(RunNotFoundError):
            await store.request_stop("run")
    found = await first.claim_deliveries([HANDLER], limit=9, run_id=lease.run_id)
    same(list(found), [], "the deliveries of the deleted run")
    await unchanged(first, "other", other)


@case
async def a_run_in_the_place_of_a_deleted_one_is_new(lab: StoreLab) -> None:
    store = await lab.open()
    await _full_run(store, state="failed")
    await store.delete("run")
    lab.clock.advance(5)
    claim = await store.start_or_resume("run", manifest("Else?"), worker_id="bob")
    same((claim.run.epoch, claim.run.strikes, claim.run.step_count), (1, 0, 0), "the new run")
    same((claim.run.created_at, claim.run.live_from), (lab.clock.iso(), 0), "its marks")
    same((claim.run.outcome, claim.run.upstream, claim.run.handler), (None, None, None), "rest")
    same((len(claim.steps), claim.next_seq), (0, 1), "its history")
    same(await store.load_event("run", "go"), None, "the event of its predecessor")
    details = await store.read_details("run")
    same([attempt.holder for attempt in details.attempts], ["bob"], "its attempts")
    left = [*details.events, *details.usage, *details.deliveries]
    same(left, [], "its events, usage and deliveries")
    if claim.lease is None:
        raise AssertionError("a new run should be leased to its creator")
    await store.write(claim.lease, row(1, "new"), ended("completed"))
    same(list(await store.claim_deliveries([HANDLER], limit=9)), [], "the old deliveries")


@case
async def a_deleted_run_cannot_be_written_to(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await _full_run(store)
    [delivered] = await store.claim_deliveries([HANDLER], limit=9)
    await store.delete("run")
    with refused(LeaseLostError):
        await store.write(lease, completed(1))
    with refused(LeaseLostError):
        await store.write(lease, ended("completed"))
    same(dict(await store.renew([lease], LEASE_MS)), {}, "the renewal")
    await store.settle_usage(lease, SettleUsage(0, tokens_in=1))
    await store.settle_delivery(delivered)
    await store.settle_delivery(delivered, error="no")
    with refused(RunNotFoundError):
        await store.emit_event("run", "go", 1)
    same(await snapshot(store, "run"), Snapshot(None, [], None, []), "what is left")


@case
async def frames_expire_without_the_rest_of_the_run(lab: StoreLab) -> None:
    store = await lab.open()
    await _full_run(store)
    before = await snapshot(store, "run")
    lab.clock.advance(5)
    same(await store.delete("run", frames_only=True), True, "the deletion of the frames")
    after = await snapshot(store, "run")
    same(after.frames, [], "the frames")
    same((after.steps, after.details), (before.steps, before.details), "all else")
    run = await read(store, "run")
    same(run.frames_expired_at, lab.clock.iso(), "the mark of the expired frames")
    same((run.state, run.live_from), ("completed", 2), "the run")
    same(await store.delete("run", frames_only=True), False, "a second deletion of the frames")
    claim = await store.start_or_resume("run", manifest(), worker_id="bob")
    same((claim.lease, len(claim.steps)), (None, 1), "the replay of the run")
    same(await store.delete("run"), True, "the deletion of the run")


@case
async def deleting_a_turn_frees_its_session_and_leaves_its_owner(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store, "turn-0", session=SessionKey("s", 0, 0, "olga"))
    await store.write(lease, Suspend("parked"))
    await store.delete("turn-0")
    with refused(RunNotFoundError):
        await hold(store, "turn-1", session=SessionKey("s", 1, 0, "eve"))
    await hold(store, "turn-1", session=SessionKey("s", 1, 0, "olga"))
    same((await read(store, "turn-1")).parent_run_id, None, "the parent of the next turn")


@case
async def a_queued_turn_that_is_deleted_is_never_started(lab: StoreLab) -> None:
    store = await lab.open()
    await store.enqueue("turn", manifest(), handler=HANDLER, session=SessionKey("s", 0))
    same(await store.delete("turn"), True, "the deletion")
    lab.clock.advance(DELIVERY_BACKOFF_MAX_MS)
    claims = await store.claim_due([HANDLER], worker_id="sweeper", lease_ms=LEASE_MS, limit=9)
    same(list(claims), [], "the due runs")


@case
async def a_run_with_open_deliveries_may_be_deleted_with_them(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "run", delivery(0), delivery(1))
    await store.settle_delivery((await store.claim_deliveries([HANDLER], limit=1))[0], error="no")
    check(await store.delete("run"), "the run should be deleted")
    lab.clock.advance(DELIVERY_BACKOFF_MAX_MS)
    same(list(await store.claim_deliveries([HANDLER], limit=9)), [], "the deliveries")


@case
async def a_run_that_may_wake_up_is_not_deleted(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    lab.clock.advance(LEASE_MS * 100)
    with refused(UsageError):
        await store.delete("run")
    await store.request_stop("run")
    with refused(UsageError):
        await store.delete("run")
    await store.write(lease, ended("stopped"))
    check(await store.delete("run"), "the stopped run should be deleted")
