"""What one more reader of a live turn takes, from the first to the thousandth; one is stalled."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import perdure
from bench.figure import Alone, promise
from bench.sides.asked import tokens
from bench.stage import empty
from perdure.core.frames import text, upstream_end

FURTHER_READER: Final = "a further reader"
SOME: Final = 100
"""So many readers are what a thousand stand beside."""
PACE_MS: Final = 20
SETTLE_S: Final = 0.3


async def measure(readers: int, count: int, rounds: int) -> list[Alone]:
    """Readers of one turn, beside a single one and a hundred of them; in turn."""
    some = min(SOME, readers // 2)
    found = [
        [await _spent_us(number, count) for number in (1, some, readers)] for _ in range(rounds)
    ]
    single, _, whole = (statistics.median(column) for column in zip(*found, strict=True))
    growth = statistics.median(
        (many - one) / (readers - 1) / ((few - one) / (some - 1)) for one, few, many in found
    )
    pace = f"a token each {PACE_MS} ms"
    how = f"processor time, {pace}, one reader stalled; {single:.0f} µs for a single one"
    name = f"a token at each of {readers:,} readers"
    further = f"beside one of the first {some}: processor time, {pace}, one reader stalled"
    return [
        Alone(name, whole / readers, "µs", how, promise("sqlite")),
        Alone(FURTHER_READER, growth, "×", f"of {readers:,} {further}", promise("sqlite")),
    ]


class Waiting:
    """A model that says one token, and so many more when everybody reads."""

    def __init__(self, count: int) -> None:
        self.everybody_reads = asyncio.Event()
        self._count = count

    async def __call__(self, _turn: perdure.Turn) -> AsyncIterator[perdure.Frame]:
        yield text("first ")
        await self.everybody_reads.wait()
        async for token in tokens(self._count, PACE_MS):
            yield text(token)
        yield upstream_end("stop")


async def _spent_us(readers: int, count: int) -> float:
    """Return the processor time of a token at all readers together, once all of them read."""
    model = Waiting(count)
    async with empty("sqlite") as url:
        store = await perdure.open_store(url)
        engine = perdure.ChatTurnEngine(store, produce=model, recover=False)
        turn = perdure.ChatTurnIdentity("", "s", "ann", 0)
        submitted = await engine.submit(turn, "Hi")
        stalled = submitted.lines()
        await anext(stalled)
        others = [engine.read(turn) for _ in range(readers)]
        for other in others:
            await anext(other)
        reading = asyncio.gather(*(_read(other) for other in others))
        await asyncio.sleep(SETTLE_S)
        began = time.process_time()
        model.everybody_reads.set()
        await reading
        spent = time.process_time() - began
        await stalled.aclose()
        await engine.aclose()
        await store.close()
    return spent * 1e6 / count


async def _read(frames: AsyncIterator[Any]) -> None:
    async for _ in frames:
        pass
