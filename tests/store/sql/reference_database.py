"""Databases as TypeScript workers leave them, and what those see who know no other columns."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

from perdure.core.identity import manifest_hash
from perdure.store.sql.schema import DURABLE_SCHEMA_SQL
from perdure.testing.samples import manifest

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
def connected(path: Path) -> Generator[sqlite3.Connection]:
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
