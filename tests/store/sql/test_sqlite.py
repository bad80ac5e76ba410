"""The SQLite driver: commits that many share, one that fails, and what ends a handle."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from perdure.errors import (
    StoreBusyError,
    StoreCorruptError,
    StoreUnavailableError,
    UsageError,
)
from perdure.store.opening import open_store
from perdure.store.sql.database import Refused, Statement
from perdure.store.sql.sqlite import Sqlite
from perdure.store.sql.sqlite_connection import PAGE_BYTES
from perdure.testing.samples import completed, hold
from tests.store.sql import processes


def known(session_id: str) -> list[Statement]:
    """Return a list that makes a session known: the smallest write there is."""
    return [Statement("lock_session", ("", session_id, None), required=True)]


def look(session_id: str) -> list[Statement]:
    return [Statement("read_session", ("", session_id))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Sqlite]:
    database = Sqlite(path, patience_ms=200)
    yield database
    await database.close()


def log_of(path: Path) -> list[Path]:
    return list(path.parent.glob("*-wal"))


def damage(path: Path) -> None:
    """Overwrite all of a closed database but its first pages."""
    data = bytearray(path.read_bytes())
    data[2 * PAGE_BYTES :] = b"\xaa" * (len(data) - 2 * PAGE_BYTES)
    path.write_bytes(data)


async def is_known(database: Sqlite, session_id: str) -> bool:
    (rows,) = await database.read(look(session_id))
    return bool(rows)


async def test_what_waits_shares_one_commit(database: Sqlite) -> None:
    await database.open()
    before = database.commits
    await asyncio.gather(*(database.run(known(f"s-{number}")) for number in range(500)))
    assert 1 <= database.commits - before <= 20
    assert all([await is_known(database, f"s-{number}") for number in range(500)])


async def test_writes_of_one_caller_happen_in_order(database: Sqlite) -> None:
    await database.run(known("s"))
    writes = [
        database.run([Statement("open_session", ("", "s", f"run-{number}"))])
        for number in range(1_000)
    ]
    await asyncio.gather(*writes)
    ((row,),) = await database.read(look("s"))
    assert row[1] == "run-999"


async def test_a_refused_list_is_undone_alone(database: Sqlite) -> None:
    await database.open()
    refused = [*known("refused"), Statement("lock_run", ("nobody",), required=True)]
    lists = [known(f"s-{number}") for number in range(100)]
    lists[50:50] = [refused]
    answers = await asyncio.gather(*map(database.run, lists), return_exceptions=True)
    refusal = answers.pop(50)
    assert isinstance(refusal, Refused)
    assert refusal.index == 1
    assert answers == [[[(None,)]]] * 100
    assert not await is_known(database, "refused")
    assert all([await is_known(database, f"s-{number}") for number in range(100)])


@pytest.mark.parametrize("value", ["\ud800", 2**70])
async def test_a_value_that_cannot_be_stored_fails_its_own_list_alone(
    database: Sqlite, value: str | int
) -> None:
    await database.open()
    lists = [known("before"), [Statement("lock_session", ("", "bad", value))], known("behind")]
    answers = await asyncio.gather(*map(database.run, lists), return_exceptions=True)
    assert [type(answer) for answer in answers] == [list, UsageError, list]
    assert await is_known(database, "before")
    assert await is_known(database, "behind")
    assert not await is_known(database, "bad")


async def test_a_cancelled_caller_cannot_withdraw_its_write(database: Sqlite) -> None:
    await database.open()
    write = database.run(known("s"))
    write.cancel()
    await database.run(known("other"))
    assert await is_known(database, "s")


async def test_a_read_sees_every_write_that_was_acknowledged(database: Sqlite) -> None:
    for number in range(200):
        await database.run(known(f"s-{number}"))
        assert await is_known(database, f"s-{number}")


async def test_a_write_waits_for_another_process_and_gives_up_in_time(
    path: Path, database: Sqlite
) -> None:
    await database.open()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusyError, match="write lock"):
        await database.run(known("refused"))
    assert not await is_known(database, "refused")
    write = database.run(known("patient"))
    other.execute("COMMIT")
    other.close()
    await write
    assert await is_known(database, "patient")


async def test_a_locked_database_is_busy_for_all_who_wait(path: Path, database: Sqlite) -> None:
    await database.open()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writes = (database.run(known(f"s-{number}")) for number in range(50))
    async with asyncio.timeout(20):
        answers = await asyncio.gather(*writes, return_exceptions=True)
    other.execute("ROLLBACK")
    other.close()
    assert {type(answer) for answer in answers} == {StoreBusyError}
    assert len({id(answer) for answer in answers}) == 50


async def test_readers_do_not_wait_for_a_writer(path: Path, database: Sqlite) -> None:
    await database.run(known("s"))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    other.execute("DELETE FROM perdure_sessions")
    assert await is_known(database, "s")
    other.execute("ROLLBACK")
    other.close()


async def test_a_reading_connection_cannot_write(database: Sqlite) -> None:
    with pytest.raises(StoreUnavailableError, match="cannot be written"):
        await database.read(known("s"))
    await database.run(known("s"))


async def test_a_write_of_another_handle_is_noticed_and_an_own_one_is_not(
    path: Path, database: Sqlite
) -> None:
    other = Sqlite(path)
    await other.open()
    noticed: list[bool] = []
    changed = asyncio.Event()

    def change() -> None:
        noticed.append(True)
        changed.set()

    database.watch(change, interval_ms=1)
    for number in range(100):
        await database.run(known(f"own-{number}"))
    await other.run(known("foreign"))
    async with asyncio.timeout(20):
        await changed.wait()
    assert len(noticed) == 1
    await other.close()


async def test_a_write_that_happened_while_nobody_watched_is_noticed(
    path: Path, database: Sqlite
) -> None:
    await database.open()
    other = Sqlite(path)
    await other.run(known("foreign"))
    await other.close()
    changed = asyncio.Event()
    database.watch(changed.set, interval_ms=60_000)
    async with asyncio.timeout(20):
        await changed.wait()


async def test_a_handle_belongs_to_one_event_loop(database: Sqlite) -> None:
    await database.open()
    calls = (
        lambda: database.run(known("s")),
        lambda: database.read(look("s")),
        database.open,
    )
    for call in calls:
        with pytest.raises(UsageError, match="one event loop"):
            await asyncio.to_thread(asyncio.run, _awaited(call))
    assert not await is_known(database, "s")


async def _awaited(call: object) -> None:
    assert callable(call)
    await call()


async def test_closing_finishes_what_was_accepted(path: Path) -> None:
    database = Sqlite(path)
    await database.open()
    writes = [database.run(known(f"s-{number}")) for number in range(200)]
    await database.close()
    assert all(write.done() for write in writes)
    assert not log_of(path)
    for call in (lambda: database.run(known("late")), lambda: database.read(look("late"))):
        with pytest.raises(StoreUnavailableError, match="closed"):
            await call()
    await database.close()
    again = Sqlite(path)
    assert all([await is_known(again, f"s-{number}") for number in range(200)])
    assert not await is_known(again, "late")
    await again.close()


async def test_a_handle_that_is_dropped_ends_its_threads(path: Path) -> None:
    before = set(threading.enumerate())
    database = Sqlite(path)
    await database.run(known("s"))
    assert await is_known(database, "s")
    threads = set(threading.enumerate()) - before
    assert len(threads) == 3
    del database
    gc.collect()
    for thread in threads:
        await asyncio.to_thread(thread.join, 20)
        assert not thread.is_alive()


async def test_an_empty_list_takes_no_lock(path: Path, database: Sqlite) -> None:
    await database.open()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    second = Sqlite(path, patience_ms=0)
    await second.open()
    assert await second.run([]) == []
    await second.close()
    other.close()


async def test_what_is_not_a_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear Ann, " * 1_000)
    database = Sqlite(path)
    for _ in range(2):
        with pytest.raises(StoreCorruptError, match="not a SQLite database"):
            await database.run(known("s"))
    with pytest.raises(StoreCorruptError):
        await database.read(look("s"))
    await database.close()
    assert path.read_text().startswith("Dear Ann")


async def test_a_damaged_file_is_told_from_a_busy_one(path: Path) -> None:
    database = Sqlite(path)
    await asyncio.gather(*(database.run(known(f"s-{number}")) for number in range(500)))
    await database.close()
    damage(path)
    damaged = Sqlite(path)
    with pytest.raises(StoreCorruptError, match="damaged"):
        await damaged.run(known("s"))
    await damaged.close()


async def test_a_file_that_cannot_be_made_is_unavailable() -> None:
    database = Sqlite("/proc/perdure.db")
    with pytest.raises(StoreUnavailableError, match="cannot be opened"):
        await database.open()
    await database.close()


def test_a_failed_write_of_the_file_system_ends_the_handle(path: Path) -> None:
    lines = processes.output(processes.start("break_the_disk", path))
    assert lines == ["['StoreUnavailableError']", "dead", "dead", "dead"]


def test_a_handle_does_not_survive_a_fork(path: Path) -> None:
    lines = processes.output(processes.start("fork", path))
    assert "fork" in lines[0]
    assert lines[1] == "the parent goes on"


async def test_two_processes_write_thousands_of_steps_side_by_side(path: Path) -> None:
    count = 1_500
    children = [processes.start("write_steps", path, f"run-{n}", count) for n in range(2)]
    processes.start_together(children)
    for child in children:
        assert processes.output(child) == [str(position) for position in range(count)]
    store = await open_store(f"sqlite:{path}")
    for number in range(2):
        steps = await store.read_steps(f"run-{number}")
        assert [step.result for step in steps] == list(range(count))
    await store.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


async def test_of_two_processes_that_claim_at_once_one_gets_each_run(path: Path) -> None:
    children = [processes.start("claim_all", path, f"worker-{n}", 200) for n in range(2)]
    processes.start_together(children)
    got = [line.split(",") for child in children for line in processes.output(child)]
    claimed = [run_id for ids in got for run_id in ids if run_id]
    assert sorted(claimed) == sorted(f"run-{number}" for number in range(200))


async def test_what_was_acknowledged_survives_a_kill(path: Path) -> None:
    child = processes.start("write_steps", path, "run", 100_000)
    processes.start_together([child])
    acknowledged = -1
    for _ in range(300):
        acknowledged = int(processes.next_line(child))
    os.kill(child.pid, signal.SIGKILL)
    acknowledged = max([acknowledged, *map(int, processes.rest_of(child))])
    store = await open_store(f"sqlite:{path}")
    steps = await store.read_steps("run")
    assert [step.result for step in steps] == list(range(len(steps)))
    assert len(steps) in (acknowledged + 1, acknowledged + 2)
    await store.close()


async def test_a_store_goes_on_while_another_process_writes(path: Path) -> None:
    store = await open_store(f"sqlite:{path}")
    child = processes.start("write_steps", path, "theirs", 500)
    processes.start_together([child])
    lease = await hold(store, "ours")
    for position in range(500):
        await store.write(lease, completed(position, position))
    assert len(processes.output(child)) == 500
    assert len(await store.read_steps("ours")) == len(await store.read_steps("theirs")) == 500
    await store.close()
