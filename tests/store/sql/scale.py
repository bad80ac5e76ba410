"""Very many old runs in PostgreSQL, made by SQL, and what the server does for a statement there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import psycopg

from perdure.store.sql.postgres.texts import PostgresStatements

Connection = psycopg.Connection[tuple[Any, ...]]
Values = Sequence[str | int | None]

RUNNING, LAPSED, ASLEEP, QUEUED = 400, 20, 200, 50
"""How many runs are not over yet, however many old ones there are."""

_SETTLED: Final = 8
"""The sixth execution of a prepared statement is the first that may use a plan for any values."""

_FILL: Final = (
    """
INSERT INTO {0}.durable_runs (
  run_id, manifest_hash, project_id, status, created_at, updated_at, completed_at,
  lease_holder_id, lease_expires_at, token, tenant, handler, manifest_json, session_id,
  turn_index, epoch, wake_at, step_count)
SELECT 'run-' || n, 'hash', 'project', status, at, at,
  CASE WHEN status = 'completed' THEN at END,
  CASE WHEN status = 'running' THEN 'ann' END,
  CASE WHEN status = 'running' THEN
    CASE WHEN n <= %(lapsed)s THEN '2020-01-01T00:00:00.000Z' ELSE '2099-01-01T00:00:00.000Z' END
  END,
  'token', '', 'handler', '{{}}', 'session-' || (n %% (%(runs)s / 10)), n / (%(runs)s / 10), 1,
  CASE WHEN status = 'suspended' THEN
    CASE WHEN n %% 10 = 0 THEN '2020-01-01T00:00:00.000Z' ELSE '2099-01-01T00:00:00.000Z' END
  END, 2
FROM (
  SELECT n, to_char(timestamp '2025-01-01' + n * interval '1 second',
      'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS at,
    CASE WHEN n <= %(running)s THEN 'running' WHEN n <= %(suspended)s THEN 'suspended'
      WHEN n <= %(pending)s THEN 'pending' ELSE 'completed' END AS status
  FROM generate_series(1, %(runs)s) AS n) AS made
""",
    """
INSERT INTO {0}.perdure_sessions (tenant, session_id, owner_id, created_at, updated_at)
SELECT '', 'session-' || n, 'user-' || (n %% 100), '2025', '2025'
FROM generate_series(0, %(runs)s / 10 - 1) AS n
""",
    """
INSERT INTO {0}.perdure_attempts (run_id, epoch, holder, started_at)
SELECT 'run-' || n, 1, 'ann', '2025' FROM generate_series(1, %(runs)s) AS n
""",
    """
INSERT INTO {0}.perdure_outbox (
  run_id, position, topic, handler, key, payload_json, state, due_at, created_at)
SELECT 'run-' || n, 0, 'topic', 'handler', 'key-' || n, '{{}}',
  CASE WHEN n > %(runs)s - 100 THEN 'waiting' ELSE 'delivered' END, '2025', '2025'
FROM generate_series(%(pending)s + 1, %(runs)s) AS n
""",
)


def fill(connection: Connection, schema: str, runs: int, *, analyzes: bool = True) -> None:
    """Make `runs` runs, of which all but a fixed number are over; have the server count them."""
    counts = {
        "runs": runs,
        "lapsed": LAPSED,
        "running": RUNNING,
        "suspended": RUNNING + ASLEEP,
        "pending": RUNNING + ASLEEP + QUEUED,
    }
    for sql in _FILL:
        connection.execute(sql.format(schema).encode(), counts)
    if analyzes:
        connection.execute(b"VACUUM ANALYZE")


_LEASES: Final = json.dumps([[f"run-{n}", 1, "token", "ann"] for n in range(30, 60)])
STATEMENTS: Final[Mapping[str, Values]] = {
    "read_run": ("run-5000",),
    "take_run": ("run-7", "hash", "bob", 15_000, "new", 0, None, None, None, None, "[]"),
    "fence": ("run-30", 1, "token", "ann", 3, 1),
    "beat": (_LEASES, 15_000),
    "due_runs": ("handler", 16),
    "due_wakes": ("handler", 16),
    "due_queued": ("handler", 16),
    "due_orphans": ("handler", 16, json.dumps([["pg-dead"]])),
    "locks_of_handler": ("handler",),
    "due_deliveries": ("handler", 16),
    "list_runs": ("", None, "run-4000", 50, 0),
    "list_session": ("", None, None, 50, 0, "session-9", None, None),
    "find_runs": (None, None, None, None, None, None, 50),
    "find_unfinished_runs": (None, "running", None, None, None, None, 50),
    "find_ended": ("2024-01-01T00:00:00.000Z", "", "", 50),
}


class Looked(NamedTuple):
    """The pages that the server looked at, its time, and the tables that it read as a whole."""

    pages: int
    ms: float
    read_whole: Sequence[str]


def look(connection: Connection, schema: str, name: str) -> Looked:
    """Run a statement as often as makes the server settle on a plan, and undo what it wrote."""
    sql = PostgresStatements(schema, own_clock=False)[name]
    values = [STATEMENTS[name][place] for place in sql.places]
    given = ", ".join("NULL" if value is None else f"'{value}'" for value in values)
    told: Any = None
    with connection.transaction(force_rollback=True):
        connection.execute(f"PREPARE looked AS {sql.sql}".encode())
        explain = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE looked"
        for _ in range(_SETTLED):
            found = connection.execute((f"{explain} ({given})" if given else explain).encode())
            ((told,),) = found.fetchall()
        connection.execute(b"DEALLOCATE looked")
    (plan,) = told
    root = plan["Plan"]
    pages = root["Shared Hit Blocks"] + root["Shared Read Blocks"]
    whole = [
        node["Relation Name"]
        for node in _nodes(root)
        if node["Node Type"] == "Seq Scan" and node["Actual Loops"]
    ]
    return Looked(pages, plan["Execution Time"], whole)


def ways_to_runs(connection: Connection, schema: str) -> set[tuple[str, str]]:
    """Return by which indexes each statement finds the runs that it knows by their ids.

    With a plan for any values, as the server settles on.
    """
    connection.execute(b"SET plan_cache_mode = force_generic_plan")
    found: set[tuple[str, str]] = set()
    for name, text in PostgresStatements(schema, own_clock=False).all().items():
        count = max(map(int, _NUMBER.findall(text.sql)), default=0)
        given = f"({', '.join(['NULL'] * count)})" if count else ""
        connection.execute(f"PREPARE looked AS {text.sql}".encode())
        asked = connection.execute(f"EXPLAIN (FORMAT JSON) EXECUTE looked{given}".encode())
        (([plan],),) = asked.fetchall()
        connection.execute(b"DEALLOCATE looked")
        for node in _nodes(plan["Plan"]):
            if node.get("Relation Name") == "durable_runs" and _IS_KNOWN.search(
                node.get("Index Cond", "")
            ):
                found.add((name, node["Index Name"]))
    return found


_NUMBER: Final = re.compile(r"\$(\d+)")
_IS_KNOWN: Final = re.compile(r"\brun_id = \$")


def _nodes(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)
