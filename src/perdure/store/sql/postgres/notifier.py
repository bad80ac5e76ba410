"""Telling other handles that something was written: one hint at once, then one for each pause."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import psycopg

from perdure.core.effects import jittered
from perdure.store.sql.postgres.pipe import Connection, Outcome, Pipe, Sent
from perdure.store.sql.postgres.silence import answered

logger = logging.getLogger("perdure.postgres")

PAUSE_MS: Final = 10
"""After a hint, the next one waits so long for what else is written."""
_RECONNECT_MS: Final = 1_000


class Notifier:
    """Sends a hint after commits of this handle, on a connection of its own.

    The first after a pause goes at once, so that a reader elsewhere waits for nothing; under load
    one goes for all commits of a pause, since each is a transaction too. It needs a task only to
    connect.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]], channel: str) -> None:
        self.own_pid = 0
        self._connect = connect
        self._hint = Sent(b"hint", f'NOTIFY "{channel}"'.encode())
        self._loop = asyncio.get_running_loop()
        self._pipe: Pipe | None = None
        self._is_pausing = False
        self._is_asked = False
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._opening: asyncio.Task[None] | None = None

    def written(self) -> None:
        """Send a hint, now or with what else is written meanwhile."""
        if self._is_pausing:
            self._is_asked = True
        elif not self._is_closed:
            self._is_pausing = True
            self._send()

    async def close(self) -> None:
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait((self._opening,))
        if self._pipe is not None:
            await self._pipe.close()

    def _send(self) -> None:
        if self._pipe is not None and not self._pipe.closed:
            self._is_asked = False
            self._pipe.send([self._hint], self._sent)
        else:
            self._opening = self._loop.create_task(self._open(), name="perdure-notify")
            self._opening.add_done_callback(self._opened)

    async def _open(self) -> None:
        if self._pipe is not None:
            await self._pipe.close()
        connection = await self._connect()
        self.own_pid = connection.info.backend_pid
        try:
            # A hint that a crash takes along is no loss, but its flush would be one.
            async with answered(connection):
                await connection.execute(b"SET synchronous_commit = off")
        except BaseException:
            await connection.close()
            raise
        self._pipe = Pipe(connection, prepares=True)

    def _opened(self, opening: asyncio.Task[None]) -> None:
        self._opening = None
        if self._is_closed:
            return
        if opening.cancelled():
            self._sent(psycopg.OperationalError("the connecting was cancelled"))
        elif isinstance(error := opening.exception(), Exception):
            self._sent(error)
        else:
            self._send()

    def _sent(self, outcome: Outcome) -> None:
        if self._is_closed:
            return
        pause_ms: float = PAUSE_MS
        if isinstance(outcome, Exception):
            logger.debug("a hint could not be sent, polling goes on: %s", outcome)
            self._is_asked, pause_ms = True, jittered(_RECONNECT_MS)
        self._timer = self._loop.call_later(pause_ms / 1_000, self._resume)

    def _resume(self) -> None:
        if self._is_asked:
            self._send()
        else:
            self._is_pausing = False
