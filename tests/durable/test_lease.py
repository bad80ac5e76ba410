"""Leases are kept while the process is well, and known to be lost as soon as they are."""

from __future__ import annotations

import asyncio

import pytest

from perdure.core.effects import monotonic_ms
from perdure.core.records import Lease
from perdure.durable.lease import HeldLease, keep_leases, keeper_of
from perdure.errors import LeaseHeldError, LeaseLostError, StoreUnavailableError
from perdure.store.protocol import RunStore
from perdure.testing.samples import hold
from tests.durable.handles import (
    Handles,
    Hanging,
    ThreadedTroubledStore,
    Trouble,
    TroubledStore,
    in_trouble,
    is_in,
    moves,
    read,
    run,
    until,
    within,
)

LEASE_MS = 300
BEAT_MS = 10


def held_for(lease_ms: int, *, since_ms: float = 0.0) -> tuple[HeldLease, list[str]]:
    changes: list[str] = []
    lease = Lease("run", 1, "token", "ann")
    granted_ms = monotonic_ms() - since_ms
    held = HeldLease(lease, lease_ms, lambda: changes.append("changed"), granted_ms=granted_ms)
    return held, changes


def test_a_lease_ends_for_work_before_it_can_lapse() -> None:
    held, changes = held_for(15_000, since_ms=12_900)
    held.check()
    held, changes = held_for(15_000, since_ms=13_100)
    with pytest.raises(LeaseLostError):
        held.check()
    assert held.lost
    assert changes == ["changed"]


def test_a_short_lease_keeps_most_of_its_length() -> None:
    held, _ = held_for(400, since_ms=250)
    held.check()
    held, _ = held_for(400, since_ms=310)
    with pytest.raises(LeaseLostError):
        held.check()


def test_a_renewal_counts_from_when_it_was_asked_for_and_never_goes_back() -> None:
    held, _ = held_for(15_000, since_ms=13_100)
    held.renewed(monotonic_ms() - 5_000)
    before = held.remaining_ms
    assert 7_000 < before <= 8_000
    held.renewed(monotonic_ms() - 9_000)
    assert held.remaining_ms <= before
    held.check()


def test_what_happened_to_a_lease_is_told_once() -> None:
    held, changes = held_for(15_000)
    held.lose()
    held.lose()
    held.ask_to_stop()
    held.ask_to_stop()
    assert changes == ["changed", "changed"]


@pytest.mark.parametrize("threaded", [True, False])
async def test_a_lease_is_renewed_while_it_is_held(store: RunStore, threaded: bool) -> None:
    task = Hanging()
    watched = in_trouble(store, Trouble(), threaded=threaded)
    keep_leases(watched, beat_ms=BEAT_MS)
    call = asyncio.create_task(run(watched, task))
    await within(task.begun.wait())
    for _ in range(3):
        await moves(store)
    task.go_on.set()
    assert (await within(call)).record.epoch == 1


@pytest.mark.parametrize("threaded", [True, False])
async def test_a_lease_that_comes_later_and_is_shorter_is_kept_too(
    store: RunStore, threaded: bool
) -> None:
    long, short = Hanging(), Hanging()
    watched = in_trouble(store, Trouble(), threaded=threaded)
    calls = [asyncio.create_task(run(watched, long, run_id="long"))]
    await within(long.begun.wait())
    await asyncio.sleep(0.02)  # The heartbeat has begun its long pause.
    calls.append(asyncio.create_task(run(watched, short, run_id="short", lease_ms=1_200)))
    await within(short.begun.wait())
    await moves(store, "short")
    await moves(store, "short")
    long.go_on.set()
    short.go_on.set()
    for done in await asyncio.gather(*calls):
        assert done.record.epoch == 1


async def test_one_beat_renews_all_leases(store: RunStore) -> None:
    trouble = Trouble()
    watched = TroubledStore(store, trouble)
    keep_leases(watched, beat_ms=50)
    tasks = [Hanging() for _ in range(20)]
    calls = [
        asyncio.create_task(run(watched, task, run_id=f"run {number}"))
        for number, task in enumerate(tasks)
    ]
    for task in tasks:
        await within(task.begun.wait())
    before = trouble.calls.count("renew")
    await moves(store, "run 0")
    await moves(store, "run 19")
    assert trouble.calls.count("renew") - before <= 6
    for task in tasks:
        task.go_on.set()
    await asyncio.gather(*calls)


@pytest.mark.parametrize("threaded", [True, False])
async def test_a_failed_beat_is_tried_again_soon(store: RunStore, threaded: bool) -> None:
    trouble, task = Trouble(), Hanging()
    watched = in_trouble(store, trouble, threaded=threaded)
    keep_leases(watched, beat_ms=BEAT_MS)
    call = asyncio.create_task(run(watched, task))
    await within(task.begun.wait())
    await until(lambda: is_in(store, "running"))
    trouble.failures_left = 2
    await until(lambda: trouble.failures == 2)
    await moves(store)
    task.go_on.set()
    assert (await within(call)).record.epoch == 1


@pytest.mark.parametrize(
    ("lease_ms", "beat_ms", "soon_ms"), [(15_000, 5_000, 1_000), (600, 200, 50)]
)
async def test_soon_is_a_second_or_a_quarter_of_a_beat(
    store: RunStore, lease_ms: int, beat_ms: int, soon_ms: int
) -> None:
    keeper = keeper_of(store)
    held = keeper.hold(await hold(store, handler=None), lease_ms, lambda: None)
    assert keeper._next_pause_ms() == beat_ms
    keeper._note_failure(StoreUnavailableError("the store is away"))
    assert keeper._next_pause_ms() == soon_ms
    keeper.let_go(held)


async def test_an_error_that_nobody_expects_does_not_stop_the_heartbeat(store: RunStore) -> None:
    class Odd(Trouble):
        def trip(self) -> None:
            if self.failures_left > 0:
                self.failures_left -= 1
                self.failures += 1
                raise ZeroDivisionError("a bug in a driver")

    trouble, task = Odd(), Hanging()
    watched = ThreadedTroubledStore(store, trouble)
    keep_leases(watched, beat_ms=BEAT_MS)
    call = asyncio.create_task(run(watched, task))
    await within(task.begun.wait())
    trouble.failures_left = 1
    await until(lambda: trouble.failures == 1)
    await moves(store)
    task.go_on.set()
    await within(call)


@pytest.mark.parametrize("threaded", [True, False])
async def test_a_heartbeat_that_gets_no_answer_interrupts_the_work_in_time(
    store: RunStore, threaded: bool
) -> None:
    trouble, task = Trouble(), Hanging()
    watched = in_trouble(store, trouble, threaded=threaded)
    call = asyncio.create_task(run(watched, task, lease_ms=LEASE_MS))
    await within(task.begun.wait())
    trouble.is_down = True
    with pytest.raises(LeaseLostError):
        await within(call)
    assert task.interrupted
    found = await read(store)
    assert found.state == "running", "the run is left to the next worker"


@pytest.mark.parametrize("threaded", [True, False])
async def test_a_heartbeat_notices_a_takeover(handles: Handles, threaded: bool) -> None:
    store = await handles.open(clock=handles.clock)
    other = await handles.open(clock=handles.clock)
    watched = in_trouble(store, Trouble(), threaded=threaded)
    keep_leases(watched, beat_ms=20)
    task = Hanging()
    call = asyncio.create_task(run(watched, task))
    await within(task.begun.wait())
    await _visible(store)
    handles.clock.advance(60_000)
    try:
        await hold(other, handler=None)
    except LeaseHeldError:
        # The beat was faster than we; the next time it will not be.
        handles.clock.advance(60_000)
        await hold(other, handler=None)
    with pytest.raises(LeaseLostError):
        await within(call)
    assert task.interrupted


async def _visible(store: RunStore) -> None:
    """Return when the second step is recorded as running, so that no more is written."""

    async def is_visible() -> bool:
        return [one.status for one in await store.read_steps("run")] == ["completed", "running"]

    await until(is_visible)


@pytest.mark.parametrize("threaded", [True, False])
async def test_a_heartbeat_brings_the_news_of_a_stop(store: RunStore, threaded: bool) -> None:
    watched = in_trouble(store, Trouble(), threaded=threaded)
    keep_leases(watched, beat_ms=20)
    task = Hanging()
    call = asyncio.create_task(run(watched, task))
    await within(task.begun.wait())
    await _visible(store)
    await store.request_stop("run")
    with pytest.raises(Exception, match="stopped"):
        await within(call)
    assert task.interrupted
