"""The floor on PostgreSQL: prepared statements on one connection, straight on libpq.

A lone INSERT goes out by itself and commits by itself. What waits while one is under way goes out
as one statement, so that it shares a commit. No leases, no fences, no history.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import pq

_SCHEMA = """
CREATE TABLE run (id text PRIMARY KEY, status text, output text);
CREATE TABLE step (run text, seq bigint, out text, PRIMARY KEY (run, seq));
"""
_ALONE = {
    b"begin": b"INSERT INTO run VALUES ($1::text, 'running', NULL)",
    b"step": b"INSERT INTO step VALUES ($1::text, $2::bigint, $3::text)",
    b"end": b"UPDATE run SET status = 'done' WHERE id = $1::text",
    b"read": b"SELECT seq, out FROM step WHERE run = $1::text ORDER BY seq",
}
_TOGETHER = b"""
WITH begun AS (INSERT INTO run SELECT id, 'running', NULL FROM unnest($1::text[]) AS r (id)),
  done AS (INSERT INTO step SELECT * FROM unnest($2::text[], $3::bigint[], $4::text[])),
  ended AS (UPDATE run SET status = 'done' FROM unnest($5::text[]) AS e (id) WHERE run.id = e.id)
SELECT 1
"""
Values = Sequence[str]
Rows = list[tuple[Any, ...]]


class PostgresFloor:
    """Rows in PostgreSQL, written by one connection."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[bytes, Values, asyncio.Future[Rows]]] = []
        self._under_way: list[asyncio.Future[Rows]] = []
        self._is_busy = False

    @classmethod
    async def open(cls, url: str, *, synchronous: str) -> PostgresFloor:
        connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
        commit = {"full": "on", "normal": "off"}[synchronous]
        await connection.execute(f"SET synchronous_commit = {commit}".encode())
        for statement in _SCHEMA.strip().split("\n"):
            await connection.execute(statement.encode())
        floor = cls(connection)
        floor._loop.add_reader(floor._pgconn.socket, floor._read)
        for name, sql in (*_ALONE.items(), (b"together", _TOGETHER)):
            floor._pgconn.send_prepare(name, sql)
            await floor._send([floor._loop.create_future()])
        return floor

    async def run_steps(self, run_id: str, count: int) -> None:
        await self.write(b"begin", run_id)
        for position in range(count):
            text = json.dumps({"i": position, "status": "ok"})
            await self.write(b"step", run_id, str(position), text)
        await self.write(b"end", run_id)

    async def replay(self, run_id: str) -> list[Any]:
        return [json.loads(text) for _, text in await self.write(b"read", run_id)]

    def write(self, name: bytes, *values: str) -> asyncio.Future[Rows]:
        future: asyncio.Future[Rows] = self._loop.create_future()
        self._waiting.append((name, values, future))
        if not self._is_busy:
            self._is_busy = True
            self._loop.call_soon(self._next)
        return future

    async def close(self) -> None:
        self._loop.remove_reader(self._pgconn.socket)
        await self._connection.close()

    def _next(self) -> None:
        group, self._waiting = self._waiting, []
        if not group:
            self._is_busy = False
            return
        if len(group) == 1:
            ((name, values, _),) = group
            self._pgconn.send_query_prepared(name, [value.encode() for value in values])
        else:
            begun, steps, ended = (
                [values for name, values, _ in group if name == wanted]
                for wanted in (b"begin", b"step", b"end")
            )
            columns = list(zip(*steps, strict=True)) or [(), (), ()]
            lists = [[run for (run,) in begun], *columns, [run for (run,) in ended]]
            self._pgconn.send_query_prepared(b"together", [_array(values) for values in lists])
        self._send([future for _, _, future in group])

    def _send(self, futures: list[asyncio.Future[Rows]]) -> asyncio.Future[Rows]:
        self._under_way = futures
        self._pgconn.flush()
        return futures[-1]

    def _read(self) -> None:
        self._pgconn.consume_input()
        if self._pgconn.is_busy():
            return
        rows: Rows = []
        while (result := self._pgconn.get_result()) is not None:
            if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
                raise RuntimeError(result.error_message)
            for row in range(result.ntuples):
                rows.append(tuple(result.get_value(row, at) for at in range(result.nfields)))
        futures, self._under_way = self._under_way, []
        for future in futures:
            future.set_result(rows)
        self._loop.call_soon(self._next)


def _array(values: Sequence[str]) -> bytes:
    quoted = (value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return ("{" + ",".join(f'"{value}"' for value in quoted) + "}").encode()
