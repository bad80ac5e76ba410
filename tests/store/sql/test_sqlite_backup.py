"""Copies of a database that is in use, made as the guide says: whole, and good to go on with."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

import perdure
from perdure.core.transitions import RESTING_STATES
from tests.store.sql import processes
from tests.store.sql.reference_database import connected

STEPS = 12
RUNS = 60
LEASE_MS = 1_000
MANIFEST = perdure.RunManifest("lab", perdure.AgentTaskSpec(id="count", intent="count to twelve"))
Copy = Callable[[Path, Path], None]


def by_backup(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as live, closing(sqlite3.connect(target)) as copy:
        live.backup(copy)


def by_vacuum(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as live:
        live.execute("VACUUM INTO ?", (str(target),))


@pytest.fixture(params=[by_backup, by_vacuum])
def copy(request: pytest.FixtureRequest) -> Copy:
    made: Copy = request.param
    return made


def counting(executed: list[str]) -> Callable[[perdure.DurableContext], Awaitable[int]]:
    async def count(context: perdure.DurableContext) -> int:
        total = 0
        for number in range(STEPS):

            def act(number: int = number) -> int:
                executed.append(f"{context.run_id} {number}")
                return number * number

            total += await context.step(f"step {number}", act)
        return total

    return count


@asynccontextmanager
async def at_work(path: Path, executed: list[str]) -> AsyncIterator[perdure.RunStore]:
    """Yield a store whose worker counts, until the block ends."""
    store = await perdure.open_store(f"sqlite:{path}")
    worker = perdure.Worker(store, tasks={"count": counting(executed)}, lease_ms=LEASE_MS)
    working = asyncio.ensure_future(worker.run())
    try:
        yield store
    finally:
        await worker.drain()
        await working
        await store.close()


async def all_ended(store: perdure.RunStore) -> None:
    async with asyncio.timeout(60):
        while any(run.state not in RESTING_STATES for run in await store.list_runs(limit=2 * RUNS)):
            await store.wait_for_change(None, timeout_ms=100)


async def test_a_copy_made_while_workers_write_is_whole_and_goes_on(
    tmp_path: Path, copy: Copy
) -> None:
    live, restored = tmp_path / "live.db", tmp_path / "restored.db"
    executed: list[str] = []
    async with at_work(live, executed) as store:
        for number in range(RUNS):
            await store.enqueue(f"run {number}", MANIFEST, handler="count")
        async with asyncio.timeout(30):
            while len(executed) < RUNS:
                await store.wait_for_change(None, timeout_ms=50)
        await asyncio.to_thread(copy, live, restored)
        await all_ended(store)

    with connected(restored) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        done = connection.execute(
            "SELECT run_id, step_index FROM durable_steps WHERE status = 'completed'"
        ).fetchall()
    again: list[str] = []
    async with at_work(restored, again) as store:
        await all_ended(store)
        runs = await store.list_runs(limit=2 * RUNS)
        assert {run.state for run in runs} == {"completed"}
    assert again, "the copy was made when all was over"
    assert not {f"{run_id} {position}" for run_id, position in done} & set(again)
    assert len(done) + len(set(again)) == len(runs) * STEPS


async def test_a_copy_put_in_the_place_of_the_old_file_is_what_is_read(
    tmp_path: Path, copy: Copy
) -> None:
    path = tmp_path / "perdure.db"
    store = await perdure.open_store(f"sqlite:{path}")
    await store.enqueue("before", MANIFEST, handler="count")
    await asyncio.to_thread(copy, path, tmp_path / "backup.db")
    await store.close()
    # A process that is killed leaves its log behind, with what the backup does not have.
    child = processes.start("write_steps", path, "behind", 100_000)
    processes.start_together([child])
    assert processes.next_line(child) == "0"
    child.kill()
    processes.rest_of(child)
    assert (tmp_path / "perdure.db-wal").stat().st_size > 0

    for name in ("perdure.db", "perdure.db-wal", "perdure.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "backup.db").rename(path)
    store = await perdure.open_store(f"sqlite:{path}")
    assert [run.run_id for run in await store.list_runs()] == ["before"]
    await store.close()
