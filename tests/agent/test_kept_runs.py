"""Runs that keep something come to their end wherever a process dies, and whoever is second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from perdure.agent.kept_runs import LEASE_MS, keep_run
from perdure.agent.runtime_run import RuntimeRunRow, start_runtime_run
from perdure.agent.sessions import new_session
from perdure.agent.stored_rows import DurableRunRows
from perdure.agent.stored_sessions import DurableSessionStore, stored_name
from perdure.agent.stored_traces import DurableTraceStore
from perdure.core.changes import Change
from perdure.core.records import AgentTaskSpec, Lease, RunManifest, SessionKey, Written
from perdure.durable.retention import collect_garbage
from perdure.errors import SessionBusyError, StoreUnavailableError
from perdure.observe.trace_records import TraceRun
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.testing.faults import crash_everywhere
from perdure.testing.lab import StoreLab

MANIFEST = RunManifest("agent-sessions", AgentTaskSpec("s-1", "Keep what happens"))
SESSION = new_session("played", session_id="s-1")


def a_row() -> RuntimeRunRow:
    run = start_runtime_run(workspace_id="ws", task_spec=AgentTaskSpec("t", "Answer"), id="r")
    run.complete("completed")
    return run.to_row()


async def begin_session(store: RunStore) -> None:
    await DurableSessionStore(store, owner_id="ada").put(SESSION)


async def take_up_session(store: RunStore) -> None:
    for _ in range(3):
        sessions = DurableSessionStore(store, owner_id="ada")
        known = await sessions.get("s-1")
        assert await sessions.put_if(SESSION, known)


async def keep_row(store: RunStore) -> None:
    await DurableRunRows(store, owner_id="ada").upsert(a_row())


async def keep_trace(store: RunStore) -> None:
    traces = DurableTraceStore(store, owner_id="ada")
    await traces.append_run(TraceRun(run_id="r", scenario_id="s", started_at=1))


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("keep", [begin_session, take_up_session, keep_row, keep_trace])
async def test_the_run_of_whatever_is_kept_has_ended_wherever_a_process_died(
    keep: Callable[[RunStore], Awaitable[None]], kind: str, tmp_path: Path
) -> None:
    count = 0

    def new_lab() -> StoreLab:
        nonlocal count
        count += 1
        data, url = MemoryData(), f"sqlite:{tmp_path}/{count}.db"

        async def open_handle(clock: ManualClock, code_version: str | None) -> RunStore:
            if kind == "memory":
                return MemoryStore(data, clock=clock, code_version=code_version)
            return await open_store(url, durability="normal", clock=clock)

        return StoreLab(open_handle)

    async def kept(store: RunStore) -> set[str]:
        await keep(store)
        return {run.state for run in await store.list_runs()}

    report = await crash_everywhere(kept, new_lab)
    assert report.outcome == {"completed"}
    assert report.calls.count("write") == (3 if keep is take_up_session else 1)


async def test_a_session_is_held_by_a_lost_process_for_no_longer_than_a_lease() -> None:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    place = SessionKey("s", 3)
    await store.start_or_resume("lost", MANIFEST, worker_id="w", lease_ms=LEASE_MS, session=place)
    with pytest.raises(SessionBusyError):
        await keep_run(store, "next", MANIFEST, session=SessionKey("s", 4))
    assert not await keep_run(store, "lost", MANIFEST, session=place)
    clock.advance(LEASE_MS + 1)
    assert await keep_run(store, "next", MANIFEST, session=SessionKey("s", 4))
    assert [run.state for run in await store.list_runs()] == ["completed"] * 2


async def test_who_is_taken_for_lost_between_the_two_writes_finds_the_run_ended() -> None:
    clock = ManualClock()

    class Slow(MemoryStore):
        async def write(self, lease: Lease, *changes: Change) -> Written:
            clock.advance(LEASE_MS + 1)
            assert await keep_run(others, "r", MANIFEST, session=SessionKey("s", 0))
            return await super().write(lease, *changes)

    data = MemoryData()
    others = MemoryStore(data, clock=clock)
    assert await keep_run(Slow(data, clock=clock), "r", MANIFEST, session=SessionKey("s", 0))
    [run] = await others.list_runs()
    assert (run.state, run.epoch) == ("completed", 2)


@pytest.mark.parametrize("url", ["memory:", "sqlite:{}/runs.db"])
async def test_of_many_who_keep_at_once_none_fails_and_all_is_ended(
    url: str, tmp_path: Path
) -> None:
    store = await open_store(url.format(tmp_path))
    many = [DurableSessionStore(store) for _ in range(4)]
    await asyncio.gather(*(each.put(SESSION) for each in many))
    await asyncio.gather(*(keep_row(store) for _ in range(4)))
    runs = {run.run_id: run.state for run in await store.list_runs()}
    assert stored_name("s-1") in runs
    assert set(runs.values()) == {"completed"}
    await store.close()


@pytest.mark.parametrize("tenant", ["", "acme"])
async def test_what_a_lost_process_left_and_nobody_uses_is_ended_by_a_clean_up(
    tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, data = ManualClock(), MemoryData()
    store = MemoryStore(data, clock=clock)

    async def gone(lease: Lease, *changes: Change) -> Written:
        raise StoreUnavailableError("the process is gone")

    lost = MemoryStore(data, clock=clock).for_tenant(tenant)
    monkeypatch.setattr(lost, "write", gone)
    for keep in (begin_session, keep_row, keep_trace):
        with pytest.raises(StoreUnavailableError):
            await keep(lost)
    begun = store.for_tenant(tenant)
    await begun.start_or_resume("a task", MANIFEST, worker_id="w", lease_ms=LEASE_MS)

    async def states() -> list[tuple[str, str]]:
        return sorted((run.run_id[:12], run.state) for run in await begun.list_runs())

    before = await states()
    assert [state for _, state in before] == ["running"] * 4
    await collect_garbage(store)
    assert await states() == before, "its process may live"
    clock.advance(LEASE_MS + 1)
    await collect_garbage(store, dry_run=True)
    assert await states() == before
    await collect_garbage(store)
    assert [state for _, state in await states()].count("completed") == 3
    [left] = await begun.list_runs(state="running")
    assert left.run_id == "a task"
    await begin_session(begun)
    await keep_row(begun)
    await keep_trace(begun)
