"""The thread in which one handle does its work with files."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

from perdure.core.effects import monotonic_ms
from perdure.errors import StoreClosedError, StoreUnavailableError
from perdure.store.closing import CLOSED
from perdure.store.filedata import FileData
from perdure.store.filelog import FlushFailed, translated

T = TypeVar("T")


class Job(NamedTuple):
    """A call to be made in the thread, and who is told how it went."""

    call: Callable[[], Any]
    answer: Callable[[Any, BaseException | None], None]


class Watch(NamedTuple):
    """What is looked at for writes of other processes, and how often."""

    interval_ms: int
    waited_for: Callable[[], Collection[str | None]]
    changed: Callable[[], None]


class FileThread:
    """Runs what is put into its queue, in order."""

    def __init__(self, data: FileData, loop: asyncio.AbstractEventLoop) -> None:
        self.watch: Watch | None = None
        self._data = data
        self._loop = loop
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._open = threading.Lock()
        self._is_closed = False
        self._dead: str | None = None
        self._is_prepared = False
        self._looked_ms = 0.0
        self._seen: dict[str | None, object] = {}
        self._thread = threading.Thread(target=self._work, name="perdure-files", daemon=True)
        self._thread.start()

    def run(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Have `call` made; the answer comes to the loop."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._put(Job(call, partial(self._post, _settle, future)))
        return future

    def run_and_wait(self, call: Callable[[], T]) -> T:
        """Have `call` made, and wait for the answer in the calling thread."""
        future: Future[T] = Future()
        self._put(Job(call, partial(_settle_waiting, future)))
        return future.result()

    def wake(self) -> None:
        """Have the thread look at `watch` again."""
        self._queue.put(Job(_nothing, _ignored))

    def close(self) -> None:
        """Finish what was accepted, and take no more."""
        with self._open:
            if not self._is_closed:
                self._is_closed = True
                self._queue.put(None)

    def join(self) -> None:
        self._thread.join()

    def _put(self, job: Job) -> None:
        with self._open:
            if self._is_closed:
                raise StoreClosedError(CLOSED)
            self._queue.put(job)

    def _work(self) -> None:
        try:
            self._serve()
        finally:
            self._data.locks.release()

    def _serve(self) -> None:
        while (job := self._next()) is not None:
            try:
                value, error = self._made(job.call), None
            except BaseException as raised:
                value, error = None, raised
            job.answer(value, error)
            self._data.trim()
            # Who waits for the next job must not keep what the last one held.
            del job, value, error

    def _made(self, call: Callable[[], T]) -> T:
        if self._dead is not None:
            raise StoreUnavailableError(self._dead)
        try:
            if not self._is_prepared:
                self._data.prepare()
                self._is_prepared = True
            return call()
        except FlushFailed as error:
            self._dead = (
                f"the system could not flush a file of {self._data.options.path!r} ({error}): what "
                "is on the disk is unknown, open another handle once it is mended"
            )
            raise StoreUnavailableError(self._dead) from error
        except OSError as error:
            raise translated(error, self._data.options.path) from error

    def _next(self) -> Job | None:
        """Wait for work; meanwhile look whether other processes have written."""
        while True:
            watch = self.watch
            if watch is None:
                return self._queue.get()
            now_ms = monotonic_ms()
            pause_ms = self._looked_ms + watch.interval_ms - now_ms
            if pause_ms <= 0:
                self._looked_ms, pause_ms = now_ms, watch.interval_ms
                if self._changed_elsewhere(watch.waited_for()):
                    self._post(watch.changed)
            try:
                return self._queue.get(timeout=pause_ms / 1_000)
            except Empty:
                continue

    def _changed_elsewhere(self, waited_for: Collection[str | None]) -> bool:
        """Look at the logs of the runs, or (None) at the index, which is touched for workers."""
        changed = False
        before, self._seen = self._seen, {}
        for stored_id in waited_for:
            path = self._data.index.path if stored_id is None else self._data.path_of(stored_id)
            try:
                status = os.stat(path)
            except OSError:
                continue
            seen = (status.st_ino, status.st_size, status.st_mtime_ns)
            self._seen[stored_id] = seen
            if before.get(stored_id) != seen:
                was_read = stored_id is not None and self._data.has_read(stored_id, seen[1])
                is_first = stored_id is None and stored_id not in before
                changed = changed or not (was_read or is_first)
        return changed

    def _post(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            # A closed loop has nobody left who waits; what was accepted happened all the same.


def _settle(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():
        return  # Its caller was cancelled.
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


def _settle_waiting(future: Future[Any], value: Any, error: BaseException | None) -> None:
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


def _nothing() -> None:
    """Work that only wakes the thread."""


def _ignored(value: Any, error: BaseException | None) -> None:
    """Nobody waits for it."""
