"""What others do to the rows of a PostgreSQL store, past it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg

from tests.store.postgres_server import SCHEMA


async def execute(url: str, sql: str) -> list[tuple[object, ...]]:
    """Run a statement; `{}` stands for the schema of the store."""
    base = url.partition("?")[0]
    connection = await psycopg.AsyncConnection.connect(base, autocommit=True)
    async with connection:
        found = await connection.execute(sql.format(SCHEMA).encode())
        return await found.fetchall() if found.description else []


async def end_connections(url: str) -> None:
    await execute(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'",
    )


@asynccontextmanager
async def locked(url: str, run_id: str) -> AsyncIterator[None]:
    """Keep the row of a run locked, as a stuck transaction does."""
    connection = await psycopg.AsyncConnection.connect(url.partition("?")[0])
    async with connection:
        sql = f"SELECT 1 FROM {SCHEMA}.durable_runs WHERE run_id = %s FOR UPDATE"
        await connection.execute(sql.encode(), (run_id,))
        yield
