"""Hints of what was written: never too many, and never none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg

from perdure.core.effects import monotonic_ms
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.store.sql.postgres.notifier import PAUSE_MS
from perdure.testing.samples import completed, hold
from tests.store.postgres_server import SCHEMA
from tests.store.sql.outsider import execute

WRITES = 60
PATIENCE_S = 20.0
HINTING = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'NOTIFY%'"


class Heard:
    """Counts hints."""

    def __init__(self) -> None:
        self.count = 0
        self._more = asyncio.Event()

    async def listen(self, connection: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
        async for _ in connection.notifies():
            self.count += 1
            self._more.set()

    async def more_than(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.count <= count:
                self._more.clear()
                await self._more.wait()


@asynccontextmanager
async def listening(url: str) -> AsyncIterator[Heard]:
    base = url.partition("?")[0]
    connection = await psycopg.AsyncConnection.connect(base, autocommit=True)
    async with connection:
        await connection.execute(f'LISTEN "perdure_{SCHEMA}"'.encode())
        heard = Heard()
        task = asyncio.create_task(heard.listen(connection))
        try:
            yield heard
        finally:
            task.cancel()
            await asyncio.wait((task,))


async def test_writes_in_close_succession_share_hints(store: RunStore, url: str) -> None:
    lease = await hold(store)
    async with listening(url) as heard:
        begun_ms = monotonic_ms()
        for position in range(WRITES):
            await store.write(lease, completed(position, "x"))
        took_ms = monotonic_ms() - begun_ms
        await heard.more_than(0)
        assert heard.count <= took_ms / PAUSE_MS + 2


async def test_the_last_write_is_told_of_though_a_hint_was_just_sent(
    store: RunStore, url: str
) -> None:
    lease = await hold(store)
    async with listening(url) as heard:
        for position in range(5):
            before = heard.count
            await store.write(lease, completed(position, "x"))
            await heard.more_than(before)


async def test_a_hint_is_sent_though_its_connection_was_lost(store: RunStore, url: str) -> None:
    lease = await hold(store)
    async with listening(url) as heard:
        await store.write(lease, completed(0, "x"))
        await heard.more_than(0)
        await execute(
            url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'NOTIFY%'",
        )
        before = heard.count
        await store.write(lease, completed(1, "y"))
        await heard.more_than(before)


async def test_a_handle_that_is_closed_right_after_its_first_write_leaves_no_connection(
    store: RunStore, url: str
) -> None:
    lease = await hold(store)
    for position in range(5):
        brief = await open_store(url)
        await brief.write(lease, completed(position, "x"))
        await brief.close()
    # Longer than a hint that could not be sent waits for its next try.
    await asyncio.sleep(1.6)
    assert await execute(url, HINTING) == [(1,)], "that of the handle which is open"
