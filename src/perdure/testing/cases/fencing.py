"""Who may write: only the holder of the newest claim, however late it is, and nobody else."""

from __future__ import annotations

from contextlib import suppress

from perdure.core.changes import (
    BeginStep,
    Change,
    EndRun,
    IntendUsage,
    Release,
    SaveHandle,
    SettleUsage,
    Suspend,
)
from perdure.core.limits import LEASE_MS
from perdure.core.records import Lease
from perdure.errors import LeaseLostError
from perdure.testing.lab import StoreLab, case, check, read, refused, same, snapshot, unchanged
from perdure.testing.samples import (
    begun,
    completed,
    delivery,
    ended,
    failed,
    finish,
    hold,
    restart_row,
    row,
)

EVERY_CHANGE: tuple[Change, ...] = (
    begun(1),
    completed(1),
    failed(1),
    row(3, "zombie"),
    restart_row(3, "zombie"),
    SaveHandle('"zombie"'),
    IntendUsage(7),
    SettleUsage(0, tokens_in=1),
    delivery(5),
    Suspend("sleeping", wake_in_ms=1),
    Suspend("waiting", wake_key="go"),
    Suspend("parked", reason="zombie"),
    Release("zombie"),
    ended("completed"),
    ended("stopped"),
    ended("failed"),
)


async def _is_shut_out(lab: StoreLab, lease: Lease) -> None:
    """Check that `lease` can neither write nor renew, and that trying changes nothing."""
    store = await lab.open()
    before = await snapshot(store, "run")
    for change in EVERY_CHANGE:
        with refused(LeaseLostError):
            await store.write(lease, change)
        await unchanged(store, "run", before)
    with refused(LeaseLostError):
        await store.write(lease)
    same(dict(await store.renew([lease], LEASE_MS)), {}, "the renewal of a lost lease")
    await unchanged(store, "run", before)


@case
async def a_zombie_can_write_nothing_at_all(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    zombie = await hold(first)
    await first.write(zombie, begun(0), row(1, "a", "b"), IntendUsage(0))
    lab.clock.advance(LEASE_MS)
    lease = await hold(second, worker_id="bob")
    await second.write(lease, begun(0), IntendUsage(0))
    await _is_shut_out(lab, zombie)


@case
async def a_zombie_is_shut_out_even_if_the_new_holder_has_its_name(lab: StoreLab) -> None:
    store = await lab.open()
    zombie = await hold(store, worker_id="ann")
    lab.clock.advance(LEASE_MS)
    await hold(store, worker_id="ann")
    await _is_shut_out(lab, zombie)


@case
async def a_zombie_is_shut_out_after_the_new_holder_left(lab: StoreLab) -> None:
    store = await lab.open()
    for change in (Release(), Suspend("waiting", wake_key="go"), Suspend("parked")):
        zombie = await hold(store, worker_id="ann", retry=True)
        lab.clock.advance(LEASE_MS)
        await store.write(await hold(store, worker_id="bob"), change)
        await _is_shut_out(lab, zombie)


@case
async def a_zombie_is_shut_out_of_a_run_that_another_ended(lab: StoreLab) -> None:
    store = await lab.open()
    zombie = await hold(store, worker_id="ann")
    lab.clock.advance(LEASE_MS)
    await store.write(await hold(store, worker_id="bob"), completed(0), ended("completed"))
    await _is_shut_out(lab, zombie)


@case
async def a_lease_is_void_if_any_part_of_it_is_wrong(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await hold(store, "other")
    before = await snapshot(store, "run")
    forged = [
        lease._replace(epoch=lease.epoch + 1),
        lease._replace(epoch=lease.epoch - 1),
        lease._replace(token="0" * 32),
        lease._replace(token=""),
        lease._replace(worker_id="bob"),
        lease._replace(run_id="other"),
        lease._replace(run_id="nobody"),
    ]
    for wrong in forged:
        with refused(LeaseLostError):
            await store.write(wrong, completed(0))
        same(dict(await store.renew([wrong], 60_000)), {}, f"the renewal of {wrong}")
    await unchanged(store, "run", before)
    await store.write(lease, completed(0))


@case
async def a_zombie_of_a_deleted_run_is_a_stranger_to_its_successor(lab: StoreLab) -> None:
    store = await lab.open()
    zombie = await finish(store, "run", state="failed")
    await store.delete("run")
    successor = await hold(store)
    same(successor.epoch, zombie.epoch, "the epoch of the successor")
    await _is_shut_out(lab, zombie)


@case
async def the_holder_may_write_late_while_nobody_has_claimed(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    lab.clock.advance(LEASE_MS * 100)
    await store.write(lease, completed(0, "late"), row(1, "late"))
    same([step.result for step in await store.read_steps("run")], ["late"], "the late result")
    await store.write(lease, ended("completed"))
    same((await read(store, "run")).state, "completed", "the state after a late end")


@case
async def the_holder_may_renew_late_while_nobody_has_claimed(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    lab.clock.advance(LEASE_MS * 100)
    same(dict(await store.renew([lease], 20_000)), {lease: False}, "the late renewal")
    run = await read(store, "run")
    same(run.lease_expires_at, lab.clock.iso(20_000), "the new deadline")
    same((run.epoch, run.strikes), (1, 0), "epoch and strikes")


@case
async def a_renewal_moves_the_deadline_from_now(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store, lease_ms=10_000)
    lab.clock.advance(4_000)
    await store.renew([lease], 10_000)
    same((await read(store, "run")).lease_expires_at, lab.clock.iso(10_000), "the deadline")
    await store.renew([lease], 1)
    same((await read(store, "run")).lease_expires_at, lab.clock.iso(1), "a short deadline")


@case
async def a_lost_lease_costs_no_other_its_renewal(lab: StoreLab) -> None:
    store = await lab.open()
    lost = await hold(store, "lost")
    lab.clock.advance(LEASE_MS)
    await hold(store, "lost", worker_id="bob")
    gone = await finish(store, "gone")
    kept = [await hold(store, f"kept-{number}") for number in range(3)]
    await store.request_stop("kept-1")
    lab.clock.advance(5_000)
    answer = await store.renew([lost, kept[0], gone, kept[1], kept[2]], LEASE_MS)
    same(
        dict(answer),
        {kept[0]: False, kept[1]: True, kept[2]: False},
        "the answer to a mixed renewal",
    )
    for number in range(3):
        run = await read(store, f"kept-{number}")
        same(run.lease_expires_at, lab.clock.iso(LEASE_MS), f"the deadline of {run.run_id}")
    same(dict(await store.renew([], LEASE_MS)), {}, "the renewal of nothing")


@case
async def a_lease_that_was_given_back_is_not_renewed(lab: StoreLab) -> None:
    store = await lab.open()
    endings: tuple[Change, ...] = (
        Release(),
        Suspend("sleeping", wake_in_ms=1),
        Suspend("parked"),
        EndRun("failed"),
        EndRun("completed"),
    )
    for change in endings:
        lease = await hold(store, retry=True)
        await store.write(lease, change)
        before = await snapshot(store, "run")
        same(dict(await store.renew([lease], LEASE_MS)), {}, f"the renewal after {change}")
        await unchanged(store, "run", before)


@case
async def the_lost_reply_of_an_end_is_answered_as_done(lab: StoreLab) -> None:
    store = await lab.open()
    for state in ("completed", "stopped", "failed"):
        run_id = f"run-{state}"
        lease = await hold(store, run_id)
        changes = (completed(0, "answer"), row(1, "a"), delivery(0), ended(state))
        await store.write(lease, *changes)
        before = await snapshot(store, run_id)
        lab.clock.advance(1_000)
        again = await store.write(lease, *changes)
        same([step.result for step in again.steps], ["answer"], "the repeated answer")
        await unchanged(store, run_id, before)
        for forged in (lease._replace(token="0" * 32), lease._replace(epoch=2)):
            with refused(LeaseLostError):
                await store.write(forged, *changes)


@case
async def another_end_by_the_holder_that_ended_the_run_changes_nothing(lab: StoreLab) -> None:
    store = await lab.open()
    for state, other in (("completed", "failed"), ("stopped", "completed"), ("failed", "stopped")):
        lease = await finish(store, state, completed(0), state=state)
        before = await snapshot(store, state)
        with suppress(LeaseLostError):
            await store.write(lease, completed(1), row(1, "x"), delivery(0), ended(other))
        await unchanged(store, state, before)


@case
async def the_repeated_end_of_a_run_that_was_retried_since_is_lost(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await finish(store, "run", state="failed")
    await hold(store, worker_id="bob", retry=True)
    before = await snapshot(store, "run")
    with refused(LeaseLostError):
        await store.write(lease, ended("failed"))
    await unchanged(store, "run", before)


@case
async def an_ended_run_takes_no_further_change_from_its_own_holder(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await finish(store, "run", completed(0))
    before = await snapshot(store, "run")
    for change in (begun(1), completed(1), row(1, "late"), delivery(3), Release()):
        with refused(LeaseLostError):
            await store.write(lease, change)
    await unchanged(store, "run", before)


@case
async def a_write_without_changes_asks_whether_the_lease_holds(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    same((await store.write(lease)).stop_requested, False, "a stop that nobody asked for")
    await store.request_stop("run")
    same((await store.write(lease)).stop_requested, True, "the stop")
    await store.write(lease, Release())
    with refused(LeaseLostError):
        await store.write(lease)


@case
async def the_holder_hears_of_a_stop_with_every_write_and_renewal(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    lease = await hold(first)
    check(not (await first.write(lease, begun(0))).stop_requested, "nobody asked for a stop")
    same(dict(await first.renew([lease], LEASE_MS)), {lease: False}, "the renewal before")
    await second.request_stop("run")
    changes: tuple[Change, ...] = (BeginStep(0, "step-0"), completed(0), row(1, "a"), Release())
    same(dict(await first.renew([lease], LEASE_MS)), {lease: True}, "the renewal after")
    for change in changes:
        check((await first.write(lease, change)).stop_requested, f"{change} should hear of it")
