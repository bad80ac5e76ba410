"""One connection in libpq's pipeline mode, driven by the loop's own callbacks, without a task."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import errors, pq
from psycopg.adapt import Transformer

from perdure.store.sql.database import Row
from perdure.store.sql.postgres import silence

logger = logging.getLogger("perdure.postgres")

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

_ROWS: Final = pq.ExecStatus.TUPLES_OK
_DONE: Final = pq.ExecStatus.COMMAND_OK
_ABORTED: Final = pq.ExecStatus.PIPELINE_ABORTED
_SYNC: Final = pq.ExecStatus.PIPELINE_SYNC
_IN_ERROR: Final = pq.TransactionStatus.INERROR
_MORE_TO_SEND: Final = 1
_LOOKS: Final = 6


class Sent(NamedTuple):
    """A statement as it travels: by which name it is prepared, its text, its values.

    `formats`: which values are texts that go by their length (1); others end where libpq finds a
    zero (0).
    """

    name: bytes
    sql: bytes
    values: Sequence[bytes | None] = ()
    formats: Sequence[int] = ()


Outcome = list[list[Row]] | Exception
"""The rows of each statement of a segment, or why nothing of it has happened."""


class Pipe:
    """Sends segments, one at a time, each in one piece, and calls back with what became of it.

    A segment is one transaction without a BEGIN and a COMMIT: it ends where libpq's sync stands.
    Whoever waits is answered from the callback that has read the last byte, so nothing but the
    round trip lies between. A statement is prepared where it is first sent, unless the connection
    is not ours alone (`prepares` False). What is `expected` is prepared at once, while nobody waits
    for it yet. A server that says nothing for `silence.ANSWER_MS`, looked
    after by one timer while something is under way, is given up. Belongs to the loop that made it.
    """

    def __init__(
        self, connection: Connection, *, prepares: bool, expected: Sequence[Sent] = ()
    ) -> None:
        self._connection = connection
        self._prepares = prepares
        self._loop = asyncio.get_running_loop()
        self._pgconn = connection.pgconn
        self._socket = self._pgconn.socket
        self._transformer = Transformer(connection)
        self._prepared: set[bytes] = set()
        self._expected: deque[bytes | None] = deque()
        self._done: Callable[[Outcome], None] | None = None
        self._rows: list[list[Row]] = []
        self._failure: Exception | None = None
        self._is_writing = False
        self._timer: asyncio.TimerHandle | None = None
        self._quiet_looks = 0
        self._is_patient = False
        self._is_preparing = False
        self._held: Sequence[Sent] = ()
        self._pgconn.nonblocking = 1
        self._pgconn.enter_pipeline_mode()
        self._loop.add_reader(self._socket, self._read)
        if expected:
            self._is_preparing = True
            self._put(self._queue_expected, expected)

    @property
    def closed(self) -> bool:
        return self._socket < 0

    def send(
        self,
        statements: Sequence[Sent],
        done: Callable[[Outcome], None],
        *,
        is_patient: bool = False,
    ) -> None:
        """Send a segment; `done` is called later, once. Nothing else may be under way.

        `is_patient`: the server may work on it for as long as it likes.
        """
        assert self._done is None
        self._done = done
        self._quiet_looks, self._is_patient = 0, is_patient
        if self._timer is None:
            self._look_later()
        if self._is_preparing:
            # Which of its statements are prepared is not known yet.
            self._held = statements
        else:
            self._put(self._queue, statements)

    async def close(self) -> None:
        """Let go of the connection. What is under way is told that it was cut off."""
        self._break(errors.OperationalError("the connection was closed"))
        try:
            await self._connection.close()
        except psycopg.Error as error:
            logger.debug("closing a connection failed: %s", error)

    def _put(self, queue: Callable[[Sequence[Sent]], None], statements: Sequence[Sent]) -> None:
        self._rows, self._failure = [], None
        try:
            queue(statements)
            self._flush()
        except Exception as error:  # Whoever waits has to be told, whatever it is.
            self._loop.call_soon(self._break, error)

    def _queue(self, statements: Sequence[Sent]) -> None:
        pgconn, expected = self._pgconn, self._expected
        asked: set[bytes] = set()
        for name, sql, values, formats in statements:
            if not self._prepares:
                pgconn.send_query_params(sql, values, param_formats=formats or None)
            else:
                if name not in self._prepared and name not in asked:
                    pgconn.send_prepare(name, sql)
                    asked.add(name)
                    expected.append(name)
                pgconn.send_query_prepared(name, values, formats or None)
            expected.append(None)
        pgconn.pipeline_sync()

    def _queue_expected(self, statements: Sequence[Sent]) -> None:
        for name, sql, _, _ in statements:
            self._pgconn.send_prepare(name, sql)
            self._expected.append(name)
        self._pgconn.pipeline_sync()

    def _flush(self) -> None:
        if self._pgconn.flush() == _MORE_TO_SEND:
            if not self._is_writing:
                self._is_writing = True
                self._loop.add_writer(self._socket, self._write)
        elif self._is_writing:
            self._is_writing = False
            self._loop.remove_writer(self._socket)

    def _write(self) -> None:
        try:
            self._flush()
        except psycopg.Error as error:
            self._break(error)

    def _look_later(self) -> None:
        self._timer = self._loop.call_later(silence.ANSWER_MS / _LOOKS / 1_000, self._look)

    def _look(self) -> None:
        """Count how often in a row nothing was heard: what is answered meanwhile costs no timer."""
        self._timer = None
        if self._done is None:
            return
        self._quiet_looks += 1
        if self._quiet_looks >= _LOOKS and not self._is_patient:
            self._break(silence.silent())
        else:
            self._look_later()

    def _read(self) -> None:
        self._quiet_looks = 0
        try:
            is_over = self._take_what_came()
        except psycopg.OperationalError as error:
            self._break(error)
        except Exception as error:  # Whoever waits has to be told, whatever it is.
            broken = errors.OperationalError(f"an answer cannot be taken: {error!r}")
            broken.__cause__ = error
            self._break(broken)
        else:
            if is_over:
                self._finish()

    def _take_what_came(self) -> bool:
        """Return whether the segment has ended."""
        pgconn = self._pgconn
        pgconn.consume_input()
        while (self._done is not None or self._is_preparing) and not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                if pgconn.status != pq.ConnStatus.OK:
                    raise errors.OperationalError("the connection broke")
            elif result.status == _SYNC and self._is_preparing:
                self._ready()
            elif result.status == _SYNC:
                return True
            else:
                self._take(result)
        return False

    def _take(self, result: pq.abc.PGresult) -> None:
        status = result.status
        prepared = self._expected.popleft() if self._expected else None
        if status == _ROWS:
            self._transformer.set_pgresult(result)
            self._rows.append(self._transformer.load_rows(0, result.ntuples, tuple))
        elif status == _DONE:
            if prepared is None:
                self._rows.append([])
            else:
                self._prepared.add(prepared)
        elif status != _ABORTED and self._failure is None:
            self._failure = errors.error_from_result(result)

    def _ready(self) -> None:
        """Send what was held; what could not be prepared, whoever sends it is told of."""
        self._is_preparing = False
        held, self._held = self._held, ()
        if self._done is not None:
            self._put(self._queue, held)

    def _finish(self) -> None:
        self._expected.clear()
        done, self._done = self._done, None
        if self._pgconn.transaction_status == _IN_ERROR:
            # A BEGIN of its own has failed; the server undoes it with the connection.
            self._detach()
        if done is not None:
            done(self._rows if self._failure is None else self._failure)

    def _break(self, error: Exception) -> None:
        self._detach()
        done, self._done = self._done, None
        if done is not None:
            # The server's own last word says more than that the connection broke.
            done(self._failure or error)

    def _detach(self) -> None:
        if self.closed:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket = -1
        self._pgconn.finish()
