"""Random histories, told to the memory store and to two handles on D1: all must answer alike."""

from __future__ import annotations

import random

import pytest

from perdure.store.memory import MemoryStore
from perdure.testing.clock import ManualClock
from tests.store.d1_server import D1Server
from tests.store.test_memory_random import COMMANDS, HISTORIES, Twins

pytestmark = pytest.mark.node


async def tell(d1: D1Server, seed: int) -> None:
    """Tell both the same, every command through either of two handles, and compare all at times."""
    clock, chance = ManualClock(), random.Random(seed)
    database, memory = d1.clean(), MemoryStore(clock=clock)
    handles = [d1.store(d1.binding(database), clock), d1.store(d1.api(database), clock)]
    twins = Twins(memory, handles[0], chance)
    for count in range(COMMANDS):
        twins.stores = (memory, handles[count % 2])
        await twins.step()
        clock.advance(chance.choice([0, 1, 100, 400, 1_500]))
        if count % 10 == 9:
            await twins.compare()
    for handle in handles:
        await handle.close()
    await d1.let_go()


@pytest.mark.parametrize("seed", range(5))
async def test_d1_tells_the_same_history_through_both_ways(d1: D1Server, seed: int) -> None:
    await tell(d1, seed)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(5, 4 * HISTORIES))
async def test_d1_tells_the_same_long_histories(d1: D1Server, seed: int) -> None:
    await tell(d1, seed)
