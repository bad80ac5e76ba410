"""The floor on files: a log for each run, a line for each step, flushed before it is answered.

One thread writes; what waits for one log shares a flush. No leases, no fences, no checksums.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

_GROUP_MAX = 512
_NEW = os.O_WRONLY | os.O_APPEND | os.O_CREAT


class _Line(NamedTuple):
    run_id: str
    text: str
    future: asyncio.Future[None]


class FileFloor:
    """Logs in a folder. With `synchronous="normal"` nothing is flushed."""

    def __init__(self, folder: str, *, synchronous: str) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(exist_ok=True)
        self._flushes = synchronous == "full"
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Line | None] = queue.SimpleQueue()
        self._logs: dict[str, int] = {}
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def write(self, run_id: str, content: object) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        self._queue.put(_Line(run_id, json.dumps(content) + "\n", future))
        return future

    async def run_steps(self, run_id: str, count: int) -> None:
        await self.write(run_id, "running")
        for position in range(count):
            await self.write(run_id, {"i": position, "status": "ok"})
        await self.write(run_id, "done")

    async def replay(self, run_id: str) -> list[Any]:
        lines = (self._folder / run_id).read_text().splitlines()
        return [json.loads(line) for line in lines][1:-1]

    async def close(self) -> None:
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while (group := self._take()) is not None:
            touched = {self._append(line) for line in group}
            if self._flushes:
                for log in touched:
                    os.fdatasync(log)
            self._loop.call_soon_threadsafe(_answer, [line.future for line in group])
        for log in self._logs.values():
            os.close(log)

    def _append(self, line: _Line) -> int:
        log = self._logs.get(line.run_id)
        if log is None:
            log = self._logs[line.run_id] = os.open(self._folder / line.run_id, _NEW, 0o600)
            self._flush_name()
        os.write(log, line.text.encode())
        return log

    def _flush_name(self) -> None:
        """Have the new file's name on the disk, without which its content would be lost."""
        if self._flushes:
            folder = os.open(self._folder, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)

    def _take(self) -> Sequence[_Line] | None:
        group = [self._queue.get()]
        while not self._queue.empty() and len(group) < _GROUP_MAX:
            group.append(self._queue.get())
        lines = [line for line in group if line is not None]
        return lines if len(lines) == len(group) else None


def _answer(futures: Sequence[asyncio.Future[None]]) -> None:
    for future in futures:
        future.set_result(None)
