"""Labs of every store that a crash may hit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import cast

import pytest

from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.testing.contract import NewLab
from perdure.testing.lab import StoreLab


@pytest.fixture(params=["memory", "sqlite", "file"])
def new_lab(request: pytest.FixtureRequest, tmp_path: Path) -> NewLab:
    count = 0

    def memory() -> StoreLab:
        data = MemoryData()

        async def open_handle(clock: ManualClock, code_version: str | None) -> RunStore:
            return MemoryStore(data, clock=clock, code_version=code_version)

        return StoreLab(open_handle)

    def opened_by(address: str) -> StoreLab:
        nonlocal count
        count += 1
        url = address.format(tmp_path / str(count))

        async def open_handle(clock: ManualClock, code_version: str | None) -> RunStore:
            return await open_store(
                url, durability="normal", clock=clock, code_version=code_version
            )

        return StoreLab(open_handle)

    scheme = cast(str, request.param)
    return memory if scheme == "memory" else partial(opened_by, f"{scheme}:{{}}")
