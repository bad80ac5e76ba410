"""The D1 driver: each list is one batch, sent again where nobody knows what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from perdure.core.effects import Clock, iso_time, jittered, monotonic_ms, system_clock
from perdure.errors import StoreClosedError, StoreUnavailableError, UsageError
from perdure.store.closing import CLOSED
from perdure.store.liveness import NoLiveness
from perdure.store.sql.d1.batches import (
    Batch,
    Rows,
    Sent,
    d1_statements,
    refused_index,
    render,
    rows_of_list,
)
from perdure.store.sql.d1.binding import Connecting, D1Binding, rows_of
from perdure.store.sql.d1.failures import is_busy, is_lost, translated
from perdure.store.sql.d1.proxied import python_binding
from perdure.store.sql.d1.schema import prepare_schema, schema_version
from perdure.store.sql.d1.threads import BlockingConnection, LoopConnection
from perdure.store.sql.database import Connection, Refused, Statement

POLL_MS: Final = 250
"""How often whoever waits looks by himself: D1 tells nobody of a write."""
API_POLL_MS: Final = 1_000
"""The same over HTTP, where Cloudflare allows an account a few requests a second."""
PAUSES_MS: Final = (50, 100, 200, 400, 800)
"""Between the tries of a list."""
PATIENCE_MS: Final = 10_000
"""After so long it is not tried once more."""


class D1:
    """A D1 database of Cloudflare, for any number of workers.

    `binding` is a Worker's own (`env.DB`), a `D1Api`, or anything with the same surface.
    `migrate` brings the schema up to date; by default one that lacks something is refused, since
    it is migrated by a command. `clock` None: the database's clock. Whoever waits for a write of
    another handle looks every `poll_ms`.

    A batch whose answer was lost is sent again: every write carries a token by which it meets
    its own effect.
    """

    def __init__(
        self,
        binding: D1Binding,
        *,
        migrate: bool = False,
        clock: Clock | None = None,
        poll_ms: float = POLL_MS,
    ) -> None:
        if not callable(getattr(binding, "prepare", None)):
            raise UsageError(
                f"{type(binding).__name__!r:.80} is no D1 binding: it has no `prepare`"
            )
        self._binding = python_binding(binding)
        self._migrate = migrate
        self._clock = clock
        self._texts = d1_statements(own_clock=clock is not None)
        self._poll_ms = poll_ms
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._opening: asyncio.Task[None] | None = None
        self._tails: dict[str, asyncio.Task[None]] = {}
        self._changed: Callable[[], None] | None = None
        self._polling: asyncio.Task[None] | None = None

    @property
    def target(self) -> str:
        """Where the data lies, for messages."""
        target = getattr(self._binding, "target", None)
        return target if isinstance(target, str) else "D1"

    @property
    def liveness(self) -> NoLiveness:
        # There is no lock that an end of the process would give back.
        return NoLiveness()

    @property
    def writes_wait(self) -> bool:
        return True

    async def open(self) -> None:
        self._check()
        await self._opened()

    def run(self, statements: Sequence[Statement]) -> asyncio.Future[Rows]:
        self._check()
        future: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()
        # Lists of one run stay in order.
        key = str(statements[0].values[:1]) if statements else ""
        task = asyncio.create_task(self._serve(statements, future, self._tails.get(key)))
        self._tails[key] = task
        task.add_done_callback(partial(self._served, key, future))
        return future

    async def read(self, statements: Sequence[Statement]) -> Rows:
        self._check()
        return await self._attempt(statements)

    def watch(self, changed: Callable[[], None], *, interval_ms: int | None) -> None:
        self._check()
        self._changed = None if interval_ms is None else changed
        if interval_ms is not None and (self._polling is None or self._polling.done()):
            self._polling = asyncio.create_task(self._poll(), name="perdure-poll")

    def connect(self) -> Connection:
        """Return a connection for one thread that is not the loop's.

        A binding belongs to the loop, which then does what the thread asks for.
        """
        if isinstance(self._binding, Connecting):
            return BlockingConnection(self._binding.connect(), self._render, target=self.target)
        return LoopConnection(self, asyncio.get_event_loop() if self._loop is None else self._loop)

    async def scrub(self, *, whole: bool) -> None:
        """Do nothing: what deleted rows leave behind is the service's to tidy up."""
        self._check()

    async def schema_version(self) -> int | None:
        """Return the highest version of the reference's schema; None if none was applied."""
        self._check()
        return await schema_version(self._ask)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._polling is not None:
            self._polling.cancel()
        working = [*self._tails.values()]
        if self._opening is not None:
            working.append(self._opening)
        if working:
            await asyncio.wait(working)
        if isinstance(self._binding, Connecting):
            await self._binding.aclose()

    def _check(self) -> None:
        """Start with the first call; raise if this handle may not be used here and now."""
        loop = asyncio.get_running_loop()
        if self._closed:
            raise StoreClosedError(CLOSED)
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise UsageError("a store belongs to one event loop: open another handle for this one")

    async def _opened(self) -> None:
        opening = self._opening
        if opening is None or (opening.done() and _has_failed(opening)):
            opening = self._opening = asyncio.create_task(self._prepare())
        if not opening.done():
            await asyncio.shield(opening)
        opening.result()

    async def _prepare(self) -> None:
        await prepare_schema(self._ask, migrate=self._migrate, clock=self._clock or system_clock)

    async def _serve(
        self,
        statements: Sequence[Statement],
        future: asyncio.Future[Rows],
        before: asyncio.Task[None] | None,
    ) -> None:
        if before is not None and not before.done():
            await asyncio.wait([before])
        try:
            rows = await self._attempt(statements)
        except Exception as error:
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(rows)  # Else the caller was cancelled; it has happened.

    def _served(self, key: str, future: asyncio.Future[Rows], task: asyncio.Task[None]) -> None:
        if self._tails.get(key) is task:
            del self._tails[key]
        if task.cancelled() and not future.done():
            # Somebody has cancelled every task of the loop.
            future.set_exception(
                StoreUnavailableError(f"the call was cut off by a cancel ({self.target})")
            )

    async def _attempt(self, statements: Sequence[Statement]) -> Rows:
        """Run a list. Raises Refused, StoreError."""
        await self._opened()
        if not statements:
            return []
        batch = self._render(statements)
        results, repeated = await self._send_patiently(batch.sent)
        try:
            return rows_of_list(statements, batch, results)
        except Refused as refused:
            raise Refused(refused.index, repeated=repeated) from None

    async def _ask(self, texts: Sequence[str]) -> Rows:
        results, _ = await self._send_patiently([(text.rstrip(";"), ()) for text in texts])
        return [rows_of(result) for result in results]

    async def _send_patiently(self, sent: Sequence[Sent]) -> tuple[Sequence[Any], bool]:
        """Return the results of a batch, and whether it may have happened before.

        It is sent again where that may help. Raises Refused, StoreError.
        """
        repeated, deadline_ms = False, monotonic_ms() + PATIENCE_MS
        pauses = iter(PAUSES_MS)
        while True:
            try:
                return await self._send(sent), repeated
            except Exception as error:
                index = refused_index(error)
                if index is not None:
                    raise Refused(index, repeated=repeated) from None
                lost = is_lost(error)
                pause_ms = next(pauses, None) if monotonic_ms() < deadline_ms else None
                if pause_ms is None or not (lost or is_busy(error)):
                    raise translated(error, self.target) from error
                repeated = repeated or lost
            await asyncio.sleep(jittered(pause_ms) / 1_000)

    async def _send(self, sent: Sequence[Sent]) -> Sequence[Any]:
        statements = [
            self._binding.prepare(sql).bind(*values) if values else self._binding.prepare(sql)
            for sql, values in sent
        ]
        results: Sequence[Any] = await self._binding.batch(statements)
        return results

    def _render(self, statements: Sequence[Statement]) -> Batch:
        now = None if self._clock is None else iso_time(self._clock())
        return render(self._texts, statements, now)

    async def _poll(self) -> None:
        while self._changed is not None:
            await asyncio.sleep(jittered(self._poll_ms, 0.2) / 1_000)
            if self._changed is not None:
                self._changed()


def _has_failed(task: asyncio.Task[None]) -> bool:
    return task.cancelled() or task.exception() is not None
