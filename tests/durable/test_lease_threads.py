"""A blocked loop keeps its leases, a hung one loses them; heartbeats come and go."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import pytest

from perdure.core.effects import iso_time, monotonic_ms, system_clock
from perdure.core.records import Lease
from perdure.durable import lease as leases
from perdure.durable.context import DurableContext
from perdure.durable.lease import HeldLease, LeaseKeeper, keep_leases, keeper_of
from perdure.errors import LeaseHeldError, LeaseLostError
from perdure.store.protocol import RunStore
from perdure.testing.samples import hold
from tests.durable.handles import (
    MANIFEST,
    Handles,
    moves,
    read,
    run,
    until,
    within,
)

LEASE_MS = 300
BEAT_MS = 10
BLOCKED_LEASE_MS = 600
"""Long enough for a heartbeat on a busy machine, short enough for a test to outlast."""


async def test_a_blocked_loop_keeps_its_lease(handles: Handles) -> None:
    store = await handles.open()

    def block() -> str:
        time.sleep(2.5 * BLOCKED_LEASE_MS / 1_000)
        return "slept"

    async def task(context: DurableContext) -> str:
        return await context.step("work", block)

    def compete() -> None:
        try:
            asyncio.run(_try_to_claim(handles, outcomes, done))
        except Exception as error:
            outcomes.append(repr(error))

    outcomes: list[str] = []
    done = threading.Event()
    rival = threading.Thread(target=compete)
    rival.start()
    try:
        result = await run(store, task, lease_ms=BLOCKED_LEASE_MS)
    finally:
        done.set()
        await asyncio.to_thread(rival.join)
    assert (result.result, result.record.epoch) == ("slept", 1)
    assert "held" in outcomes
    assert set(outcomes) <= {"held", "over"}


async def _try_to_claim(handles: Handles, outcomes: list[str], done: threading.Event) -> None:
    """Try to take the run from another thread, as another process would."""
    store = await handles.open_alone()
    try:
        while not done.is_set():
            found = await store.read_run("run")
            if found is not None and found.lease_holder_id is not None:
                try:
                    claim = await store.start_or_resume("run", MANIFEST, worker_id="rival")
                except LeaseHeldError:
                    outcomes.append("held")
                else:
                    outcomes.append("taken" if claim.lease else "over")
            await asyncio.sleep(0.01)
    finally:
        await store.close()


async def test_a_hung_loop_loses_its_lease(store: RunStore) -> None:
    keep_leases(store, beat_ms=20, stall_ms=100)

    async def task(context: DurableContext) -> object:
        return await context.step("work", lambda: time.sleep(1.0))

    with pytest.raises(LeaseLostError):
        await within(run(store, task, lease_ms=400))
    found = await read(store)
    assert found.state == "running"
    assert (found.lease_expires_at or "") < iso_time(system_clock())


class FrozenLoop:
    """A keeper's view of a loop that answers no ping."""

    def __init__(self) -> None:
        self.posted_ms: list[float] = []

    def call_soon_threadsafe(self, _callback: Callable[..., None], *_values: object) -> None:
        self.posted_ms.append(monotonic_ms())


async def test_a_keeper_renews_nothing_while_its_loop_does_not_answer(store: RunStore) -> None:
    renewed: list[float] = []
    keeper = LeaseKeeper(store, beat_ms=10, stall_ms=60)
    lease = await hold(store, handler=None)

    class Renewing:
        def renew(self, leases: Sequence[Lease], lease_ms: int) -> Mapping[Lease, bool]:
            renewed.append(monotonic_ms())
            return dict.fromkeys(leases, False)

        def close(self) -> None: ...

    store.open_renewer = Renewing  # type: ignore[attr-defined]  # the thread's own connection
    frozen = FrozenLoop()
    keeper._loop = frozen  # type: ignore[assignment]  # what it sees of the loop
    begun_ms = monotonic_ms()
    held = HeldLease(lease, 15_000, lambda: None, granted_ms=begun_ms)
    keeper._held[lease] = held
    keeper._answered_ms = begun_ms
    keeper._start()
    try:
        await until(lambda: len(frozen.posted_ms) > 30)
    finally:
        keeper.let_go(held)
    assert renewed
    assert max(renewed) < frozen.posted_ms[-8], "it keeps asking, and has stopped renewing"


async def test_all_runs_of_a_handle_share_one_keeper(handles: Handles) -> None:
    store, other = await handles.open(), await handles.open()
    assert keeper_of(store) is keeper_of(store.for_tenant("acme"))
    assert keeper_of(store) is not keeper_of(other)


async def test_a_heartbeat_without_leases_ends_and_comes_back(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "IDLE_MS", 50)
    keeper = keep_leases(store, beat_ms=10)
    for run_id in ("one", "two"):
        lease = await hold(store, run_id, handler=None, lease_ms=LEASE_MS)
        held = keeper.hold(lease, LEASE_MS, lambda: None)
        assert not keeper.is_idle
        await moves(store, run_id)
        keeper.let_go(held)
        await until(lambda: keeper.is_idle)


async def test_an_idle_keeper_is_forgotten_unless_it_has_numbers_of_its_own(
    handles: Handles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "IDLE_MS", 50)
    monkeypatch.setattr(leases, "BEAT_MS", BEAT_MS)
    ordinary, special = await handles.open(), await handles.open()
    own = keep_leases(special, beat_ms=BEAT_MS + 1)
    default = keep_leases(ordinary, beat_ms=BEAT_MS)
    for store, keeper in ((ordinary, default), (special, own)):
        held = keeper.hold(await hold(store, repr(keeper), handler=None), 15_000, lambda: None)
        keeper.let_go(held)
    await until(lambda: keeper_of(ordinary) is not default)
    await until(lambda: own.is_idle)
    assert keeper_of(special) is own


async def test_a_machine_without_threads_renews_from_the_loop(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoThread(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    await store.read_run("run")  # A database starts threads of its own first.
    monkeypatch.setattr(threading, "Thread", NoThread)
    lease = await hold(store, handler=None, lease_ms=LEASE_MS)
    keeper = keep_leases(store, beat_ms=BEAT_MS)
    held = keeper.hold(lease, LEASE_MS, lambda: None)
    await moves(store)
    keeper.let_go(held)


async def test_a_lease_that_was_granted_long_ago_is_not_trusted(store: RunStore) -> None:
    lost = asyncio.Event()
    lease = await hold(store, handler=None)
    keeper = keeper_of(store)
    held = keeper.hold(lease, 15_000, lost.set, granted_ms=monotonic_ms() - 14_000)
    await within(lost.wait(), 1)
    keeper.let_go(held)


FORKING = """
    import asyncio, os, sys
    from perdure.store.memory import MemoryStore
    from perdure.durable.runner import run_durable
    from perdure.testing.samples import manifest

    async def work(context):
        async def body():
            for _ in range(200):
                found = await store.read_run("run")
                if found.lease_expires_at > first:
                    return "renewed"
                await asyncio.sleep(0.01)
        first = (await store.read_run("run")).lease_expires_at
        return await context.step("work", body)

    async def main():
        global store
        store = MemoryStore()
        done = await run_durable(
            store, run_id="run", manifest=manifest(), task=work, lease_ms=300
        )
        assert done.result == "renewed", done
        await store.close()

    asyncio.run(main())
    child = os.fork()
    if child == 0:
        asyncio.run(main())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_process_has_a_heartbeat_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORKING)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_heartbeat_ends_with_its_loop() -> None:
    async def main() -> threading.Thread | None:
        from perdure.store.memory import MemoryStore

        store = MemoryStore()
        keeper = keep_leases(store, beat_ms=10)
        keeper.hold(await hold(store, handler=None), 15_000, lambda: None)
        return keeper._thread

    thread = asyncio.run(main())
    assert thread is not None
    thread.join(5)
    assert not thread.is_alive()
