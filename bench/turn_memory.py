"""How much memory a live turn takes that says nothing for a while, without and with a reader.

    python -m bench.turn_memory [--turns 200] [--tokens 200]

Each turn has streamed its tokens at 1 ms each and then waits, as one does whose tool works. Counted
is what Python allocated for the turns (tracemalloc), over a warm engine, per turn.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import tempfile
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import perdure
from perdure.core.frames import text


class Stage:
    """Turns that have all said their tokens, and wait."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.said = 0
        self.may_end = asyncio.Event()
        self.all_said = asyncio.Event()
        self.awaited = 0

    async def produce(self, _turn: perdure.Turn) -> AsyncIterator[perdure.Frame]:
        for number in range(self.tokens):
            await asyncio.sleep(0.001)
            yield text(f" tok{number % 100}")
        self.said += 1
        if self.said == self.awaited:
            self.all_said.set()
        await self.may_end.wait()


async def drain(submitted: perdure.SubmittedTurn) -> None:
    async for _ in submitted.lines():
        pass


async def measure(url: str, turns: int, tokens: int, *, reads: bool) -> float:
    """Return KiB of each of `turns` live turns."""
    stage = Stage(tokens)
    store = await perdure.open_store(url)
    engine = perdure.ChatTurnEngine(store, produce=stage.produce, recover=False)
    readers: list[asyncio.Task[None]] = []

    async def begin(mark: str, count: int) -> None:
        stage.awaited += count
        for number in range(count):
            turn = perdure.ChatTurnIdentity("", f"{mark}{number}", "ann", 0)
            submitted = await engine.submit(turn, "Hi")
            if reads:
                readers.append(asyncio.create_task(drain(submitted)))
        await stage.all_said.wait()
        stage.all_said.clear()
        await asyncio.sleep(1)  # The last frames are written, and read.
        gc.collect()

    await begin("warm", 10)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    await begin("live", turns)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    stage.may_end.set()
    await asyncio.gather(*readers)
    await engine.aclose()
    await store.close()
    return (after - before) / turns / 1024


async def main(turns: int, tokens: int) -> None:
    for reads in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:{Path(folder) / 'bench.db'}"
            size = await measure(url, turns, tokens, reads=reads)
        who = "with a reader" if reads else "without a reader"
        print(f"sqlite  a live turn {who}: {size:5.1f} KiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=200)
    options = parser.parse_args()
    asyncio.run(main(options.turns, options.tokens))
