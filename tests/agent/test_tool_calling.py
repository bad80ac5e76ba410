"""The calls of one answer: what becomes of those that a crash has cut off beside others."""

from __future__ import annotations

import asyncio

import pytest

from perdure.agent.tool_limits import ToolLimits
from perdure.agent.tool_loop import ToolLoop
from perdure.errors import UnfinishedStepError
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.protocol import RunStore
from tests.agent.looping import run, told
from tests.agent.strict_provider import StrictProvider, calls, says


@pytest.fixture
def store() -> RunStore:
    return MemoryStore(MemoryData())


@pytest.mark.parametrize("at_once_max", [1, 2, None])
async def test_a_retry_makes_the_interrupted_calls_of_one_answer_again(
    store: RunStore, at_once_max: int | None
) -> None:
    """However many calls stand behind an interrupted one, the loop did not go on behind it."""
    begun: list[str] = []
    hang = asyncio.Event()

    async def pay(bill: str) -> str:
        begun.append(bill)
        if not hang.is_set():
            hang.set()
            await asyncio.Event().wait()
        return f"paid {bill}"

    asked = [(f"c{bill}", "pay", {"bill": bill}) for bill in "abcd"]
    provider = StrictProvider(calls(*asked), says("Done."))
    loop = ToolLoop(provider.backend(), [pay], limits=ToolLimits(calls_at_once_max=at_once_max))
    going = asyncio.create_task(run(store, loop))
    await hang.wait()
    going.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going
    with pytest.raises(UnfinishedStepError, match=r"pay 1\.1"):
        await run(store, loop)
    assert (await run(store, loop)).text == "Done."
    assert told(provider) == [f"paid {bill}" for bill in "abcd"]
    assert begun.count("a") == 2
