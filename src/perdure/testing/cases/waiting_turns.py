"""Turns that wait for the place of their session: in line, each once, whoever sweeps."""

from __future__ import annotations

import asyncio

from perdure.core.changes import Change, Release, Suspend
from perdure.core.limits import LEASE_MS
from perdure.core.records import SessionKey
from perdure.errors import SessionBusyError
from perdure.store.protocol import RunStore
from perdure.testing.lab import StoreLab, case, read, refused, same
from perdure.testing.samples import HANDLER, ended, finish, hold, manifest


def _turn(index: int, *, revision: int = 0) -> SessionKey:
    return SessionKey("s", index, revision)


async def _swept(store: RunStore) -> list[str]:
    claims = await store.claim_due([HANDLER], worker_id="sweeper", lease_ms=LEASE_MS, limit=10)
    return sorted(claim.run.run_id for claim in claims)


@case
async def queued_turns_wait_until_their_session_is_free(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    lease = await hold(first, "turn-0", session=_turn(0))
    for index in (1, 2):
        await first.enqueue(f"turn-{index}", manifest(), handler=HANDLER, session=_turn(index))
    await first.enqueue("other", manifest(), handler=HANDLER, session=SessionKey("other", 0))
    same(await _swept(second), ["other"], "the turns due beside a busy session")
    await first.write(lease, ended("completed"))
    swept = await _swept(second)
    same(len(swept), 1, "the turns due in a free session")
    same(await _swept(first), [], "the turns due in a session that is busy again")
    with refused(SessionBusyError):
        await hold(first, "turn-3", session=_turn(3))
    states = sorted([(await read(first, f"turn-{index}")).state for index in (1, 2)])
    same(states, ["queued", "running"], "the states of the two turns")


@case
async def a_queued_turn_goes_on_behind_one_that_rests(lab: StoreLab) -> None:
    store = await lab.open()
    rests: tuple[Change, ...] = (Suspend("parked"), ended("failed"), ended("stopped"))
    for index, change in enumerate(rests):
        lease = await hold(store, f"turn-{index}", session=_turn(index))
        await store.enqueue(f"next-{index}", manifest(), handler=HANDLER, session=_turn(index + 50))
        await store.write(lease, change)
        same(await _swept(store), [f"next-{index}"], f"the turn that is due after {change}")
        claim = await store.start_or_resume(
            f"turn-{index}", manifest(), worker_id="bob", session=_turn(index)
        )
        same(claim.lease, None, "the lease on the turn that rests")
        lab.clock.advance(LEASE_MS)
        await store.write(await hold(store, f"next-{index}"), ended("completed"))


@case
async def a_turn_that_is_queued_again_stands_in_line(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "turn-0", state="failed", session=_turn(0))
    lease = await hold(store, "turn-1", session=_turn(1))
    await store.enqueue("turn-0", manifest(), handler=HANDLER, session=_turn(0), retry=True)
    same(await _swept(store), [], "the turns due beside a busy session")
    await store.write(lease, ended("completed"))
    with refused(SessionBusyError):
        await hold(store, "turn-2", session=_turn(2))
    same(await _swept(store), ["turn-0"], "the turns due in a free session")


@case
async def nobody_gets_into_a_session_before_a_queued_turn(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "failed", state="failed", session=_turn(0))
    await store.write(await hold(store, "parked", session=_turn(1)), Suspend("parked"))
    lease = await hold(store, "live", session=_turn(2))
    await store.enqueue("queued", manifest(), handler=HANDLER, session=_turn(9))
    await store.write(lease, ended("completed"))
    for run_id, index in (("new", 3), ("failed", 0), ("parked", 1)):
        before = await store.read_run(run_id)
        with refused(SessionBusyError):
            await hold(store, run_id, session=_turn(index), retry=True)
        same(await store.read_run(run_id), before, "the turn that was refused")
    await store.write(await hold(store, "queued", session=_turn(9)), ended("completed"))
    await hold(store, "new", session=_turn(3))


@case
async def a_turn_in_flight_keeps_its_place_before_queued_ones(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store, "live", session=_turn(1))
    await store.enqueue("queued", manifest(), handler=HANDLER, session=_turn(0))
    await store.write(lease, Release())
    lease = await hold(store, "live", session=_turn(1))
    await store.write(lease, Suspend("sleeping", wake_in_ms=1))
    lab.clock.advance(1)
    same(await _swept(store), ["live"], "the turns that are due")
    lab.clock.advance(LEASE_MS)
    lease = await hold(store, "live", session=_turn(1))
    await store.write(lease, ended("completed"))
    same(await _swept(store), ["queued"], "the turns due behind it")


@case
async def turns_of_a_session_begin_in_the_order_in_which_they_were_queued(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    lease = await hold(first, "live", session=_turn(0))
    keys = [_turn(9), _turn(2, revision=1), _turn(5), _turn(2)]
    for number, key in enumerate(keys):
        lab.clock.advance(1)
        await first.enqueue(f"turn-{number}", manifest(), handler=HANDLER, session=key)
    for number, store in enumerate((second, first, second, first)):
        await first.write(lease, ended("completed"))
        for later in range(number + 1, len(keys)):
            with refused(SessionBusyError):
                await hold(store, f"turn-{later}", session=keys[later])
        claims = await store.claim_due([HANDLER], worker_id="w", lease_ms=LEASE_MS, limit=10)
        ids = [claim.run.run_id for claim in claims]
        same(ids, [f"turn-{number}"], "the turn that begins")
        assert claims[0].lease is not None
        lease = claims[0].lease


@case
async def turns_that_were_queued_in_one_millisecond_begin_in_order(lab: StoreLab) -> None:
    store = await lab.open()
    for index, revision in ((3, 0), (1, 10), (1, 2)):
        session = _turn(index, revision=revision)
        await store.enqueue(
            f"turn-{index}-{revision}", manifest(), handler=HANDLER, session=session
        )
    for run_id in ("turn-1-2", "turn-1-10", "turn-3-0"):
        same(await _swept(store), [run_id], "the turn that begins")
        lab.clock.advance(LEASE_MS)
        await store.write(await hold(store, run_id), ended("completed"))


@case
async def two_sweeps_at_once_start_one_queued_turn_of_a_session(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    for index in range(6):
        await first.enqueue(f"turn-{index}", manifest(), handler=HANDLER, session=_turn(index))
    sweeps = await asyncio.gather(*(_swept(store) for store in (first, second, first, second)))
    same(sum(map(len, sweeps)), 1, "the number of turns that were started")
