"""A handle on memory belongs to the event loop that uses it first, wherever another one runs."""

from __future__ import annotations

import asyncio
import os

import pytest

from perdure.errors import UsageError
from perdure.store.memory import MemoryStore


async def test_a_handle_is_refused_by_a_loop_of_another_thread() -> None:
    store = MemoryStore()
    await _read(store)
    with pytest.raises(UsageError, match="one event loop"):
        await asyncio.to_thread(lambda: asyncio.run(_read(store)))
    await _read(store)


def test_a_handle_is_refused_by_the_next_loop_of_its_thread() -> None:
    store = MemoryStore()
    asyncio.run(_read(store))
    with pytest.raises(UsageError, match="one event loop"):
        asyncio.run(_read(store))


async def test_a_handle_is_refused_in_a_fork_of_its_process() -> None:
    store = MemoryStore()
    await _read(store)
    child = os.fork()
    if child == 0:
        # The loop of the parent does not run here: a fork begins with one of its own.
        try:
            asyncio.run(_read(store))
        except UsageError:
            os._exit(7)
        finally:
            os._exit(1)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 7


async def _read(store: MemoryStore) -> None:
    await store.read_run("run")
