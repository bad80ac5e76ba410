"""Databases that others made: the reference's two versions, older ones of ours, and newer ones."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from perdure.core.effects import epoch_ms, iso_time, system_clock
from perdure.core.identity import manifest_hash
from perdure.core.records import RunOutcome, SessionKey, StepError
from perdure.errors import (
    LeaseHeldError,
    LeaseLostError,
    RunInputMismatchError,
    SchemaError,
)
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.store.sql.schema import (
    DURABLE_SCHEMA_SQL,
    DURABLE_SCHEMA_VERSION,
    own_migrations,
    split_statements,
)
from perdure.testing.samples import completed, ended, hold, manifest
from tests.store.sql import processes

PACKAGE = Path(__file__).parents[3] / "src/perdure/store/sql"

HASH = manifest_hash(manifest())
LONG_AGO = "2026-01-31T09:05:07.042Z"
FAR = "2999-01-01T00:00:00.000Z"

# (run id, status, holder, deadline, completed at, outcome, step count), as a TypeScript worker
# leaves them: a failed run keeps its completion time, a crashed one its lease.
RUNS = [
    ("chat:team:7:0", "completed", None, None, LONG_AGO, '{"notes":"turn"}', 1),
    ("chat:team:7:1", "running", "ts:1", LONG_AGO, None, None, 1),
    ("lapsed", "running", "ts:1", LONG_AGO, None, None, 3),
    ("live", "running", "ts:2", FAR, None, None, 0),
    ("released", "running", None, None, None, None, 0),
    ("broken", "failed", None, None, LONG_AGO, '{"pass":false,"notes":"It broke"}', 1),
    ("done", "completed", None, None, LONG_AGO, '{"pass":true,"score":0.5}', 1),
]
# (run id, position, status, attempts, result, error)
STEPS = [
    ("chat:team:7:0", 0, "completed", 1, '{"finalText":"Good morning"}', None),
    ("chat:team:7:1", 0, "running", 1, None, None),
    ("lapsed", 0, "completed", 1, "1", None),
    ("lapsed", 1, "completed", 2, '{"ü":["\\u2028",null]}', None),
    ("lapsed", 2, "running", 1, None, None),
    ("broken", 0, "failed", 3, None, '{"message":"It broke","code":"E_BROKEN","stack":"at x"}'),
    ("done", 0, "completed", 1, "null", None),
]

OLD_COLUMNS = {
    "durable_runs": "run_id, manifest_hash, project_id, scenario_id, status, created_at, "
    "updated_at, completed_at, lease_holder_id, lease_expires_at, outcome_json, step_count",
    "durable_steps": "run_id, step_index, intent, kind, input_hash, status, attempts, "
    "result_json, error_json, started_at, completed_at",
    "durable_events": "run_id, key, payload_json, emitted_at",
}


@contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def fill(path: Path) -> None:
    """Make a database of version 1 with all that a TypeScript worker leaves in one."""
    with connected(path) as connection:
        connection.executescript(DURABLE_SCHEMA_SQL)
        for run_id, status, holder, deadline, ended_at, outcome, count in RUNS:
            connection.execute(
                "INSERT INTO durable_runs VALUES (?, ?, 'lab', NULL, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(run_id, HASH, status, LONG_AGO, LONG_AGO, ended_at),
                    *(holder, deadline, outcome, count),
                ),
            )
        for run_id, position, status, attempts, result, error in STEPS:
            connection.execute(
                "INSERT INTO durable_steps VALUES (?, ?, ?, 'logic', '', ?, ?, ?, ?, ?, NULL)",
                (
                    *(run_id, position, f"step-{position}", status),
                    *(attempts, result, error, LONG_AGO),
                ),
            )
        connection.execute(
            "INSERT INTO durable_events VALUES ('lapsed', 'go', '{\"by\":\"ts\"}', ?)", (LONG_AGO,)
        )


def add_version_2(path: Path) -> None:
    """Bring a database to the schema of the reference's next release."""
    with connected(path) as connection:
        connection.executescript(
            """
            ALTER TABLE durable_runs ADD COLUMN handle_json TEXT;
            CREATE TABLE durable_stream_events (
              run_id TEXT NOT NULL, seq INTEGER NOT NULL, event_id TEXT NOT NULL,
              payload_json TEXT, appended_at TEXT NOT NULL, PRIMARY KEY (run_id, seq));
            CREATE UNIQUE INDEX idx_durable_stream_events_event_id
              ON durable_stream_events (run_id, event_id);
            INSERT INTO durable_schema_info VALUES (2, '2026-02-01T00:00:00.000Z');
            UPDATE durable_runs SET handle_json = '{"kind":"sandbox","status":"running"}'
              WHERE run_id = 'lapsed';
            INSERT INTO durable_stream_events
              VALUES ('lapsed', 0, 'e', '{}', '2026-02-01T00:00:00.000Z');
            """
        )


def old_rows(path: Path, run_id: str | None = None) -> dict[str, list[tuple[object, ...]]]:
    """Return all that somebody sees who knows the columns of version 1 only."""
    with connected(path) as connection:
        return {
            table: connection.execute(
                f"SELECT {columns} FROM {table} WHERE ?1 IS NULL OR run_id = ?1 ORDER BY 1, 2",
                (run_id,),
            ).fetchall()
            for table, columns in OLD_COLUMNS.items()
        }


def trail(path: Path) -> list[tuple[int, str, str]]:
    with connected(path) as connection:
        rows: list[tuple[int, str, str]] = connection.execute(
            "SELECT number, name, sha256 FROM perdure_schema ORDER BY number"
        ).fetchall()
    return rows


def tables(path: Path) -> set[str]:
    with connected(path) as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {name for (name,) in rows}


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


@pytest.mark.parametrize("version", [1, 2])
async def test_a_crashed_run_of_a_typescript_worker_is_resumed(path: Path, version: int) -> None:
    fill(path)
    if version == 2:
        add_version_2(path)
    store = await opened(path)
    claim = await store.start_or_resume("lapsed", manifest(), worker_id="ann", handler="letters")
    assert claim.lease is not None
    assert (claim.run.epoch, claim.run.strikes, claim.run.state) == (1, 1, "running")
    assert claim.run.manifest == manifest()
    assert claim.run.handler == "letters"
    assert [step.result for step in claim.steps] == [1, {"ü": ["\u2028", None]}, None]
    assert [step.status for step in claim.steps] == ["completed", "completed", "running"]
    event = await store.load_event("lapsed", "go")
    assert event is not None
    assert event.payload == {"by": "ts"}
    await store.write(claim.lease, completed(2, "from here", tries=2), ended())
    await store.close()
    old = old_rows(path, "lapsed")
    ((*_, holder, deadline, outcome, count),) = old["durable_runs"]
    assert (holder, deadline, count) == (None, None, 3)
    assert outcome == '{"pass": true, "notes": "well"}'
    assert [row[5:8] for row in old["durable_steps"]] == [
        ("completed", 1, "1"),
        ("completed", 2, '{"ü":["\\u2028",null]}'),
        ("completed", 2, '"from here"'),
    ]


async def test_runs_without_a_lease_are_claimed_without_a_strike(path: Path) -> None:
    fill(path)
    store = await opened(path)
    claim = await store.start_or_resume("released", manifest(), worker_id="ann")
    assert claim.lease is not None
    assert claim.run.strikes == 0
    await store.close()


async def test_a_live_lease_of_a_typescript_worker_is_respected(path: Path) -> None:
    fill(path)
    store = await opened(path)
    before = old_rows(path)
    with pytest.raises(LeaseHeldError, match=FAR):
        await hold(store, "live")
    with pytest.raises(RunInputMismatchError):
        await store.start_or_resume("live", manifest("another"), worker_id="ann")
    assert old_rows(path) == before
    await store.close()


async def test_finished_runs_are_replayed_without_a_write(path: Path) -> None:
    fill(path)
    store = await opened(path)
    before = old_rows(path)
    with connected(path) as other:
        # Whoever wanted to write would have to wait for this lock.
        other.execute("BEGIN IMMEDIATE")
        done = await store.start_or_resume("done", manifest(), worker_id="ann")
        turn = await store.start_or_resume(
            "chat:team:7:0", manifest(), worker_id="ann", session=SessionKey("team:7", 0)
        )
        broken = await store.start_or_resume("broken", manifest(), worker_id="ann")
        other.execute("ROLLBACK")
    assert done.lease is turn.lease is broken.lease is None
    assert done.run.outcome == RunOutcome(passed=True, score=0.5)
    assert turn.steps[0].result == {"finalText": "Good morning"}
    assert broken.run.state == "failed"
    assert broken.steps[0].error == StepError("It broke", code="E_BROKEN", stack="at x")
    assert old_rows(path) == before
    await store.close()


async def test_a_failed_run_goes_on_with_retry(path: Path) -> None:
    fill(path)
    store = await opened(path)
    lease = await hold(store, "broken", retry=True)
    run = await store.read_run("broken")
    assert run is not None
    assert (run.status, run.completed_at, run.strikes) == ("running", None, 0)
    await store.write(lease, completed(0, tries=4), ended())
    await store.close()


async def test_a_turn_of_a_session_with_a_colon_is_resumed(path: Path) -> None:
    fill(path)
    store = await opened(path)
    key = SessionKey("team:7", 1, owner_id="ann")
    lease = await hold(store, "chat:team:7:1", session=key)
    run = await store.read_run("chat:team:7:1")
    assert run is not None
    assert (run.session_id, run.turn_index, run.owner_id) == ("team:7", 1, "ann")
    await store.write(lease, completed(0), ended())
    await store.close()


async def test_a_takeover_by_a_typescript_worker_fences_ours(path: Path) -> None:
    store = await opened(path)
    lease = await hold(store, "run")
    with connected(path) as typescript:
        typescript.execute(
            "UPDATE durable_runs SET lease_holder_id = 'ts:9', lease_expires_at = ?", (FAR,)
        )
    with pytest.raises(LeaseLostError):
        await store.write(lease, completed(0))
    assert await store.renew([lease], 15_000) == {}
    assert await store.read_steps("run") == []
    with connected(path) as typescript:
        typescript.execute(
            "UPDATE durable_runs SET lease_holder_id = NULL, lease_expires_at = NULL, "
            "status = 'completed', completed_at = ?",
            (LONG_AGO,),
        )
    claim = await store.start_or_resume("run", manifest(), worker_id="ann")
    assert (claim.lease, claim.run.state) == (None, "completed")
    await store.close()


async def test_a_refinement_that_a_typescript_worker_left_behind_does_not_count(path: Path) -> None:
    store = await opened(path)
    lease = await hold(store, "run")
    await store.write(lease, ended("stopped"))
    with connected(path) as typescript:
        # It ran the stopped run once more, and crashed.
        typescript.execute(
            "UPDATE durable_runs SET status = 'running', lease_holder_id = 'ts:1', "
            "lease_expires_at = ?",
            (LONG_AGO,),
        )
    run = await store.read_run("run")
    assert run is not None
    assert run.state == "running"
    (listed,) = await store.list_runs(state="running")
    assert listed == run
    (claim,) = await store.claim_due(["letters"], worker_id="bob", lease_ms=15_000, limit=9)
    assert (claim.run.epoch, claim.run.strikes) == (2, 1)
    await store.close()


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
