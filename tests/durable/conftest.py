"""Each test of the durable floor runs on every store that there is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from perdure.core.effects import Clock, system_clock
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from tests.durable.desk import Desk
from tests.durable.handles import Handles


@pytest.fixture(params=["memory", "sqlite"])
async def handles(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Handles]:
    data = MemoryData()

    async def open_handle(clock: Clock) -> RunStore:
        if cast(str, request.param) == "memory":
            return MemoryStore(data, clock=clock)
        return await open_store(f"sqlite:{tmp_path / 'runs.db'}", durability="normal", clock=clock)

    async with Handles(open_handle) as opened:
        yield opened


@pytest.fixture
async def store(handles: Handles) -> RunStore:
    return await handles.open(clock=system_clock)


@pytest.fixture
async def desk(store: RunStore) -> AsyncIterator[Desk]:
    desk = await Desk.open(store)
    yield desk
    desk.attempt.end()
