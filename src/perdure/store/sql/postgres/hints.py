"""Hints that something changed: one listening connection, polling beneath, nothing in a write."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import psycopg

from perdure.core.effects import jittered
from perdure.store.sql.postgres.notifier import Notifier
from perdure.store.sql.postgres.pipe import Connection
from perdure.store.sql.postgres.silence import answered

logger = logging.getLogger("perdure.postgres")

POLL_MS: Final = 500
"""How often whoever waits looks by himself while hints arrive: they may get lost."""
POLL_ALONE_MS: Final = 50
"""The same where no hint can arrive, behind a pooler."""
_RECONNECT_MS: Final = 1_000


class Hints:
    """Tells other handles that something was written here, and this one that it was elsewhere.

    A hint is sent after the commit, outside of it, so that no writer waits for the lock that the
    queue of notifications takes. Who listens are the handles in which somebody waits.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Connection]], schema: str, *, is_pooled: bool
    ) -> None:
        self._connect = connect
        self._channel = f"perdure_{schema}"
        self._is_pooled = is_pooled
        self._changed: Callable[[], None] | None = None
        self._wanted = asyncio.Event()
        self._notifier = None if is_pooled else Notifier(connect, self._channel)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def written(self) -> None:
        """Send a hint: a transaction of this handle was committed."""
        if self._notifier is not None:
            self._notifier.written()

    def watch(self, changed: Callable[[], None], *, interval_ms: int | None) -> None:
        """Call `changed` after writes of others until told otherwise (`interval_ms` None)."""
        if interval_ms is None:
            self._changed = None
            self._wanted.clear()
            return
        self._changed = changed
        self._wanted.set()
        self._start("perdure-poll", self._poll)
        if not self._is_pooled:
            self._start("perdure-listen", self._listen)

    async def close(self) -> None:
        if self._notifier is not None:
            await self._notifier.close()
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())

    def _start(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a task unless it runs: whoever cancels every task of the loop ends it too."""
        if name not in self._tasks or self._tasks[name].done():
            self._tasks[name] = asyncio.create_task(work(), name=name)

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed()

    async def _poll(self) -> None:
        pause_ms = POLL_ALONE_MS if self._is_pooled else POLL_MS
        while True:
            await self._wanted.wait()
            await asyncio.sleep(jittered(pause_ms, 0.2) / 1_000)
            self._tell()

    async def _listen(self) -> None:
        while True:
            await self._wanted.wait()
            try:
                async with await self._connect() as connection:
                    await self._hear(connection)
            except psycopg.Error as error:
                logger.debug("listening for hints failed, polling goes on: %s", error)
            await asyncio.sleep(jittered(_RECONNECT_MS) / 1_000)

    async def _hear(self, connection: Connection) -> None:
        async with answered(connection):
            await connection.execute(f'LISTEN "{self._channel}"'.encode())
        self._tell()  # What was said before one listened.
        async for notice in connection.notifies():
            if self._notifier is None or notice.pid != self._notifier.own_pid:
                self._tell()
