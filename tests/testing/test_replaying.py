"""`check_replay`: it accepts code that still fits, and names what does not fit any more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from perdure.durable.context import DurableContext
from perdure.durable.runner import run_durable
from perdure.errors import DivergenceError, RunNotFoundError, UsageError
from perdure.store.memory import MemoryStore
from perdure.testing import check_replay
from perdure.testing.samples import hold, manifest


async def recorded(context: DurableContext) -> list[Any]:
    first = await context.step("first", lambda: 1)
    others = await context.parallel(("left", lambda: 2), ("right", lambda: 3))
    return [first, *others, await context.now()]


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    store = MemoryStore()
    await run_durable(store, run_id="run", manifest=manifest(), task=recorded)
    yield store
    await store.close()


async def test_code_that_still_fits_returns_what_was_recorded(store: MemoryStore) -> None:
    executed: list[int] = []

    def execute() -> int:
        executed.append(1)
        return 0

    async def changed(context: DurableContext) -> Any:
        first = await context.step("first", execute)
        others = await context.parallel(("left", lambda: 0), ("right", lambda: 0))
        return {"sum": first + sum(others), "at": await context.now()}

    result = await check_replay(store, "run", changed)
    assert result["sum"] == 6
    assert executed == []


async def test_another_step_in_its_place_is_named(store: MemoryStore) -> None:
    async def changed(context: DurableContext) -> None:
        await context.step("another", lambda: 1)

    with pytest.raises(DivergenceError, match="another"):
        await check_replay(store, "run", changed)


async def test_a_step_too_many_diverges(store: MemoryStore) -> None:
    async def changed(context: DurableContext) -> None:
        await recorded(context)
        await context.uuid()

    with pytest.raises(DivergenceError):
        await check_replay(store, "run", changed)


async def test_a_step_that_is_missing_is_named(store: MemoryStore) -> None:
    async def changed(context: DurableContext) -> int:
        return await context.step("first", lambda: 1)

    with pytest.raises(AssertionError, match=r"step 1 \('left'\)"):
        await check_replay(store, "run", changed)


async def test_only_what_is_completed_can_be_replayed(store: MemoryStore) -> None:
    with pytest.raises(RunNotFoundError):
        await check_replay(store, "nobody", recorded)
    await hold(store, "live")
    with pytest.raises(UsageError, match="'live' is running"):
        await check_replay(store, "live", recorded)
