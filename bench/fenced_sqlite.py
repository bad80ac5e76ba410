"""The floor of our own promise on SQLite: leases, fences and journal, by hand on `sqlite3`.

The tables, the indexes and the connection's settings are Perdure's. A claim writes the run with its
manifest and the attempt, a step proves the lease by an update of the run and adds the whole row of
the journal, an end proves it too and closes the attempt: two statements each, through one writer
thread. What waits shares a commit. A run that was interrupted is claimed anew likewise, and its
history read. There are no rules for repeats, stops, retries, waits or errors,
no heartbeat, and no records for the caller.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from perdure.core.effects import iso_time, system_clock
from perdure.store.sql.sqlite_connection import connect_reader, connect_writer
from perdure.store.sql.sqlite_schema import prepare_schema

_MANIFEST: Final = json.dumps(
    {
        "projectId": "bench",
        "task": {"id": "bench", "intent": "Measure", "requiredKnowledge": []},
        "input": {},
    }
)
# Of every write: the moment is ?1, the run ?2, its token ?3 and its holder ?4, in the first epoch.
_FENCE: Final = (
    "WHERE run_id = ?2 AND epoch = 1 AND token = ?3 AND lease_holder_id = ?4 AND status = 'running'"
)


def recall(recorded: Mapping[int, Sequence[Any]], position: int) -> Any:
    """Return the result of a step that was done, for a task that asks for the same again."""
    intent, status, text = recorded[position]
    if intent not in ("small", b"small") or status not in ("completed", b"completed"):
        raise RuntimeError(f"another step was recorded at {position}")
    return json.loads(text)


class _Write(NamedTuple):
    """A statement that changes one row unless the lease is lost, and the one that stands on it.

    With each, how many of the values it names: SQLite takes no more.
    """

    fence: str
    fence_values: int
    row: str
    row_values: int


_CLAIM: Final = _Write(
    """
INSERT INTO durable_runs (run_id, manifest_hash, project_id, status, created_at, updated_at,
  lease_holder_id, lease_expires_at, token, epoch, manifest_json)
VALUES (?2, 'hash', 'bench', 'running', ?1, ?1, ?4,
  strftime('%Y-%m-%dT%H:%M:%fZ', ?1, '45 seconds'), ?3, 1, ?5)
ON CONFLICT DO NOTHING""",
    5,
    """
INSERT INTO perdure_attempts (run_id, epoch, holder, liveness, started_at)
VALUES (?2, 1, ?4, 'lock', ?1)""",
    4,
)
_STEP: Final = _Write(
    f"""
UPDATE durable_runs SET updated_at = ?1, strikes = 0,
  step_count = max(step_count, CAST(?5 AS INTEGER) + 1)
{_FENCE}""",
    5,
    """
INSERT INTO durable_steps (run_id, step_index, intent, kind, input_hash, status, attempts,
  result_json, started_at, completed_at, epoch, effect)
VALUES (?2, ?5, 'small', 'logic', '', 'completed', 1, ?6, ?7, ?1, 1, 'idempotent')""",
    7,
)
_END: Final = _Write(
    f"""
UPDATE durable_runs SET status = 'completed', updated_at = ?1, strikes = 0, completed_at = ?1,
  lease_holder_id = NULL, lease_expires_at = NULL
{_FENCE}""",
    4,
    """
UPDATE perdure_attempts SET ended_at = ?1, ended = 'completed' WHERE run_id = ?2 AND epoch = 1""",
    2,
)
_FAIL: Final = _Write(
    _END.fence.replace("'completed'", "'failed'"),
    4,
    _END.row.replace("'completed'", "'failed'"),
    2,
)
_TAKE: Final = _Write(
    """
UPDATE durable_runs SET epoch = epoch + 1, token = ?3, lease_holder_id = ?4,
  lease_expires_at = strftime('%Y-%m-%dT%H:%M:%fZ', ?1, '45 seconds'), status = 'running',
  completed_at = NULL, updated_at = ?1,
  strikes = CASE WHEN lease_holder_id IS NULL THEN 0 ELSE strikes + 1 END
WHERE run_id = ?2 AND manifest_hash = 'hash' AND status IN ('running', 'failed')
  AND (lease_holder_id IS NULL OR lease_expires_at <= ?1)""",
    4,
    """
INSERT INTO perdure_attempts (run_id, epoch, holder, liveness, started_at)
SELECT run_id, epoch, lease_holder_id, 'lock', ?1 FROM durable_runs WHERE run_id = ?2""",
    2,
)
_HISTORY: Final = """
SELECT step_index, intent, status, result_json FROM durable_steps WHERE run_id = ?
ORDER BY step_index"""
_TOKEN: Final = "0" * 32
_HOLDER: Final = "host:1:0:1"
_GROUP_MAX: Final = 512


class _Job(NamedTuple):
    write: _Write
    values: tuple[object, ...]
    future: asyncio.Future[bool]


class FencedSqlite:
    """Runs in SQLite under leases, written by one thread."""

    def __init__(self, path: str, *, synchronous: Literal["full", "normal"]) -> None:
        self._path = path
        self._synchronous: Final = synchronous
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        connection = connect_writer(path, synchronous)
        prepare_schema(connection, migrate=True, clock=system_clock)
        connection.close()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    async def run_steps(self, run_id: str, count: int) -> None:
        await self._begin(run_id, count)
        await self._fenced(_END, run_id)

    async def replay(self, run_id: str) -> list[Any]:
        connection = connect_reader(self._path)
        sql = "SELECT result_json FROM durable_steps WHERE run_id = ? ORDER BY step_index"
        rows = connection.execute(sql, (run_id,)).fetchall()
        connection.close()
        return [json.loads(text) for (text,) in rows]

    async def interrupt(self, run_id: str, count: int) -> None:
        """Do so many steps of a run, and fail at the next."""
        await self._begin(run_id, count)
        await self._fenced(_FAIL, run_id)

    async def _begin(self, run_id: str, count: int) -> None:
        await self._fenced(_CLAIM, run_id, _MANIFEST)
        for position in range(count):
            text = json.dumps({"i": position, "status": "ok"})
            await self._fenced(_STEP, run_id, position, text, "2026-01-01T00:00:00.000Z")

    async def go_on(self, run_id: str, count: int) -> list[Any]:
        """Claim the run under a lease of its own, and do its steps again from what is recorded."""
        await self._fenced(_TAKE, run_id)
        connection = connect_reader(self._path)
        rows = connection.execute(_HISTORY, (run_id,)).fetchall()
        connection.close()
        recorded = {position: step for position, *step in rows}
        return [recall(recorded, position) for position in range(count)]

    async def close(self) -> None:
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    async def _fenced(self, write: _Write, run_id: str, *values: object) -> None:
        future: asyncio.Future[bool] = self._loop.create_future()
        self._queue.put(_Job(write, (run_id, _TOKEN, _HOLDER, *values), future))
        if not await future:
            raise RuntimeError(f"the lease of {run_id!r} is lost")

    def _work(self) -> None:
        connection = connect_writer(self._path, self._synchronous)
        cursor = connection.cursor()
        while (job := self._queue.get()) is not None:
            group = [job]
            while len(group) < _GROUP_MAX and not self._queue.empty():
                if (job := self._queue.get()) is None:
                    self._queue.put(None)
                    break
                group.append(job)
            try:
                held = _committed(cursor, group)
            except sqlite3.Error as error:
                if connection.in_transaction:
                    cursor.execute("ROLLBACK")
                self._loop.call_soon_threadsafe(_refuse, group, error)
            else:
                self._loop.call_soon_threadsafe(_answer, group, held)
        connection.close()


def _committed(cursor: sqlite3.Cursor, group: list[_Job]) -> list[bool]:
    """Write all of it in one transaction; return whose lease held."""
    held: list[bool] = []
    cursor.execute("BEGIN IMMEDIATE")
    now = iso_time(system_clock())
    for write, values, _ in group:
        bound = (now, *values)
        holds = cursor.execute(write.fence, bound[: write.fence_values]).rowcount == 1
        if holds:
            cursor.execute(write.row, bound[: write.row_values])
        held.append(holds)
    cursor.execute("COMMIT")
    return held


def _answer(group: list[_Job], held: list[bool]) -> None:
    for job, holds in zip(group, held, strict=True):
        job.future.set_result(holds)


def _refuse(group: list[_Job], error: sqlite3.Error) -> None:
    for job in group:
        job.future.set_exception(error)
