"""The thread that owns one SQLite connection, and the queue through which a loop feeds it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from enum import Enum
from queue import Empty, SimpleQueue
from typing import Final

from perdure.core.effects import monotonic_ms
from perdure.store.sql.sqlite_connection import translated
from perdure.store.sql.sqlite_lists import Answer, Job, ListRunner, deliver

LISTS_MAX: Final = 512
"""How many lists share one transaction at most."""


class Signal(Enum):
    """What a queue holds beside work."""

    CLOSE = "close"
    WAKE = "wake"


class Watch:
    """Who wants to know of writes of other processes, and how soon."""

    def __init__(self) -> None:
        self.changed: Callable[[], None] | None = None
        self.interval_ms: int | None = None


class DatabaseThread:
    """Runs what is put into its queue, in order; what piled up meanwhile shares a transaction."""

    def __init__(
        self,
        connect: Callable[[], ListRunner],
        *,
        queue: SimpleQueue[Job | Signal],
        loop: asyncio.AbstractEventLoop,
        path: str,
        name: str,
    ) -> None:
        self.watch = Watch()
        self.commits = 0
        self.dead: str | None = None
        self._connect = connect
        self._queue = queue
        self._loop = loop
        self._path = path
        self._looked_ms = 0.0
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _work(self) -> None:
        try:
            runner = self._connect()
        except Exception as error:
            self._refuse_all(translated(error, self._path))
            return
        try:
            self._serve(runner)
        except BaseException as error:
            self._refuse_all(translated(error, self._path))
            raise
        finally:
            runner.close()

    def _serve(self, runner: ListRunner) -> None:
        closing = False
        while not closing:
            jobs, closing = self._take(runner)
            if not jobs:
                continue
            try:
                answers = runner.run_group(jobs)
            except BaseException as error:
                self._post(deliver, [Answer(job.future, None, error) for job in jobs])
                raise
            self.commits, self.dead = runner.commits, runner.dead
            self._post(deliver, answers)

    def _take(self, runner: ListRunner) -> tuple[list[Job], bool]:
        """Wait for work; return all that is there, and whether it is the last."""
        jobs: list[Job] = []
        item = self._wait(runner)
        while True:
            if item is Signal.CLOSE:
                return jobs, True
            if isinstance(item, Job):
                jobs.append(item)
            if self._queue.empty() or len(jobs) == LISTS_MAX:
                return jobs, False
            try:
                item = self._queue.get_nowait()
            except Empty:
                return jobs, False  # Another reader was faster.

    def _wait(self, runner: ListRunner) -> Job | Signal:
        """Return the next item; meanwhile look whether other processes have written."""
        while True:
            interval_ms = self.watch.interval_ms
            if interval_ms is None:
                return self._queue.get()
            now_ms = monotonic_ms()
            pause_ms = self._looked_ms + interval_ms - now_ms
            if pause_ms <= 0:
                self._looked_ms, pause_ms = now_ms, interval_ms
                if runner.changed_elsewhere() and self.watch.changed is not None:
                    self._post(self.watch.changed)
            try:
                return self._queue.get(timeout=pause_ms / 1_000)
            except Empty:
                continue

    def _refuse_all(self, error: BaseException) -> None:
        """Answer everything with `error` until the handle is closed."""
        while (item := self._queue.get()) is not Signal.CLOSE:
            if isinstance(item, Job):
                again = type(error)(*error.args)
                again.__cause__ = error.__cause__
                self._post(deliver, [Answer(item.future, None, again)])

    def _post(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            # A closed loop has nobody left who waits; what was accepted happens all the same.
