"""One connection, the lists that wait for it, and the transactions that they share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

import psycopg

from perdure.core.effects import jittered
from perdure.errors import StoreUnavailableError
from perdure.store.sql.database import Refused, Row, Statement
from perdure.store.sql.postgres.dialect import (
    Render,
    Sent,
    is_lost,
    is_transient,
    refused_index,
    translated,
)

logger = logging.getLogger("perdure.postgres")

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Rows = list[list[Row]]

LISTS_MAX: Final = 128
"""How many lists share one transaction at most."""
_TRIES_MAX: Final = 8
_PAUSE_MS: Final = 5.0


class Job(NamedTuple):
    """A list of statements, and the future that waits for its rows."""

    statements: Sequence[Statement]
    future: asyncio.Future[Rows]


class Lane:
    """Runs what is put into it, in order; what piled up meanwhile shares a transaction.

    Everything of a transaction travels in one piece, its COMMIT too: whether it holds is decided
    in the database. A list that is refused, or at fault, is run again alone after the others. A
    connection that was lost is opened anew with the next list; what had been sent is answered
    with StoreUnavailableError, since nobody can say whether it happened.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        render: Render,
        *,
        begin: Sequence[str],
        prepare: bool,
        target: str,
    ) -> None:
        self.commits = 0
        self._connect = connect
        self._render = render
        self._begin = begin
        self._prepare = prepare
        self._target = target
        self._jobs: asyncio.Queue[Job | None] = asyncio.Queue()
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None

    def put(self, job: Job | None) -> None:
        self._jobs.put_nowait(job)
        if self._task is None or self._task.done():
            self._start()

    async def close(self) -> None:
        """Finish what was accepted, then let go."""
        if self._task is not None:
            self.put(None)
            while not self._task.done():
                await asyncio.wait((self._task,))

    def _start(self) -> None:
        self._task = asyncio.create_task(self._serve(), name="perdure-postgres")
        self._task.add_done_callback(self._go_on)

    def _go_on(self, over: asyncio.Task[None]) -> None:
        # Somebody has cancelled every task of the loop, but this work is not his.
        if over.cancelled() and not self._jobs.empty():
            self._start()

    async def _serve(self) -> None:
        try:
            while (job := await self._jobs.get()) is not None:
                jobs = [job]
                last = False
                while len(jobs) < LISTS_MAX and not self._jobs.empty():
                    more = self._jobs.get_nowait()
                    if more is None:
                        last = True
                        break
                    jobs.append(more)
                await self._serve_group(jobs)
                if last:
                    return
        finally:
            await self._drop()

    async def _serve_group(self, jobs: list[Job]) -> None:
        try:
            await self._run_group(jobs)
        except asyncio.CancelledError:
            cut = StoreUnavailableError(f"the connection was cut off by a cancel ({self._target})")
            _refuse(jobs, cut, self._target)
            raise

    async def _run_group(self, jobs: list[Job]) -> None:
        # Whoever locks rows does it in one order, so that groups of two processes never deadlock.
        jobs.sort(key=_place)
        if len(jobs) > 1:
            try:
                done = await self._transaction([job.statements for job in jobs])
            except Exception as error:
                if is_lost(error):
                    await self._drop()
                    _refuse(jobs, error, self._target)
                    return
            else:
                for job, rows in zip(jobs, done, strict=True):
                    _answer(job, rows)
                return
        for job in jobs:
            await self._run_alone(job)

    async def _run_alone(self, job: Job) -> None:
        pause_ms = _PAUSE_MS
        for tries in range(1, _TRIES_MAX + 1):
            try:
                (rows,) = await self._transaction([job.statements])
            except Exception as error:
                if is_lost(error):
                    await self._drop()
                elif is_transient(error) and tries < _TRIES_MAX:
                    await asyncio.sleep(jittered(pause_ms) / 1_000)
                    pause_ms *= 2
                    continue
                _refuse([job], error, self._target)
            else:
                _answer(job, rows)
            return

    async def _transaction(self, lists: Sequence[Sequence[Statement]]) -> list[Rows]:
        """Run all lists as one transaction. Raises Refused of a single list, psycopg's errors."""
        connection = await self._connected()
        sent = [self._render(statements) for statements in lists]
        if not any(sent):
            return [[] for _ in lists]
        try:
            cursors = await self._send(connection, [each for some in sent for each in some])
        except Exception as error:
            if not is_lost(error) and not connection.closed:
                await connection.rollback()
            index = refused_index(error)
            if index is not None and len(lists) == 1:
                raise Refused(index) from None
            raise
        self.commits += 1
        found = iter(cursors)
        return [[await _rows_of(next(found)) for _ in some] for some in sent]

    async def _send(
        self, connection: Connection, statements: Sequence[Sent]
    ) -> list[psycopg.AsyncCursor[tuple[Any, ...]]]:
        cursors: list[psycopg.AsyncCursor[tuple[Any, ...]]] = []
        failure: Exception | None = None
        try:
            async with connection.pipeline():
                # A failure inside is the first one; leaving the block only tells of what it ended.
                try:
                    for text in self._begin:
                        await connection.execute(text.encode())
                    for sql, values in statements:
                        cursor = connection.cursor()
                        await cursor.execute(sql.encode(), values, prepare=self._prepare)
                        cursors.append(cursor)
                    await connection.execute(b"COMMIT")
                except psycopg.Error as error:
                    failure = error
        except psycopg.Error as error:
            raise failure or error from None
        if failure is not None:
            raise failure
        return cursors

    async def _connected(self) -> Connection:
        if self._connection is not None and self._connection.closed:
            await self._drop()
        if self._connection is None:
            self._connection = await self._connect()
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close()
            except psycopg.Error as error:
                logger.debug("closing a connection failed: %s", error)


async def _rows_of(cursor: psycopg.AsyncCursor[tuple[Any, ...]]) -> list[Row]:
    return await cursor.fetchall() if cursor.description else []


def _place(job: Job) -> str:
    """Return what a list locks first: the run, or what its session is called."""
    return str(job.statements[0].values[:2]) if job.statements else ""


def _answer(job: Job, rows: Rows) -> None:
    if not job.future.done():
        job.future.set_result(rows)  # Else the caller was cancelled; it has happened all the same.


def _refuse(jobs: Sequence[Job], error: Exception, target: str) -> None:
    for job in jobs:
        if job.future.done():
            continue
        told = error if isinstance(error, Refused) else translated(error, target)
        if is_lost(error) and not isinstance(told, StoreUnavailableError):
            told = StoreUnavailableError(f"the connection was lost: {error} ({target})")
        job.future.set_exception(told)
