"""A PostgreSQL store in an empty schema, for the tests of its parts."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from tests.store.postgres_server import PostgresServer


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return f"{postgres.url}?schema={postgres.clean_schema()}"


@pytest.fixture
async def store(url: str) -> AsyncIterator[RunStore]:
    store = await open_store(url, migrate=True)
    yield store
    await store.close()
