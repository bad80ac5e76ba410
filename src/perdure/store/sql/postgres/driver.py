"""The PostgreSQL driver: lanes of connections behind an asyncio handle, for a fleet of workers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal

import psycopg

from perdure.core.effects import Clock, iso_time, system_clock
from perdure.errors import StoreClosedError, UsageError
from perdure.store.closing import CLOSED
from perdure.store.liveness import NoLiveness
from perdure.store.sql.database import Statement
from perdure.store.sql.postgres.address import read_address
from perdure.store.sql.postgres.dialect import translated
from perdure.store.sql.postgres.hints import Hints
from perdure.store.sql.postgres.lane import Lane
from perdure.store.sql.postgres.line import Job, Line
from perdure.store.sql.postgres.liveness import PostgresLiveness
from perdure.store.sql.postgres.pipe import Connection, Sent
from perdure.store.sql.postgres.renewer import PostgresConnection
from perdure.store.sql.postgres.schema import prepare_schema
from perdure.store.sql.postgres.siding import Siding
from perdure.store.sql.postgres.silence import ThreadConnection, answered, network_parameters
from perdure.store.sql.postgres.texts import PostgresStatements, Renderer, Rows

WRITERS: Final = 2
READERS: Final = 2
SHARED_LOCK_TIMEOUT_MS: Final = 200
"""So long a shared transaction waits for a row that somebody else has locked."""
LOCK_TIMEOUT_MS: Final = 2_000
"""The same of a list that is alone; then it is run again."""
IDLE_TIMEOUT_MS: Final = 10_000
"""The server ends a transaction whose client says nothing for so long: it may be dead."""

_PLANS: Final = {"enable_seqscan": "off", "jit": "off"}
"""A connection keeps the plan of a statement that it prepares: one that was made while tables were
empty, and reads them as a whole, would do so until the server analyses them, however they grew."""
_SNAPSHOT: Final = {
    "default_transaction_isolation": "repeatable read",
    "default_transaction_read_only": "on",
}

Durability = Literal["full", "normal"]


class Postgres:
    """A schema of a PostgreSQL database, for any number of workers on any machines.

    `url` is what libpq understands (`postgresql://user@host/database`), with `schema=` (default
    "perdure") as one more parameter, and `pooled=1` for a pooler in transaction mode such as
    PgBouncer: then nothing is used that lives longer than a transaction. `migrate` brings the
    schema up to date; by default one that lacks something is refused, since a fleet is migrated
    by a command. `durability="normal"` answers before the log is flushed. `clock` None: the
    database's clock.
    """

    def __init__(
        self,
        url: str,
        *,
        durability: Durability = "full",
        migrate: bool = False,
        clock: Clock | None = None,
    ) -> None:
        if durability not in ("full", "normal"):
            raise UsageError(f"durability must be 'full' or 'normal', not {durability!r:.40}")
        address = read_address(url)
        self._address = address
        self._durability = durability
        self._migrate = migrate
        self._clock = clock
        texts = PostgresStatements(address.schema, own_clock=clock is not None)
        now = None if clock is None else (lambda: iso_time(clock()))
        self._renderer = Renderer(texts, now)
        self._commits = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = os.getpid()
        self._closed = False
        self._opening: asyncio.Task[None] | None = None
        self._first_place: int | None = None
        self._writers: list[Lane] = []
        self._readers: list[Lane] = []
        self._hints: Hints | None = None
        self._liveness = (
            None
            if address.is_pooled
            else PostgresLiveness(self._connect, self.read, schema=address.schema)
        )

    @property
    def target(self) -> str:
        """Where the data lies, without a password."""
        return self._address.target

    @property
    def schema(self) -> str:
        return self._address.schema

    @property
    def liveness(self) -> PostgresLiveness | NoLiveness:
        # A pooler's connection says nothing about whoever used it last.
        return self._liveness or NoLiveness()

    @property
    def writes_wait(self) -> bool:
        return False

    @property
    def commits(self) -> int:
        """How many transactions this handle has committed."""
        return self._commits

    async def open(self) -> None:
        self._check()
        if self._opening is None or self._opening.cancelled():
            self._opening = asyncio.create_task(self._open())
        try:
            await asyncio.shield(self._opening)
        except BaseException:
            if self._opening.done():
                self._opening = None  # The next call tries again.
            raise

    def run(self, statements: Sequence[Statement]) -> asyncio.Future[Rows]:
        self._check()
        future: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()
        if not self._writers:
            self._start_lanes()
        # Lists of one run stay in order.
        place = hash(statements[0].values[0]) if statements else 0
        if self._first_place is None:
            self._first_place = place
        self._writers[(place - self._first_place) % WRITERS].put(Job(statements, future))
        return future

    async def read(self, statements: Sequence[Statement]) -> Rows:
        self._check()
        if not self._readers:
            self._start_lanes()
        future: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()
        # Together, so that they share a round trip, but never behind a read that takes long.
        lane = next((lane for lane in self._readers if not lane.is_late), self._readers[0])
        lane.put(Job(statements, future))
        return await future

    def watch(self, changed: Callable[[], None], *, interval_ms: int | None) -> None:
        self._check()
        if self._hints is not None:
            self._hints.watch(changed, interval_ms=interval_ms)

    def connect(self) -> PostgresConnection:
        """Return a connection of its own, for one thread that is not the loop's."""
        return PostgresConnection(
            self._connect_in_thread,
            self._renderer,
            begin=self._begin(),
            prepare=not self._address.is_pooled,
            target=self.target,
        )

    async def scrub(self, *, whole: bool) -> None:
        """Do nothing: what deleted rows leave behind is the server's to tidy up."""
        self._check()

    async def close(self) -> None:
        if self._closed or self._process != os.getpid():
            return
        self._closed = True
        if self._opening is not None and not self._opening.done():
            await asyncio.wait([self._opening])
        for lane in (*self._readers, *self._writers):
            await lane.close()
        if self._hints is not None:
            await self._hints.close()
        if self._liveness is not None:
            await self._liveness.release()

    def _check(self) -> None:
        """Start with the first call; raise if this handle may not be used here and now."""
        loop = asyncio.get_running_loop()
        if loop is self._loop and not self._closed:
            return
        if self._closed:
            raise StoreClosedError(CLOSED)
        if self._process != os.getpid():
            raise UsageError("a store does not survive a fork: open another handle in the child")
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise UsageError("a store belongs to one event loop: open another handle for this one")

    async def _open(self) -> None:
        try:
            connection = await self._connect()
        except Exception as error:
            raise translated(error, self.target) from error
        try:
            await prepare_schema(
                connection,
                self.schema,
                migrate=self._migrate,
                clock=self._clock or system_clock,
            )
            await self._hand_on(connection)
        except BaseException as error:
            await connection.close()
            if isinstance(error, psycopg.Error):
                raise translated(error, self.target) from error
            raise

    async def _hand_on(self, connection: Connection) -> None:
        """Let the first list that is written have the connection, unless one has its own."""
        if self._writers:
            await connection.close()
            return
        if not self._address.is_pooled:
            async with answered(connection):
                settings = self._settings(SHARED_LOCK_TIMEOUT_MS)
                await connection.execute(_set_sql(settings, is_local=False))
        self._start_lanes()
        self._writers[0].adopt(connection)

    def _start_lanes(self) -> None:
        self._hints = Hints(self._connect, self.schema, is_pooled=self._address.is_pooled)
        self._writers = [self._lane(self._writer) for _ in range(WRITERS)]
        self._readers = [self._lane(self._reader) for _ in range(READERS)]

    def _lane(self, line: Callable[[int], Line]) -> Lane:
        siding = Siding(line(LOCK_TIMEOUT_MS), target=self.target)
        return Lane(line(SHARED_LOCK_TIMEOUT_MS), siding, target=self.target)

    def _writer(self, patience_ms: int) -> Line:
        if not self._address.is_pooled:
            return Line(
                partial(self._connect_ready, self._settings(patience_ms)),
                self._renderer,
                prepares=True,
                committed=self._committed,
                expected=self._renderer.expected(),
            )
        # What is set for a session would be left to whoever gets the connection next.
        ahead = [Sent(b"", _set_sql(self._settings(patience_ms), is_local=True))]
        return Line(
            partial(self._connect_ready, {}),
            self._renderer,
            prepares=False,
            ahead=ahead,
            committed=self._committed,
        )

    def _reader(self, patience_ms: int) -> Line:
        if not self._address.is_pooled:
            settings = {**self._settings(patience_ms), **_SNAPSHOT}
            return Line(partial(self._connect_ready, settings), self._renderer, prepares=True)
        return Line(
            partial(self._connect_ready, {}),
            self._renderer,
            prepares=False,
            ahead=[Sent(b"", b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")],
            behind=[Sent(b"", b"COMMIT")],
        )

    def _committed(self) -> None:
        self._commits += 1
        if self._hints is not None:
            self._hints.written()

    async def _connect_ready(self, settings: Mapping[str, str]) -> Connection:
        await self.open()
        return await self._connect(settings)

    async def _connect(self, settings: Mapping[str, str] | None = None) -> Connection:
        """Connect; `settings` are of the session, by default those of a statement alone."""
        connecting = asyncio.create_task(self._connected(settings), name="perdure-connect")
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            # One that is cut off half-made stays open until its garbage is collected.
            connecting.add_done_callback(_drop)
            await asyncio.wait([connecting])
            raise

    async def _connected(self, settings: Mapping[str, str] | None) -> Connection:
        connection = await psycopg.AsyncConnection.connect(
            self._address.conninfo,
            autocommit=True,
            cursor_factory=psycopg.AsyncRawCursor,
            **self._arguments(),
        )
        if settings is None:
            settings = {} if self._address.is_pooled else self._settings()
        try:
            if settings:
                async with answered(connection):
                    await connection.execute(_set_sql(settings, is_local=False))
        except BaseException:
            await connection.close()
            raise
        return connection

    def _connect_in_thread(self) -> psycopg.Connection[tuple[Any, ...]]:
        connection = ThreadConnection.connect(
            self._address.conninfo,
            autocommit=True,
            cursor_factory=psycopg.RawCursor,
            **self._arguments(),
        )
        try:
            if not self._address.is_pooled:
                connection.execute(_set_sql(self._settings(), is_local=False))
        except BaseException:
            connection.close()
            raise
        return connection

    def _arguments(self) -> dict[str, Any]:
        # Statements are prepared by name of ours or not at all: those of a pooler's connection
        # may be somebody else's.
        return {
            **network_parameters(self._address.conninfo),
            "prepare_threshold": None,
            "client_encoding": "utf8",
        }

    def _begin(self) -> list[str]:
        if not self._address.is_pooled:
            return ["BEGIN"]
        return ["BEGIN", *(f"SET LOCAL {name} = {to}" for name, to in self._settings().items())]

    def _settings(self, patience_ms: int = LOCK_TIMEOUT_MS) -> dict[str, str]:
        settings = {
            "lock_timeout": str(patience_ms),
            "idle_in_transaction_session_timeout": str(IDLE_TIMEOUT_MS),
        }
        if self._durability == "normal":
            settings["synchronous_commit"] = "off"
        return settings if self._address.is_pooled else {**settings, **_PLANS}


def _drop(connecting: asyncio.Task[Connection]) -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().pgconn.finish()


def _set_sql(settings: Mapping[str, str], *, is_local: bool) -> bytes:
    """Return one statement that makes all settings, for the session or its transaction."""
    calls = [f"set_config('{name}', '{to}', {is_local})" for name, to in settings.items()]
    return f"SELECT {', '.join(calls)}".encode()
