"""A connection that is opened when it is needed, and what encloses each of its transactions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

import psycopg

from perdure.errors import StoreUnavailableError
from perdure.store.sql.database import Refused, Statement
from perdure.store.sql.postgres.dialect import is_lost, is_taken, refused_index, translated
from perdure.store.sql.postgres.pipe import Connection, Outcome, Pipe, Sent
from perdure.store.sql.postgres.silence import takes_long
from perdure.store.sql.postgres.texts import Renderer, Rows, rows_of_each


class Job(NamedTuple):
    """A list of statements, and the future that waits for its rows."""

    statements: Sequence[Statement]
    future: asyncio.Future[Rows]

    @property
    def place(self) -> str:
        """What the list locks first: the run, or what its session is called."""
        return str(self.statements[0].values[:2]) if self.statements else ""


class Line:
    """A connection of one kind, opened anew after it was lost.

    `ahead` and `behind` enclose every transaction; `committed` is called after each. What is
    `expected` is prepared with the opening.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        renderer: Renderer,
        *,
        prepares: bool,
        ahead: Sequence[Sent] = (),
        behind: Sequence[Sent] = (),
        committed: Callable[[], None] | None = None,
        expected: Sequence[Sent] = (),
    ) -> None:
        self._connect = connect
        self._renderer = renderer
        self._prepares = prepares
        self._ahead = ahead
        self._behind = behind
        self._committed = committed
        self._expected = expected
        self._pipe: Pipe | None = None

    @property
    def is_open(self) -> bool:
        return self._pipe is not None and not self._pipe.closed

    async def open(self) -> None:
        await self.close()
        self.adopt(await self._connect())

    def adopt(self, connection: Connection) -> None:
        """Use a connection that was made for this line, which has none."""
        self._pipe = Pipe(connection, prepares=self._prepares, expected=self._expected)

    async def close(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            await pipe.close()

    def render(self, statements: Sequence[Statement]) -> list[Sent]:
        return self._renderer.render(statements)

    def send(
        self,
        statements: Sequence[Sent],
        done: Callable[[Outcome], None],
        *,
        is_patient: bool = False,
    ) -> None:
        """Run all statements as one transaction; `done` is given the rows of each.

        The line is open, and nothing else is under way. `is_patient`: it may take long.
        """
        assert self._pipe is not None
        if self._ahead or self._behind:
            statements = [*self._ahead, *statements, *self._behind]
        self._pipe.send(statements, partial(self._over, done), is_patient=is_patient)

    def _over(self, done: Callable[[Outcome], None], outcome: Outcome) -> None:
        if isinstance(outcome, list):
            if self._committed is not None:
                self._committed()
            if self._ahead or self._behind:
                outcome = outcome[len(self._ahead) : len(outcome) - len(self._behind)]
        done(outcome)

    async def run(self, statements: Sequence[Statement]) -> Rows:
        """Run one list. Raises Refused, psycopg's errors, UsageError.

        Whoever is cancelled cuts the connection off.
        """
        try:
            rows = rows_of_each(statements, await self._ask(statements, is_fused=True))
        except psycopg.Error as error:
            if not is_taken(error):
                raise
            rows = None
        if rows is None:
            return await self._ask(statements, is_fused=False)
        return rows

    async def _ask(self, statements: Sequence[Statement], *, is_fused: bool) -> Rows:
        sent = self._renderer.render(statements, is_fused=is_fused)
        if not self.is_open:
            await self.open()
        over: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.send(sent, over.set_result, is_patient=takes_long(statements))
        try:
            outcome = await asyncio.shield(over)
        except asyncio.CancelledError:
            await self.close()
            raise
        if isinstance(outcome, Exception):
            raise meaning(outcome)
        return outcome


def meaning(error: Exception) -> Exception:
    """Return `error` of a single list, or Refused if one of its statements found no row."""
    index = refused_index(error)
    return error if index is None else Refused(index)


def answer(job: Job, rows: Rows) -> None:
    """Tell the caller; if he was cancelled, it has happened all the same."""
    if not job.future.done():
        job.future.set_result(rows)


def refuse(job: Job, error: Exception, target: str) -> None:
    """Tell the caller why nothing of his list happened, or that nobody knows."""
    if job.future.done():
        return
    told = error if isinstance(error, Refused) else translated(error, target)
    if is_lost(error) and not isinstance(told, StoreUnavailableError):
        told = StoreUnavailableError(f"the connection was lost: {error} ({target})")
    job.future.set_exception(told)


def cut_off(target: str) -> StoreUnavailableError:
    """Return what callers are told when somebody has cancelled every task of the loop."""
    return StoreUnavailableError(f"the connection was cut off by a cancel ({target})")
