"""Erasure: a session goes with everything that is its, and nothing else does."""

from __future__ import annotations

import asyncio

from perdure.core.changes import Change, IntendUsage, Release, SaveHandle, Suspend
from perdure.core.limits import LEASE_MS
from perdure.core.records import Lease, SessionKey
from perdure.errors import LeaseLostError, RunNotFoundError, SessionBusyError
from perdure.store.erasure import erasure_of
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
    row,
)

NOTHING = Snapshot(None, [], None, [])


def _turn(index: int, session: str = "s", owner: str | None = "olga") -> SessionKey:
    return SessionKey(session, index, 0, owner)


async def _full_turn(store: RunStore, run_id: str, key: SessionKey) -> Lease:
    lease = await hold(store, run_id, session=key)
    await store.emit_event(run_id, "go", 1)
    await store.write(lease, begun(0), row(1, "a"), IntendUsage(0), SaveHandle("1"))
    await store.write(lease, completed(0), row(2, "b"), delivery(0), ended())
    return lease


async def _live(store: RunStore, change: Change | None, session: str) -> str:
    run_id = f"live-{session}"
    lease = await hold(store, run_id, session=_turn(0, session))
    if change is not None:
        await store.write(lease, change)
    return run_id


@case
async def nothing_of_an_erased_session_is_left(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    leases = [await _full_turn(first, f"turn-{index}", _turn(index)) for index in range(3)]
    same(await erasure_of(second).remove_session("s"), 3, "the turns that were deleted")
    same(await erasure_of(first).remove_session("s"), None, "a second erasure")
    for store in (first, second):
        await erasure_of(store).scrub()
        for index in range(3):
            same(await snapshot(store, f"turn-{index}"), NOTHING, "what is left of a turn")
            same(await store.load_event(f"turn-{index}", "go"), None, "its event")
        same(list(await store.list_runs(session_id="s")), [], "the turns")
        same(list(await store.list_runs()), [], "the runs")
        same(list(await erasure_of(store).find_sessions("olga")), [], "the sessions of the user")
        same(list(await store.claim_deliveries([HANDLER], limit=9)), [], "the deliveries")
    with refused(LeaseLostError):
        await first.write(leases[0], completed(1))


@case
async def an_erased_session_may_be_begun_anew_by_somebody_else(lab: StoreLab) -> None:
    store = await lab.open()
    await _full_turn(store, "turn-0", _turn(0))
    await _full_turn(store, "turn-1", _turn(1))
    await erasure_of(store).remove_session("s")
    await finish(store, "turn-1", session=_turn(1, owner="eve"))
    run = await read(store, "turn-1")
    same((run.owner_id, run.parent_run_id, run.epoch), ("eve", None, 1), "the new turn")
    same(list(await erasure_of(store).find_sessions("eve")), ["s"], "the sessions of its owner")


@case
async def everything_else_outlives_the_erasure_of_a_session(lab: StoreLab) -> None:
    store, acme = await lab.open(), await lab.open(tenant="acme")
    await _full_turn(store, "mine", _turn(0))
    await _full_turn(store, "other", _turn(0, "t"))
    await _full_turn(acme, "theirs", _turn(0))
    await finish(store, "plain", row(1, "a"))
    kept = [(store, "other"), (store, "plain"), (acme, "theirs")]
    before = [await snapshot(at, run_id) for at, run_id in kept]
    same(await erasure_of(store).remove_session("s"), 1, "the turns that were deleted")
    for (at, run_id), then in zip(kept, before, strict=True):
        await unchanged(at, run_id, then)
    same(list(await erasure_of(store).find_sessions("olga")), ["t"], "the sessions that are left")
    same(list(await erasure_of(acme).find_sessions("olga")), ["s"], "those of another tenant")
    claimed = await store.claim_deliveries([HANDLER], limit=9)
    same(len(claimed), 2, "the deliveries of the others")


@case
async def a_session_with_a_turn_in_flight_is_not_erased(lab: StoreLab) -> None:
    store = await lab.open()
    states: dict[str, Change | None] = {
        "held": None,
        "released": Release(),
        "sleeping": Suspend("sleeping", wake_in_ms=3_600_000),
        "waiting": Suspend("waiting", wake_key="later"),
    }
    for name, change in states.items():
        run_id = await _live(store, change, name)
        before = await snapshot(store, run_id)
        for queued in (False, True):
            with refused(SessionBusyError):
                await erasure_of(store).remove_session(name, queued=queued)
        await unchanged(store, run_id, before)
        same(list(await erasure_of(store).find_sessions("olga"))[-1:], [name], "the session")
    lab.clock.advance(100 * LEASE_MS)
    with refused(SessionBusyError):
        await erasure_of(store).remove_session("held")


@case
async def earlier_turns_of_a_busy_session_are_kept_with_it(lab: StoreLab) -> None:
    store = await lab.open()
    await _full_turn(store, "turn-0", _turn(0))
    lease = await hold(store, "turn-1", session=_turn(1))
    before = await snapshot(store, "turn-0")
    with refused(SessionBusyError):
        await erasure_of(store).remove_session("s")
    await unchanged(store, "turn-0", before)
    await store.write(lease, ended("stopped"))
    same(await erasure_of(store).remove_session("s"), 2, "the turns, once all are at rest")


@case
async def what_rests_is_erased_however_it_ended(lab: StoreLab) -> None:
    store = await lab.open()
    for index, state in enumerate(("completed", "stopped", "failed")):
        await finish(store, f"turn-{index}", session=_turn(index), state=state)
    parked = await hold(store, "turn-3", session=_turn(3))
    await store.write(parked, Suspend("parked"))
    same(await erasure_of(store).remove_session("s"), 4, "the turns that were deleted")
    same(list(await store.list_runs()), [], "the runs")


@case
async def a_queued_turn_is_erased_only_when_asked_for(lab: StoreLab) -> None:
    store = await lab.open()
    await store.enqueue("turn", manifest(), handler=HANDLER, session=_turn(0))
    with refused(SessionBusyError):
        await erasure_of(store).remove_session("s")
    same((await read(store, "turn")).state, "queued", "the turn")
    same(await erasure_of(store).remove_session("s", queued=True), 1, "the deleted turns")
    claims = await store.claim_due([HANDLER], worker_id="ann", lease_ms=LEASE_MS, limit=9)
    same(list(claims), [], "the due runs")


@case
async def a_session_of_somebody_else_is_unknown(lab: StoreLab) -> None:
    store = await lab.open()
    await _full_turn(store, "turn", _turn(0))
    await hold(store, "live", session=_turn(0, "busy"))
    await finish(store, "free", session=_turn(0, "nobody's", None))
    before = await snapshot(store, "turn")
    for session in ("s", "busy", "there is none"):
        same(await erasure_of(store).remove_session(session, owner_id="eve"), None, "the erasure")
    await unchanged(store, "turn", before)
    same(await erasure_of(store).remove_session("s", owner_id="olga"), 1, "her own")
    same(await erasure_of(store).remove_session("nobody's", owner_id="eve"), 1, "nobody's")


@case
async def a_session_whose_turns_are_gone_can_still_be_erased(lab: StoreLab) -> None:
    store = await lab.open()
    await _full_turn(store, "turn", _turn(0))
    await store.delete("turn")
    same(list(await erasure_of(store).find_sessions("olga")), ["s"], "the sessions")
    same(await erasure_of(store).remove_session("s"), 0, "the turns that were deleted")
    same(list(await erasure_of(store).find_sessions("olga")), [], "the sessions after that")


@case
async def the_sessions_of_a_user_are_found_in_order_and_in_pages(lab: StoreLab) -> None:
    store = await lab.open()
    for name in ("c", "a", "d", "b"):
        await finish(store, f"turn-{name}", session=_turn(0, name))
    await finish(store, "hers", session=_turn(0, "e", "eve"))
    await finish(store, "nobody's", session=_turn(0, "f", None))
    erasure = erasure_of(store)
    same(list(await erasure.find_sessions("olga")), ["a", "b", "c", "d"], "the sessions")
    same(list(await erasure.find_sessions("olga", limit=2)), ["a", "b"], "the first page")
    page = await erasure.find_sessions("olga", after="b", limit=2)
    same(list(page), ["c", "d"], "the second page")
    same(list(await erasure.find_sessions("olga", after="d")), [], "the third")
    same(list(await erasure.find_sessions("")), [], "the sessions of nobody")


@case
async def an_erasure_and_the_begin_of_a_turn_exclude_each_other(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    for number in range(8):
        session = f"s-{number}"
        await finish(first, f"{session}-0", session=_turn(0, session))

        async def begin(session: str = session) -> bool:
            try:
                await hold(second, f"{session}-1", session=_turn(1, session))
            except RunNotFoundError:
                return False
            return True

        async def erase(session: str = session) -> bool:
            try:
                return await erasure_of(first).remove_session(session) is not None
            except SessionBusyError:
                return False

        begun, erased = await asyncio.gather(begin(), erase())
        check(begun, "a turn can begin before or after the erasure")
        earlier = await first.read_run(f"{session}-0")
        later = await read(first, f"{session}-1")
        same(earlier is None, erased, "whether the earlier turn is gone")
        same(later.parent_run_id, None if erased else f"{session}-0", "the parent of the later")
        same(
            list(await erasure_of(first).find_sessions("olga", after=f"s-{number - 1}")),
            [session],
            "the session of the turn that has begun",
        )
