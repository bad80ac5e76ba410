"""Sessions: one turn in flight at a time, an owner who is fixed."""

from __future__ import annotations

import asyncio

from perdure.core.changes import Change, Release, Suspend
from perdure.core.limits import LEASE_MS
from perdure.core.records import Claim, SessionKey
from perdure.errors import (
    LeaseHeldError,
    RunInputMismatchError,
    RunNotFoundError,
    SessionBusyError,
)
from perdure.store.protocol import RunStore
from perdure.testing.lab import StoreLab, case, read, refused, same, snapshot, unchanged
from perdure.testing.samples import HANDLER, completed, ended, finish, hold, manifest


def _turn(index: int, *, revision: int = 0, owner: str | None = None) -> SessionKey:
    return SessionKey("s", index, revision, owner)


async def _swept(store: RunStore) -> list[str]:
    claims = await store.claim_due([HANDLER], worker_id="sweeper", lease_ms=LEASE_MS, limit=10)
    return sorted(claim.run.run_id for claim in claims)


@case
async def a_turn_remembers_its_place_in_its_session(lab: StoreLab) -> None:
    store = await lab.open()
    await hold(store, "held", session=SessionKey("s", 4, 2, "olga", "parent"))
    await store.enqueue("queued", manifest(), handler=HANDLER, session=SessionKey("t", 1, 0, "ed"))
    run = await read(store, "held")
    same((run.session_id, run.turn_index, run.revision), ("s", 4, 2), "the place of the turn")
    same((run.owner_id, run.parent_run_id), ("olga", "parent"), "its owner and parent")
    run = await read(store, "queued")
    same((run.session_id, run.turn_index, run.revision), ("t", 1, 0), "the place of a queued turn")
    same((run.owner_id, run.parent_run_id), ("ed", None), "its owner and parent")


@case
async def a_session_with_a_turn_in_flight_is_busy(lab: StoreLab) -> None:
    store = await lab.open()
    await hold(store, "turn-0", session=_turn(0))
    before = await snapshot(store, "turn-0")
    with refused(SessionBusyError):
        await hold(store, "turn-1", session=_turn(1))
    same(await store.read_run("turn-1"), None, "the turn that was refused")
    await unchanged(store, "turn-0", before)
    await hold(store, "elsewhere", session=SessionKey("other", 1))
    await hold(store, "alone")


@case
async def a_claim_that_names_no_session_leaves_a_turn_in_its_own(lab: StoreLab) -> None:
    store = await lab.open()
    await hold(store, "turn-0", session=SessionKey("s", 3, 1, "olga"))
    lab.clock.advance(LEASE_MS)
    lease = await hold(store, "turn-0")
    run = await read(store, "turn-0")
    same((run.session_id, run.turn_index, run.revision), ("s", 3, 1), "the place of the turn")
    same(run.owner_id, "olga", "its owner")
    with refused(SessionBusyError):
        await hold(store, "turn-4", session=SessionKey("s", 4, 0, "olga"))
    told = await store.write(lease, ended("completed"))
    same(told.run, await read(store, "turn-0"), "the run that its end tells")


@case
async def sessions_do_not_hold_each_other_up(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "s-0", session=SessionKey("s", 0))
    await finish(store, "t-0", session=SessionKey("t", 0))
    await hold(store, "s-1", session=SessionKey("s", 1))
    await store.enqueue("t-1", manifest(), handler=HANDLER, session=SessionKey("t", 1))
    same(await _swept(store), ["t-1"], "the turn that is due in the other session")
    with refused(SessionBusyError):
        await hold(store, "s-2", session=SessionKey("s", 2))
    with refused(SessionBusyError):
        await hold(store, "t-2", session=SessionKey("t", 2))


@case
async def a_session_stays_busy_until_its_turn_has_ended_or_is_parked(lab: StoreLab) -> None:
    store = await lab.open()
    busy: tuple[Change, ...] = (
        Release(),
        Suspend("sleeping", wake_in_ms=1),
        Suspend("waiting", wake_key="go"),
    )
    for change in busy:
        await store.write(await hold(store, "turn-0", session=_turn(0)), change)
        with refused(SessionBusyError):
            await hold(store, "turn-1", session=_turn(1))
    await hold(store, "turn-0", session=_turn(0))
    lab.clock.advance(LEASE_MS)
    with refused(SessionBusyError):
        await hold(store, "turn-1", session=_turn(1))
    same(await store.read_run("turn-1"), None, "the turn that was refused")
    free: tuple[Change, ...] = (
        ended("completed"),
        ended("stopped"),
        ended("failed"),
        Suspend("parked"),
    )
    lease = await hold(store, "turn-0", session=_turn(0))
    for index, change in enumerate(free, start=1):
        await store.write(lease, change)
        lease = await hold(store, f"turn-{index}", session=_turn(index))


@case
async def of_two_turns_of_a_session_at_once_one_gets_its_place(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    answers = await asyncio.gather(
        *(
            store.start_or_resume(
                f"turn-{index}", manifest(), worker_id=f"w{index}", session=_turn(index)
            )
            for index, store in enumerate([first, second] * 3)
        ),
        return_exceptions=True,
    )
    granted = [answer for answer in answers if isinstance(answer, Claim)]
    same(len(granted), 1, "the number of turns in flight")
    busy = [answer for answer in answers if isinstance(answer, SessionBusyError)]
    same(len(busy), 5, "the number of those who found the session busy")
    same(len(await first.list_runs()), 1, "the number of runs that were recorded")


@case
async def the_turn_in_flight_is_taken_over_in_its_own_place(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    await hold(first, "turn-0", session=_turn(0))
    with refused(LeaseHeldError):
        await hold(second, "turn-0", session=_turn(0))
    lab.clock.advance(LEASE_MS)
    same(await _swept(second), ["turn-0"], "the turn that was taken over")


@case
async def a_rested_turn_is_retried_only_while_its_session_is_free(lab: StoreLab) -> None:
    store = await lab.open()
    await store.write(await hold(store, "turn-0", session=_turn(0)), Suspend("parked"))
    await finish(store, "turn-1", state="failed", session=_turn(1))
    lease = await hold(store, "turn-2", session=_turn(2))
    for index in range(2):
        before = await snapshot(store, f"turn-{index}")
        with refused(SessionBusyError):
            await hold(store, f"turn-{index}", session=_turn(index), retry=True)
        await unchanged(store, f"turn-{index}", before)
    await store.write(lease, ended("completed"))
    await hold(store, "turn-1", session=_turn(1), retry=True)
    with refused(SessionBusyError):
        await hold(store, "turn-3", session=_turn(3))


@case
async def a_finished_turn_is_replayed_while_another_is_in_flight(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "turn-0", completed(0, "answer"), session=_turn(0))
    await finish(store, "turn-1", state="failed", session=_turn(1))
    await hold(store, "turn-2", session=_turn(2))
    for index in range(2):
        before = await snapshot(store, f"turn-{index}")
        claim = await store.start_or_resume(
            f"turn-{index}", manifest(), worker_id="bob", session=_turn(index)
        )
        same(claim.lease, None, "the lease of a replay")
        same(claim.run, before.run, "the replayed turn")
        await unchanged(store, f"turn-{index}", before)


@case
async def a_foreign_owner_finds_nothing(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store, "turn-0", session=_turn(0, owner="olga"))
    stranger = _turn(1, owner="eve")
    for _ in range(2):
        with refused(RunNotFoundError):
            await hold(store, "turn-1", session=stranger)
        with refused(RunNotFoundError):
            await store.enqueue("turn-1", manifest(), handler=HANDLER, session=stranger)
        same(await store.read_run("turn-1"), None, "the turn of a stranger")
        if (await read(store, "turn-0")).state == "running":
            await store.write(lease, ended("completed"))
    await hold(store, "turn-1", session=_turn(1, owner="olga"))
    same((await read(store, "turn-1")).owner_id, "olga", "the owner")


@case
async def a_foreign_owner_may_not_open_a_turn_that_is_there(lab: StoreLab) -> None:
    store = await lab.open()
    mine, theirs = _turn(0, owner="olga"), _turn(0, owner="eve")
    lease = await hold(store, "turn-0", session=mine)
    for change in (Release(), Suspend("parked"), ended("failed"), ended("completed")):
        await store.write(lease, change)
        before = await snapshot(store, "turn-0")
        for retry in (False, True):
            with refused(RunNotFoundError):
                await store.start_or_resume(
                    "turn-0", manifest(), worker_id="eve", session=theirs, retry=retry
                )
            with refused(RunNotFoundError):
                await store.enqueue(
                    "turn-0", manifest(), handler=HANDLER, session=theirs, retry=retry
                )
            await unchanged(store, "turn-0", before)
        if change != ended("completed"):
            lease = await hold(store, "turn-0", session=mine, retry=True)


@case
async def the_first_turn_fixes_the_owner_even_if_it_is_only_queued(lab: StoreLab) -> None:
    store = await lab.open()
    await store.enqueue("turn-0", manifest(), handler=HANDLER, session=_turn(0, owner="olga"))
    with refused(RunNotFoundError):
        await hold(store, "turn-1", session=_turn(1, owner="eve"))
    same((await read(store, "turn-0")).owner_id, "olga", "the owner")


@case
async def a_refused_opening_does_not_make_a_session(lab: StoreLab) -> None:
    store = await lab.open()
    await hold(store, "run")
    with refused(RunInputMismatchError):
        await store.start_or_resume(
            "run", manifest("Else?"), worker_id="eve", session=_turn(0, owner="eve")
        )
    await hold(store, "turn-0", session=_turn(0, owner="olga"))


@case
async def a_session_without_an_owner_is_open_to_everybody(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "turn-0", session=_turn(0))
    await finish(store, "turn-1", session=_turn(1))
    await finish(store, "turn-2", session=_turn(2, owner="olga"))
    await finish(store, "turn-3", session=_turn(3, owner="ed"))
    same((await read(store, "turn-3")).owner_id, None, "the owner, fixed by the first turn")
