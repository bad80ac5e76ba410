"""Lanes: what shares a connection, and what goes past it."""

from __future__ import annotations

import asyncio

import psycopg

from perdure.store.protocol import RunStore
from perdure.store.sql.postgres.driver import SHARED_LOCK_TIMEOUT_MS
from perdure.store.sql.postgres.lane import LATE_MS
from perdure.testing.samples import hold, row
from tests.store.postgres_server import SCHEMA


async def test_a_read_that_takes_long_holds_up_no_other(store: RunStore, url: str) -> None:
    lease = await hold(store)
    await store.write(lease, row(1, "a"))
    await store.read_run("run")
    connection = await psycopg.AsyncConnection.connect(url.partition("?")[0])
    async with connection:
        await connection.execute(f"LOCK TABLE {SCHEMA}.perdure_frames".encode())
        slow = asyncio.ensure_future(store.read_frames("run"))
        # Until the lane is known to be late; far less than it waits for the lock.
        await asyncio.sleep(2 * LATE_MS / 1_000)
        assert LATE_MS * 4 < SHARED_LOCK_TIMEOUT_MS
        assert await store.read_run("run") is not None
        assert not slow.done()
    assert len(await slow) == 1
