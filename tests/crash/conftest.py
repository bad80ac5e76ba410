"""Labs of every store that a crash may hit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import cast

import pytest

from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.store.sql.d1.address import TOKEN_VARIABLE
from perdure.testing.clock import ManualClock
from perdure.testing.contract import NewLab
from perdure.testing.lab import StoreLab
from tests.contract.test_stores import postgres_lab
from tests.store.d1_server import TOKEN, D1Server
from tests.store.postgres_server import PostgresServer

NewUrl = Callable[[str], str]

# Not with the first store that is opened, which in these tests stands deep in the calls of others:
# there CPython 3.11 fails now and then to parse the sources that pytest rewrites.
for driver in ("sqlite", "postgres.driver", "d1.driver"):
    import_module(f"perdure.store.sql.{driver}")


@pytest.fixture
def new_url(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> NewUrl:
    """Return what makes the address of a fresh store: "sqlite", "file", "postgresql" or "d1"."""
    numbers = count(1)

    def fresh(scheme: str) -> str:
        if scheme == "d1":
            d1: D1Server = request.getfixturevalue("d1")
            monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
            return d1.url(d1.clean())
        if scheme == "postgresql":
            server: PostgresServer = request.getfixturevalue("postgres")
            return server.new_store()
        return f"{scheme}:{tmp_path / f'store-{next(numbers)}'}"

    return fresh


@pytest.fixture(
    params=["memory", "sqlite", "file", pytest.param("postgres", marks=pytest.mark.campaign)]
)
def new_lab(request: pytest.FixtureRequest, tmp_path: Path) -> NewLab:
    numbers = count(1)

    def memory() -> StoreLab:
        data = MemoryData()

        async def open_handle(clock: ManualClock, code_version: str | None) -> RunStore:
            return MemoryStore(data, clock=clock, code_version=code_version)

        return StoreLab(open_handle)

    def opened_by(address: str) -> StoreLab:
        url = address.format(tmp_path / str(next(numbers)))

        async def open_handle(clock: ManualClock, code_version: str | None) -> RunStore:
            return await open_store(
                url, durability="normal", clock=clock, code_version=code_version
            )

        return StoreLab(open_handle)

    scheme = cast(str, request.param)
    if scheme == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        return lambda: postgres_lab(server.url, server.clean_schema())
    return memory if scheme == "memory" else partial(opened_by, f"{scheme}:{{}}")
