"""The floor: the smallest program that keeps the same promise on the disk, and nothing else.

One INSERT per step through one writer thread in WAL mode; what waits shares a commit. No leases,
no fences, no history: what a library costs beyond this is the library.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sqlite3
import threading
from typing import Any

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (id TEXT PRIMARY KEY, status TEXT, output TEXT);
CREATE TABLE IF NOT EXISTS step (run TEXT, seq INTEGER, out TEXT, PRIMARY KEY (run, seq));
"""
_GROUP_MAX = 512


class Floor:
    """Rows in SQLite, written by one thread."""

    def __init__(self, path: str, *, synchronous: str) -> None:
        self._path = path
        self._synchronous = synchronous
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(_SCHEMA)
        connection.close()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def write(self, sql: str, *values: object) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        self._queue.put((sql, values, future))
        return future

    async def run_steps(self, run_id: str, count: int) -> None:
        await self.write("INSERT INTO run VALUES (?, 'running', NULL)", run_id)
        for position in range(count):
            text = json.dumps({"i": position, "status": "ok"})
            await self.write("INSERT INTO step VALUES (?, ?, ?)", run_id, position, text)
        await self.write("UPDATE run SET status = 'done' WHERE id = ?", run_id)

    async def replay(self, run_id: str) -> list[Any]:
        connection = sqlite3.connect(self._path)
        sql = "SELECT seq, out FROM step WHERE run = ? ORDER BY seq"
        rows = connection.execute(sql, (run_id,)).fetchall()
        connection.close()
        return [json.loads(text) for _, text in rows]

    async def close(self) -> None:
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None)
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        while (group := self._take()) is not None:
            if len(group) > 1:
                connection.execute("BEGIN IMMEDIATE")
            for sql, values, _ in group:
                connection.execute(sql, values)
            if len(group) > 1:
                connection.execute("COMMIT")
            self._loop.call_soon_threadsafe(_answer, [future for _, _, future in group])
        connection.close()

    def _take(self) -> list[Any] | None:
        group = [self._queue.get()]
        while not self._queue.empty() and len(group) < _GROUP_MAX:
            group.append(self._queue.get())
        return None if None in group else group


def _answer(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        future.set_result(None)
