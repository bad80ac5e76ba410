"""The floor of our own promise on PostgreSQL: leases, fences and journal, by hand on libpq.

The tables and indexes are Perdure's. A claim writes the run with its manifest and the attempt, a
step proves the lease by an update of the run and adds the whole row of the journal, an end proves
it too and closes the attempt: one statement each, prepared, on one connection. What waits while
some are under way goes out as one segment, which is one transaction. A run that was interrupted is
claimed anew, and its history read behind that, in one segment. Frames of a turn follow the last
ones behind the lease, and go with the answer and the end in one statement (`fenced_stream`). There
are no rules for repeats, stops, retries, waits or errors, no heartbeat, and no records for the
caller.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg import pq

from bench.fenced_sqlite import recall
from bench.fenced_stream import Rows
from perdure.store.sql.postgres.schema import migration_sql
from perdure.store.sql.schema import own_migrations

SCHEMA: Final = "fenced"
_MANIFEST: Final = json.dumps(
    {
        "projectId": "bench",
        "task": {"id": "bench", "intent": "Measure", "requiredKnowledge": []},
        "input": {},
    }
)
_NOW: Final = """to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"""
_LATER: Final = _NOW.replace("now()", "(now() + interval '45 s')")
# Of every write: the lease of run $1, token $2 and holder $3, in the first epoch.
_FENCE: Final = (
    "WHERE run_id = $1::text AND epoch = 1 AND token = $2::text AND lease_holder_id = $3::text "
    "AND status = 'running'"
)
_NEXT: Final = f"""WHERE $4::bigint = coalesce((
  SELECT last_seq + 1 FROM {SCHEMA}.perdure_frames WHERE run_id = $1::text
  ORDER BY first_seq DESC LIMIT 1), 1)"""
_STATEMENTS: Final = {
    b"claim": f"""
WITH made AS (
  INSERT INTO {SCHEMA}.durable_runs (run_id, manifest_hash, project_id, status, created_at,
    updated_at, lease_holder_id, lease_expires_at, token, epoch, manifest_json)
  VALUES ($1::text, 'hash', 'bench', 'running', {_NOW}, {_NOW}, $3::text, {_LATER}, $2::text, 1,
    $4::text)
  ON CONFLICT DO NOTHING RETURNING run_id, epoch, lease_holder_id, created_at)
INSERT INTO {SCHEMA}.perdure_attempts (run_id, epoch, holder, liveness, started_at)
SELECT run_id, epoch, lease_holder_id, 'lock', created_at FROM made RETURNING started_at""",
    b"step": f"""
WITH fence AS (
  UPDATE {SCHEMA}.durable_runs SET updated_at = {_NOW}, strikes = 0,
    step_count = greatest(step_count, $4::bigint + 1)
  {_FENCE} RETURNING updated_at)
INSERT INTO {SCHEMA}.durable_steps (run_id, step_index, intent, kind, input_hash, status,
  attempts, result_json, started_at, completed_at, epoch, effect)
SELECT $1::text, $4::bigint, 'small', 'logic', '', 'completed', 1, $5::text, $6::text, updated_at,
  1, 'idempotent'
FROM fence ON CONFLICT DO NOTHING RETURNING completed_at""",
    b"end": f"""
WITH ended AS (
  UPDATE {SCHEMA}.durable_runs SET status = 'completed', updated_at = {_NOW}, strikes = 0,
    completed_at = {_NOW}, lease_holder_id = NULL, lease_expires_at = NULL
  {_FENCE} RETURNING completed_at)
UPDATE {SCHEMA}.perdure_attempts SET ended_at = ended.completed_at, ended = 'completed'
FROM ended WHERE run_id = $1::text AND epoch = 1 RETURNING ended_at""",
    b"fail": f"""
WITH ended AS (
  UPDATE {SCHEMA}.durable_runs SET status = 'failed', updated_at = {_NOW},
    completed_at = {_NOW}, lease_holder_id = NULL, lease_expires_at = NULL
  {_FENCE} RETURNING completed_at)
UPDATE {SCHEMA}.perdure_attempts SET ended_at = ended.completed_at, ended = 'failed'
FROM ended WHERE run_id = $1::text AND epoch = 1 RETURNING ended_at""",
    b"take": f"""
WITH taken AS (
  UPDATE {SCHEMA}.durable_runs SET epoch = epoch + 1, token = $2::text, lease_holder_id = $3::text,
    lease_expires_at = {_LATER}, status = 'running', completed_at = NULL, updated_at = {_NOW},
    strikes = CASE WHEN lease_holder_id IS NULL THEN 0 ELSE strikes + 1 END
  WHERE run_id = $1::text AND manifest_hash = 'hash' AND status IN ('running', 'failed')
    AND (lease_holder_id IS NULL OR lease_expires_at <= {_NOW})
  RETURNING run_id, epoch, lease_holder_id, updated_at)
INSERT INTO {SCHEMA}.perdure_attempts (run_id, epoch, holder, liveness, started_at)
SELECT run_id, epoch, lease_holder_id, 'lock', updated_at FROM taken RETURNING epoch""",
    b"append": f"""
WITH fence AS (UPDATE {SCHEMA}.durable_runs SET updated_at = {_NOW} {_FENCE} RETURNING updated_at)
INSERT INTO {SCHEMA}.perdure_frames (run_id, first_seq, last_seq, epoch, body, written_at)
SELECT $1::text, $4::bigint, $5::bigint, 1, $6::text, updated_at FROM fence {_NEXT}
RETURNING last_seq""",
    b"finish": f"""
WITH ended AS (
  UPDATE {SCHEMA}.durable_runs SET status = 'completed', updated_at = {_NOW}, strikes = 0,
    completed_at = {_NOW}, lease_holder_id = NULL, lease_expires_at = NULL
  {_FENCE} RETURNING completed_at),
framed AS (
  INSERT INTO {SCHEMA}.perdure_frames (run_id, first_seq, last_seq, epoch, body, written_at)
  SELECT $1::text, $4::bigint, $5::bigint, 1, $6::text, completed_at FROM ended {_NEXT}
  RETURNING last_seq),
answered AS (
  INSERT INTO {SCHEMA}.durable_steps (run_id, step_index, intent, kind, input_hash, status,
    attempts, result_json, started_at, completed_at, epoch, frames_to)
  SELECT $1::text, 0, 'chat.turn.0', 'llm', '', 'completed', 1, $7::text, completed_at,
    completed_at, 1, $8::bigint FROM ended RETURNING step_index)
UPDATE {SCHEMA}.perdure_attempts SET ended_at = ended.completed_at, ended = 'completed'
FROM ended, framed, answered WHERE run_id = $1::text AND epoch = 1 RETURNING ended_at""",
    b"history": f"SELECT step_index, intent, status, result_json FROM {SCHEMA}.durable_steps "
    "WHERE run_id = $1::text ORDER BY step_index",
    b"read": f"SELECT step_index, result_json FROM {SCHEMA}.durable_steps "
    "WHERE run_id = $1::text ORDER BY step_index",
}
_TOKEN: Final = "0" * 32
_HOLDER: Final = "host:1:0:1"
Answers = list[tuple[Any, ...]]


class FencedPostgres:
    """Runs in PostgreSQL under leases, written by one connection."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[bytes, Sequence[str], asyncio.Future[Answers]]] = []
        self._under_way: list[asyncio.Future[Answers]] = []
        self._rows: list[Answers] = []
        self._is_busy = False

    @classmethod
    async def open(cls, url: str, *, synchronous: str) -> FencedPostgres:
        connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
        commit = {"full": "on", "normal": "off"}[synchronous]
        await connection.execute(f"SET synchronous_commit = {commit}".encode())
        for statement in migration_sql(SCHEMA, own_migrations(), "2026-01-01T00:00:00.000Z"):
            await connection.execute(statement.encode())
        for name, sql in _STATEMENTS.items():
            connection.pgconn.prepare(name, sql.encode())
        connection.pgconn.nonblocking = 1
        connection.pgconn.enter_pipeline_mode()
        floor = cls(connection)
        floor._loop.add_reader(connection.pgconn.socket, floor._read)
        return floor

    async def run_steps(self, run_id: str, count: int) -> None:
        await self._begin(run_id, count)
        await self._fenced(b"end", run_id)

    async def replay(self, run_id: str) -> list[Any]:
        return [json.loads(text) for _, text in await self._write(b"read", run_id)]

    async def interrupt(self, run_id: str, count: int) -> None:
        """Do so many steps of a run, and fail at the next."""
        await self._begin(run_id, count)
        await self._fenced(b"fail", run_id)

    async def _begin(self, run_id: str, count: int) -> None:
        await self.claim(run_id, _MANIFEST)
        for position in range(count):
            text = json.dumps({"i": position, "status": "ok"})
            await self._fenced(b"step", run_id, str(position), text, "2026-01-01T00:00:00.000Z")

    async def go_on(self, run_id: str, count: int) -> list[Any]:
        """Claim the run under a lease of its own, and do its steps again from what is recorded."""
        # One segment; what is written before the lock comes is seen by the second statement.
        claim = self._write(b"take", run_id, _TOKEN, _HOLDER)
        history = self._write(b"history", run_id)
        if not await claim:
            raise RuntimeError(f"the run {run_id!r} is held")
        recorded = {int(position): step for position, *step in await history}
        return [recall(recorded, position) for position in range(count)]

    async def claim(self, run_id: str, manifest: str) -> None:
        await self._fenced(b"claim", run_id, manifest)

    async def append(self, run_id: str, frames: Rows) -> None:
        await self._fenced(b"append", run_id, *map(str, frames))

    async def finish(self, run_id: str, frames: Rows, answer: str, frames_to: int) -> None:
        await self._fenced(b"finish", run_id, *map(str, frames), answer, str(frames_to))

    async def close(self) -> None:
        self._loop.remove_reader(self._pgconn.socket)
        self._pgconn.finish()
        await self._connection.close()

    async def _fenced(self, name: bytes, run_id: str, *values: str) -> None:
        if not await self._write(name, run_id, _TOKEN, _HOLDER, *values):
            raise RuntimeError(f"the lease of {run_id!r} is lost")

    def _write(self, name: bytes, *values: str) -> asyncio.Future[Answers]:
        future: asyncio.Future[Answers] = self._loop.create_future()
        self._waiting.append((name, values, future))
        if not self._is_busy:
            self._is_busy = True
            self._loop.call_soon(self._next)
        return future

    def _next(self) -> None:
        group, self._waiting = self._waiting, []
        if not group:
            self._is_busy = False
            return
        # Rows are locked in one order, as those who share a table do.
        group.sort(key=lambda each: each[1][0])
        for name, values, _ in group:
            self._pgconn.send_query_prepared(name, [value.encode() for value in values])
        self._under_way, self._rows = [future for _, _, future in group], []
        self._pgconn.pipeline_sync()

    def _read(self) -> None:
        pgconn = self._pgconn
        pgconn.flush()
        pgconn.consume_input()
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                continue
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                for future, rows in zip(self._under_way, self._rows, strict=True):
                    future.set_result(rows)
                self._loop.call_soon(self._next)
                return
            if result.status != pq.ExecStatus.TUPLES_OK:
                raise RuntimeError(result.error_message)
            self._rows.append(
                [
                    tuple(result.get_value(row, at) for at in range(result.nfields))
                    for row in range(result.ntuples)
                ]
            )
