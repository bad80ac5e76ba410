"""Running lists of statements on one SQLite connection: what waits shares one transaction."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from perdure.core.effects import Clock, iso_time
from perdure.errors import StoreBusyError, StoreUnavailableError
from perdure.store.sql.database import Refused, Row, Statement, Text
from perdure.store.sql.sqlite_connection import (
    PATIENCE_MS,
    begin,
    patient,
    primary_code,
    translated,
)

Rows = list[list[Row]]


class Job(NamedTuple):
    """A list of statements, and the future that waits for its rows."""

    statements: Sequence[Statement]
    future: asyncio.Future[Rows]


class Answer(NamedTuple):
    """What a waiting caller is told."""

    future: asyncio.Future[Rows]
    rows: Rows | None
    error: BaseException | None = None


def deliver(answers: Sequence[Answer]) -> None:
    """Tell the callers; runs on their loop."""
    for future, rows, error in answers:
        if future.done():
            continue  # The caller was cancelled; what it asked for has happened all the same.
        if error is None:
            future.set_result(rows or [])
        else:
            future.set_exception(error)


# A broken constraint, a parameter that cannot be bound, a value that is too large.
_AT_FAULT = (
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
)


class _ListFailed(Exception):
    """The list at `index` of a group could not be run, because of `error`."""

    def __init__(self, index: int, error: Exception) -> None:
        super().__init__(index, error)
        self.index = index
        self.error = error

    @property
    def is_its_fault(self) -> bool:
        """Whether the list would fail alone too, while the others would not."""
        return isinstance(self.error, _AT_FAULT) or not isinstance(self.error, sqlite3.Error)


class ListRunner:
    """Runs lists on one connection, from one thread at a time.

    `writes`: it takes the write lock, and an I/O error ends its life, since nobody can say what
    is on the disk after a flush that failed.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        texts: Mapping[str, Text],
        *,
        path: str,
        clock: Clock,
        writes: bool,
        patience_ms: float = PATIENCE_MS,
    ) -> None:
        self.commits = 0
        self.dead: str | None = None
        self._connection = connection
        self._cursor = connection.cursor()
        self._texts = texts
        self._path = path
        self._clock = clock
        self._writes = writes
        self._patience_ms = patience_ms
        self._second, self._second_text = -1, ""
        self._version = patient(self._data_version)

    def run(self, statements: Sequence[Statement]) -> Rows:
        """Run one list as one transaction. Raises Refused, StoreError."""
        try:
            (rows,) = self._transaction([statements])
        except Exception as error:
            meaning = self._meaning(error)
            raise meaning from meaning.__cause__
        return rows

    def run_group(self, jobs: Sequence[Job]) -> list[Answer]:
        """Run all lists in one transaction; where that fails, give each what it has coming.

        A list that is refused, or that is at fault, is taken out and run alone after the others;
        a failure that is nobody's fault sends each its own way. Nothing is answered before it is
        committed.
        """
        group = list(jobs)
        alone: list[Job] = []
        while group:
            try:
                done = self._transaction([job.statements for job in group])
            except StoreBusyError as error:
                return [Answer(job.future, None, StoreBusyError(*error.args)) for job in jobs]
            except Exception as error:
                meaning = self._meaning(error)
                if self.dead is not None:
                    return [
                        Answer(job.future, None, StoreUnavailableError(self.dead)) for job in jobs
                    ]
                if len(jobs) == 1:
                    return [Answer(jobs[0].future, None, meaning)]
                if isinstance(error, _ListFailed) and error.is_its_fault:
                    alone.append(group.pop(error.index))
                    continue
                alone += group
                break
            answers = [Answer(job.future, rows) for job, rows in zip(group, done, strict=True)]
            return answers if not alone else answers + self._run_each(alone)
        return self._run_each(alone)

    def _run_each(self, jobs: Sequence[Job]) -> list[Answer]:
        return [answer for job in jobs for answer in self.run_group([job])]

    def compile(self, names: Sequence[str]) -> None:
        """Compile statements before anybody waits for them; they are not run.

        The module keeps what it compiled by its text, and refuses to run it without its values.
        What cannot be compiled is met by whoever asks for it.
        """
        for name in names:
            sql = self._texts[name].sql
            assert "?1" in sql, f"{name} would be run"
            with contextlib.suppress(sqlite3.Error):
                self._cursor.execute(sql)

    def changed_elsewhere(self) -> bool:
        """Return whether another connection has committed since the last call."""
        try:
            before, self._version = self._version, self._data_version()
        except sqlite3.OperationalError as error:
            if primary_code(error) != sqlite3.SQLITE_BUSY:
                raise
            return True  # Another process repairs the file: reason enough to look.
        return before != self._version

    def close(self) -> None:
        self._connection.close()

    def _transaction(self, lists: Sequence[Sequence[Statement]]) -> list[Rows]:
        if self.dead is not None:
            raise StoreUnavailableError(self.dead)
        if not any(lists):
            return [[] for _ in lists]
        cursor = self._cursor
        if self._writes:
            begin(cursor, patience_ms=self._patience_ms)
        else:
            cursor.execute("BEGIN")
        index = 0
        try:
            now = self._now()
            done: list[Rows] = []
            for index, statements in enumerate(lists):  # noqa: B007 the handler names the culprit
                done.append(self._execute(statements, now))
        except Exception as error:
            self._roll_back()
            raise _ListFailed(index, error) from error
        try:
            cursor.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        self.commits += 1
        return done

    def _execute(self, statements: Sequence[Statement], now: str) -> Rows:
        cursor, texts = self._cursor, self._texts
        rows: Rows = []
        for name, values, required, shortcut, others in statements:
            if shortcut is not None:
                known = values if others is None else others
                count = cursor.execute(texts[shortcut].sql, (*known, now)).rowcount
                # Of one that only looks nothing is counted.
                if count > 0 or (count < 0 and cursor.fetchone() is not None):
                    rows.append([(now,)])
                    continue
            sql, wants_now = texts[name]
            cursor.execute(sql, (*values, now) if wants_now else values)
            found = cursor.fetchall()
            if required and not found:
                raise Refused(len(rows))
            rows.append(found)
        return rows

    def _now(self) -> str:
        """Return the store's time as text, the part down to the second kept for the next call."""
        now_ms = self._clock()
        second, milliseconds = divmod(now_ms, 1_000)
        if second != self._second:
            self._second, self._second_text = second, iso_time(now_ms)[: -len("000Z")]
        return f"{self._second_text}{milliseconds:03d}Z"

    def _roll_back(self) -> None:
        if not self._connection.in_transaction:
            return  # SQLite has done it by itself, as it does when the disk is full.
        try:
            self._cursor.execute("ROLLBACK")
        except sqlite3.Error as error:
            self.dead = f"the database connection broke: {error} ({self._path!r})"

    def _meaning(self, error: Exception) -> Exception:
        """Return what the caller is told of a failed transaction; note the death of a writer."""
        if isinstance(error, _ListFailed):
            error = error.error
        if (
            self._writes
            and isinstance(error, sqlite3.Error)
            and primary_code(error) == sqlite3.SQLITE_IOERR
        ):
            self.dead = (
                f"writing {self._path!r} failed ({error}): what is on the disk is unknown, so "
                "this handle is not used any more"
            )
            return StoreUnavailableError(self.dead)
        return translated(error, self._path)

    def _data_version(self) -> int:
        (version,) = self._cursor.execute("PRAGMA data_version").fetchone()
        return int(version)
