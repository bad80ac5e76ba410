"""The SQLite driver: one writing thread and two reading ones behind an asyncio handle."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Final, NamedTuple

from perdure.core.effects import Clock, system_clock
from perdure.errors import StoreClosedError, StoreUnavailableError, UsageError
from perdure.store.closing import CLOSED
from perdure.store.liveness import Liveness, NoLiveness, folder_liveness
from perdure.store.sql.database import Statement, Text
from perdure.store.sql.sqlite_connection import (
    PATIENCE_MS,
    Durability,
    check_library,
    check_path,
    connect_reader,
    connect_renewer,
    connect_writer,
    scrub,
    sqlite_statements,
    translated,
)
from perdure.store.sql.sqlite_lists import Job, ListRunner, Rows
from perdure.store.sql.sqlite_schema import prepare_schema
from perdure.store.sql.sqlite_thread import DatabaseThread, Signal

READERS: Final = 2
_EXPECTED: Final = (
    "take_run",
    "close_lost_attempt",
    "open_attempt",
    "read_run",
    "read_steps",
    "frames_end",
)
"""What goes on with a run is compiled when the file is opened, not while somebody waits for it."""


class Sqlite:
    """A database file on a local disk, for any number of handles and processes.

    All writes of a handle go through one thread: what waits shares one commit, and is answered
    after it. `durability="full"` flushes every commit to the disk; "normal" leaves that to the
    system, so a power cut may undo acknowledged writes (the end of the process never does).
    `migrate` False refuses a database whose schema is not up to date. `clock` is the store's time.
    A write waits `patience_ms` for the write lock of other processes, then StoreBusyError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Durability = "full",
        migrate: bool = True,
        clock: Clock = system_clock,
        patience_ms: float = PATIENCE_MS,
    ) -> None:
        if durability not in ("full", "normal"):
            raise UsageError(f"durability must be 'full' or 'normal', not {durability!r:.40}")
        check_library()
        self._file = _File(
            check_path(path), durability, migrate, clock, sqlite_statements(), patience_ms
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._liveness = folder_liveness(f"{self.path}-live")
        self._closed = False
        self._forked = False
        self._opening: asyncio.Future[Rows] | None = None
        self._writes: SimpleQueue[Job | Signal] = SimpleQueue()
        self._reads: SimpleQueue[Job | Signal] = SimpleQueue()
        self._writer: DatabaseThread | None = None
        self._readers: list[DatabaseThread] = []
        # A handle that is dropped without `close` must not leave its threads behind.
        self._release = weakref.finalize(self, _stop, self._reads, self._writes)
        _handles.add(self)

    @property
    def path(self) -> str:
        return self._file.path

    @property
    def commits(self) -> int:
        """How many transactions this handle has committed."""
        return 0 if self._writer is None else self._writer.commits

    @property
    def liveness(self) -> Liveness:
        return self._liveness or NoLiveness()

    @property
    def writes_wait(self) -> bool:
        return True

    async def open(self) -> None:
        self._check()
        if self._opening is None:
            self._opening = self.run(())
        await asyncio.shield(self._opening)

    def run(self, statements: Sequence[Statement]) -> asyncio.Future[Rows]:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._check()
        future: asyncio.Future[Rows] = loop.create_future()
        self._writes.put(Job(statements, future))
        return future

    async def read(self, statements: Sequence[Statement]) -> Rows:
        if not self._readers:
            await self._start_reading()
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._check()
        if self._writer is not None and self._writer.dead is not None:
            raise StoreUnavailableError(self._writer.dead)
        future: asyncio.Future[Rows] = loop.create_future()
        self._reads.put(Job(statements, future))
        return await future

    def watch(self, changed: Callable[[], None], *, interval_ms: int | None) -> None:
        self._check()
        if self._writer is None:
            return
        watch = self._writer.watch
        before = watch.interval_ms
        watch.changed = None if interval_ms is None else changed
        watch.interval_ms = interval_ms
        if interval_ms is not None and (before is None or before > interval_ms):
            self._writes.put(Signal.WAKE)

    def connect(self) -> ListRunner:
        """Return a connection of its own that writes, for one thread that is not the loop's.

        Its commits are not flushed by themselves: the next one of the writing thread does it, so
        it is for what a power cut may undo.
        """
        return _runner(self._file, connect_renewer(self.path), writes=True)

    async def scrub(self, *, whole: bool) -> None:
        self._check()
        call = partial(scrub, self.path, whole=whole)
        try:
            await asyncio.get_running_loop().run_in_executor(None, call)
        except sqlite3.Error as error:
            raise translated(error, self.path) from error

    async def close(self) -> None:
        if self._forked:
            return
        if not self._closed:
            self._closed, self._loop = True, None
            self._release.detach()
            _stop(self._reads)
        # The writer goes last: who closes the file last tidies up its log.
        for reader in self._readers:
            await _joined(reader)
        if self._writer is not None:
            self._writes.put(Signal.CLOSE)
            await _joined(self._writer)
        if self._liveness is not None:
            self._liveness.release()

    def disown(self) -> None:
        """Make every later call an error: this process is a fork of the handle's."""
        self._forked, self._loop = True, None
        self._release.detach()

    def _check(self) -> None:
        """Start with the first call; raise if this handle may not be used here and now."""
        loop = asyncio.get_running_loop()
        if self._closed:
            raise StoreClosedError(CLOSED)
        if self._forked:
            raise UsageError("a store does not survive a fork: open another handle in the child")
        if self._loop is None:
            self._loop = loop
            self._writer = self._start(_open_writer, self._writes, "perdure-writer")
        elif self._loop is not loop:
            raise UsageError("a store belongs to one event loop: open another handle for this one")

    async def _start_reading(self) -> None:
        await self.open()
        while len(self._readers) < READERS:
            self._readers.append(self._start(_open_reader, self._reads, "perdure-reader"))

    def _start(
        self, connect: Callable[[_File], ListRunner], queue: SimpleQueue[Job | Signal], name: str
    ) -> DatabaseThread:
        return DatabaseThread(
            # A thread that knew the handle would keep it alive.
            partial(connect, self._file),
            queue=queue,
            loop=asyncio.get_running_loop(),
            path=self.path,
            name=name,
        )


class _File(NamedTuple):
    """How the file of a handle is used."""

    path: str
    durability: Durability
    migrate: bool
    clock: Clock
    texts: Mapping[str, Text]
    patience_ms: float


def _open_writer(file: _File) -> ListRunner:
    connection = connect_writer(file.path, file.durability)
    try:
        prepare_schema(connection, migrate=file.migrate, clock=file.clock)
        runner = _runner(file, connection, writes=True)
        runner.compile(_EXPECTED)
        return runner
    except BaseException:
        connection.close()
        raise


def _open_reader(file: _File) -> ListRunner:
    runner = _runner(file, connect_reader(file.path), writes=False)
    # Which of the threads answers is chance: a later look may be the first of its connection.
    runner.compile(("read_run",))
    return runner


def _runner(file: _File, connection: sqlite3.Connection, *, writes: bool) -> ListRunner:
    return ListRunner(
        connection,
        file.texts,
        path=file.path,
        clock=file.clock,
        writes=writes,
        patience_ms=file.patience_ms,
    )


def _stop(*queues: SimpleQueue[Job | Signal]) -> None:
    """Tell every thread that reads one of the queues to finish."""
    for queue in queues:
        for _ in range(READERS):
            queue.put(Signal.CLOSE)


async def _joined(thread: DatabaseThread) -> None:
    await asyncio.get_running_loop().run_in_executor(None, thread.join)


_handles: weakref.WeakSet[Sqlite] = weakref.WeakSet()


def _disown_handles() -> None:
    """Threads do not survive a fork, and a database file must not be shared across one."""
    for handle in list(_handles):
        handle.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_handles)
