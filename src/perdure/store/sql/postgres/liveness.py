"""The liveness lock of a handle: an advisory lock, held by a connection that does nothing else."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Final

import psycopg

from perdure.core.effects import jittered, new_token
from perdure.errors import StoreError
from perdure.store.sql.database import Row, Statement
from perdure.store.sql.postgres.silence import answered

logger = logging.getLogger("perdure.postgres")

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

SETTLED_MS: Final = 10_000
"""So long after a start of the server the living have to take their locks again."""
_RECONNECT_MS: Final = 500
_LOOK_MS: Final = 1_000
_PREFIX: Final = "pg-"

_LOCKED: Final = """
EXISTS (
    SELECT 1 FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (classid::bigint << 32) | objid::bigint = hashtextextended(name, 0))
"""
_TAKE: Final = "SELECT pg_try_advisory_lock(hashtextextended($1, 0))"
# A name is on record while its handle has not been closed in order: then nobody is dead, and what
# leases it left have to lapse.
_ENTER: Final = """
INSERT INTO "{0}".perdure_liveness (name, taken_at) VALUES ($1, now())
ON CONFLICT (name) DO UPDATE SET taken_at = excluded.taken_at
"""
_LEAVE: Final = 'DELETE FROM "{0}".perdure_liveness WHERE name = $1'
# Long enough for everybody to have taken over from the dead.
_REAP: Final = f"""
DELETE FROM "{{0}}".perdure_liveness
WHERE taken_at < now() - interval '1 day' AND NOT {_LOCKED}
"""
# A start of the server frees all locks; whoever has not taken his since is not dead for that.
DEAD: Final = f"""
SELECT name FROM perdure_liveness
WHERE name IN (SELECT json_array_elements_text(?1::json)) AND NOT {_LOCKED}
  AND (taken_at > pg_postmaster_start_time()
    OR clock_timestamp() - pg_postmaster_start_time()
      > CAST(?2 AS INTEGER) * interval '1 millisecond')
"""


class PostgresLiveness:
    """Tells holders that died by the locks that the server has let go of with their connections.

    A connection that was lost takes the same lock again as soon as it can. Somebody who lost both
    lock and lease meanwhile finds out with his next write, as after a lapsed lease.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        read: Callable[[Sequence[Statement]], Awaitable[list[list[Row]]]],
        *,
        schema: str,
    ) -> None:
        self._connect = connect
        self._read = read
        self._schema = schema
        self._name = f"{_PREFIX}{new_token()}"
        self._keeper: asyncio.Task[None] | None = None
        self._held: asyncio.Future[None] | None = None

    async def name(self) -> str | None:
        """Return the name of this handle's lock, held from now on."""
        if self._keeper is None or self._keeper.done():
            self._held = asyncio.get_running_loop().create_future()
            self._keeper = asyncio.create_task(self._keep(), name="perdure-liveness")
        assert self._held is not None
        if self._held.done():
            return self._name
        await asyncio.wait([self._held], timeout=_LOOK_MS / 1_000)
        return self._name if self._held.done() else None

    async def dead(self, names: Collection[str]) -> Collection[str]:
        """Return those of `names` that no connection has locked."""
        asked = [name for name in names if name.startswith(_PREFIX)]
        if not asked:
            return ()
        try:
            (rows,) = await self._read([Statement("dead_holders", (json.dumps(asked), SETTLED_MS))])
        except StoreError as error:
            logger.debug("nobody can say who died: %s", error)
            return ()
        return [name for (name,) in rows]

    async def release(self) -> None:
        """Let go of this handle's lock; leases that it still has must lapse."""
        if self._keeper is None:
            return
        try:
            connection = await self._connect()
            async with connection, answered(connection):
                await connection.execute(self._sql(_LEAVE), (self._name,))
        except psycopg.Error as error:
            logger.debug("a closed handle will be taken for a dead one: %s", error)
        await self.lose()

    async def lose(self) -> None:
        """Let go of the lock as a process does that dies: for tests."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])

    async def _keep(self) -> None:
        while True:
            try:
                connection = await self._connect()
                async with connection:
                    is_mine = await self._take(connection)
                    # Nothing is ever sent: this returns when the connection breaks.
                    async for _ in connection.notifies(timeout=None if is_mine else 0):
                        pass
            except psycopg.Error as error:
                logger.debug("the liveness lock is taken again: %s", error)
            await asyncio.sleep(jittered(_RECONNECT_MS) / 1_000)

    async def _take(self, connection: Connection) -> bool:
        async with answered(connection):
            found = await connection.execute(self._sql(_TAKE), (self._name,))
            (is_mine,) = await found.fetchone() or (False,)
            if is_mine:
                await self._enter(connection)
        return bool(is_mine)

    async def _enter(self, connection: Connection) -> None:
        await connection.execute(self._sql(_ENTER), (self._name,))
        if self._held is not None and not self._held.done():
            self._held.set_result(None)
            await connection.execute(self._sql(_REAP))

    def _sql(self, text: str) -> bytes:
        return text.format(self._schema).encode()
