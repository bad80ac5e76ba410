"""Databases that others made: the reference's two versions, older ones of ours, and newer ones."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from pathlib import Path

import pytest

from perdure.core.effects import epoch_ms, iso_time, system_clock
from perdure.errors import SchemaError
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.store.sql.schema import (
    DURABLE_SCHEMA_SQL,
    DURABLE_SCHEMA_VERSION,
    own_migrations,
    split_statements,
)
from perdure.testing.samples import hold
from tests.store.sql import processes
from tests.store.sql.reference_database import (
    RUNS,
    add_version_2,
    connected,
    fill,
    old_rows,
    tables,
    trail,
)

WORDS = re.compile(r"CHECK \((\w+) IN \(([^)]+)\)\)")
PACKAGE = Path(__file__).parents[3] / "src/perdure/store/sql"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


async def opened(path: Path, *, migrate: bool | None = None) -> RunStore:
    return await open_store(f"sqlite:{path}", migrate=migrate)


async def open_and_close(path: Path) -> None:
    store = await opened(path)
    await store.close()


def test_the_constant_is_the_file_byte_for_byte() -> None:
    data = (PACKAGE / "migrations/001_reference.sql").read_bytes()
    assert DURABLE_SCHEMA_SQL.encode() == data
    assert DURABLE_SCHEMA_VERSION == 1


def test_every_migration_file_is_applied_and_in_order() -> None:
    files = sorted(file.stem for file in (PACKAGE / "migrations").glob("*.sql"))
    assert files == ["001_reference", *(migration.name for migration in own_migrations())]
    numbers = [migration.number for migration in own_migrations()]
    assert numbers == sorted(set(numbers))
    for migration in own_migrations():
        assert all(map(sqlite3.complete_statement, split_statements(migration.sql)))


def test_applying_version_1_twice_keeps_the_first_time(path: Path) -> None:
    with connected(path) as connection:
        connection.executescript(DURABLE_SCHEMA_SQL)
        connection.execute("UPDATE durable_schema_info SET applied_at = 'first'")
        connection.executescript(DURABLE_SCHEMA_SQL)
        rows = connection.execute("SELECT * FROM durable_schema_info").fetchall()
    assert rows == [(1, "first")]


async def test_a_column_takes_its_words_and_no_others_without_a_table_of_them(path: Path) -> None:
    await open_and_close(path)
    made = [DURABLE_SCHEMA_SQL, *(migration.sql for migration in own_migrations())]
    words = [found for sql in made for found in WORDS.findall(sql)]
    assert len(words) == 6
    store = await opened(path)
    await hold(store)
    await store.close()
    with connected(path) as connection:
        insert = "EXPLAIN INSERT INTO durable_steps (run_id, step_index, intent, kind, status)"
        program = connection.execute(f"{insert} VALUES ('run', 0, 'x', 'logic', 'completed')")
        assert "OpenEphemeral" not in {operation for _, operation, *_ in program}
        texts = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table'").fetchall()
        checks = [check for (text,) in texts for check in re.findall(r"CHECK \(.+\)", text)]
        assert len(checks) == 6
        for word in ("suspended", "completed"):
            connection.execute("UPDATE durable_runs SET status = ?", (word,))
        for wrong in ("", "Completed", "done"):
            with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
                connection.execute("UPDATE durable_runs SET status = ?", (wrong,))
    for column, listed in words:
        spelled = [f"{column} = {word.strip()}" for word in listed.split(",")]
        assert f"CHECK ({' OR '.join(spelled)})" in {check.rstrip(",") for check in checks}


async def test_a_new_database_is_version_1_and_every_own_migration(path: Path) -> None:
    before = system_clock()
    await open_and_close(path)
    assert trail(path) == [(each.number, each.name, each.sha256) for each in own_migrations()]
    with connected(path) as connection:
        ((version, applied_at),) = connection.execute("SELECT * FROM durable_schema_info")
        moments = connection.execute("SELECT DISTINCT applied_at FROM perdure_schema").fetchall()
        columns = {row[1] for row in connection.execute("PRAGMA table_info(durable_runs)")}
    assert version == 1
    assert [iso_time(epoch_ms(moment)) for (moment,) in moments] == [
        moment for (moment,) in moments
    ]
    assert before <= epoch_ms(applied_at) <= system_clock()
    assert "handle_json" not in columns
    assert "durable_stream_events" not in tables(path)


async def test_opening_again_writes_nothing(path: Path) -> None:
    await open_and_close(path)
    with connected(path) as other:
        other.execute("BEGIN IMMEDIATE")
        await open_and_close(path)
        other.execute("ROLLBACK")


@pytest.mark.parametrize("version", [1, 2])
async def test_what_a_typescript_worker_left_stays_as_it_is(path: Path, version: int) -> None:
    fill(path)
    if version == 2:
        add_version_2(path)
    before = old_rows(path)
    await open_and_close(path)
    assert old_rows(path) == before
    with connected(path) as connection:
        (highest,) = connection.execute("SELECT max(version) FROM durable_schema_info").fetchone()
        assert highest == version
        if version == 2:
            handles = connection.execute(
                "SELECT handle_json FROM durable_runs WHERE handle_json IS NOT NULL"
            ).fetchall()
            assert handles == [('{"kind":"sandbox","status":"running"}',)]
            (events,) = connection.execute("SELECT count(*) FROM durable_stream_events").fetchone()
            assert events == 1
    assert len(trail(path)) == len(own_migrations())


async def test_many_handles_may_open_an_old_database_at_once(path: Path) -> None:
    fill(path)
    stores = await asyncio.gather(*(opened(path) for _ in range(8)))
    assert len(trail(path)) == len(own_migrations())
    for store in stores:
        assert len(await store.list_runs()) == len(RUNS)
        await store.close()


@pytest.mark.parametrize("is_new", [True, False])
def test_two_processes_may_open_a_database_at_once(path: Path, is_new: bool) -> None:
    if not is_new:
        fill(path)
    children = [processes.start("open_and_leave", path) for _ in range(3)]
    processes.start_together(children)
    assert [processes.output(child) for child in children] == [["None"]] * 3
    assert len(trail(path)) == len(own_migrations())


async def test_a_newer_version_of_the_reference_is_refused(path: Path) -> None:
    fill(path)
    with connected(path) as connection:
        connection.execute("INSERT INTO durable_schema_info VALUES (3, 'later')")
    before = tables(path)
    with pytest.raises(SchemaError, match="version 3"):
        await opened(path)
    assert tables(path) == before


async def test_a_database_of_a_newer_version_is_refused(path: Path) -> None:
    await open_and_close(path)
    with connected(path) as connection:
        connection.execute("INSERT INTO perdure_schema VALUES (199, '199_later', 'x', 'later')")
    with pytest.raises(SchemaError, match="newer version of perdure"):
        await opened(path)


async def test_a_released_migration_that_was_changed_is_noticed(path: Path) -> None:
    await open_and_close(path)
    with connected(path) as connection:
        connection.execute("UPDATE perdure_schema SET sha256 = 'other' WHERE number = 101")
    with pytest.raises(SchemaError, match="101"):
        await opened(path)


async def test_without_migrate_an_old_database_is_refused_and_left_alone(path: Path) -> None:
    fill(path)
    before = tables(path)
    with pytest.raises(SchemaError, match="101_runs, 102_own_tables"):
        await opened(path, migrate=False)
    assert tables(path) == before
    await open_and_close(path)
    store = await opened(path, migrate=False)
    await store.close()


async def test_a_migration_that_fails_leaves_nothing_behind(path: Path) -> None:
    fill(path)
    with connected(path) as connection:
        connection.execute("ALTER TABLE durable_steps ADD COLUMN effect TEXT")
    before = old_rows(path), tables(path)
    with pytest.raises(SchemaError, match=r"101_runs cannot be applied: duplicate column.*effect"):
        await opened(path)
    assert (old_rows(path), tables(path)) == before
    with connected(path) as connection:
        columns = {row[1] for row in connection.execute("PRAGMA table_info(durable_runs)")}
    assert "tenant" not in columns


async def test_a_table_that_was_lost_is_a_schema_error(path: Path) -> None:
    store = await opened(path)
    with connected(path) as connection:
        connection.execute("DROP TABLE perdure_attempts")
    with pytest.raises(SchemaError, match="perdure_attempts"):
        await hold(store)
    await store.close()
