"""A stage on every store that there is; the model servers of the backends' tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from tests.backends.conftest import aimock, aimock_process, server
from tests.turn.stage import Stage

__all__ = ["aimock", "aimock_process", "server", "stage"]


@pytest.fixture(params=["memory", "sqlite"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    data = MemoryData()

    async def open_handle(clock: ManualClock) -> RunStore:
        if cast(str, request.param) == "memory":
            return MemoryStore(data, clock=clock)
        return await open_store(f"sqlite:{tmp_path / 'turns.db'}", durability="normal", clock=clock)

    async with Stage(open_handle) as opened:
        yield opened
