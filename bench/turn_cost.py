"""What journaling a streamed turn costs, with one reader, in turn with the raw generator (A B A B).

    python -m bench.turn_cost [--rounds 5] [--tokens 1000] [--durability full|normal]

Paced: 1 ms a token, as the ratio to the generator alone. Unpaced: microseconds of each token above
it, for frames with types and for events that travel verbatim, with one reader and with none.
Ratios travel between machines, times do not.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import perdure
from perdure.core.frames import text, upstream_end

Make = Callable[[int], Any]


def typed(number: int) -> Any:
    return text(f" tok{number % 100}")


def verbatim(number: int) -> Any:
    part = {"id": "p1", "type": "text", "index": number}
    data = {"delta": f" tok{number % 100}", "part": part}
    return {"type": "message.part.updated", "data": data}


class Case(NamedTuple):
    """One stream of tokens."""

    make: Make
    tokens: int
    pause_s: float

    async def stream(self) -> AsyncIterator[Any]:
        for number in range(self.tokens):
            if self.pause_s:
                await asyncio.sleep(self.pause_s)
            yield self.make(number)
        yield upstream_end("stop")


class Cost(NamedTuple):
    wall_s: float
    cpu_s: float


def clock() -> Cost:
    return Cost(time.perf_counter(), time.process_time())


def since(began: Cost) -> Cost:
    now = clock()
    return Cost(now.wall_s - began.wall_s, now.cpu_s - began.cpu_s)


async def raw(case: Case) -> Cost:
    began = clock()
    async for _ in case.stream():
        pass
    return since(began)


class Bench:
    """Runs one turn after another on one store."""

    def __init__(self, store: perdure.RunStore) -> None:
        self._store = store
        self._count = 0

    async def turn(self, case: Case, *, reads: bool) -> Cost:
        self._count += 1
        engine = perdure.ChatTurnEngine(
            self._store, produce=lambda _turn: case.stream(), recover=False
        )
        turn = perdure.ChatTurnIdentity("", f"s{self._count}", "ann", 0)
        began = clock()
        submitted = await engine.submit(turn, "Hi")
        if reads:
            size = 0
            async for line in submitted.lines():
                size += len(line)
            assert size > 20 * case.tokens
        await engine.aclose()
        return since(began)


def median(costs: list[Cost]) -> Cost:
    return Cost(*(statistics.median(column) for column in zip(*costs, strict=True)))


async def compare(bench: Bench, case: Case, rounds: int, *, reads: bool) -> tuple[Cost, Cost]:
    """Return the median costs of the generator alone and of the turn, measured in turn."""
    alone: list[Cost] = []
    turns: list[Cost] = []
    for _ in range(rounds):
        alone.append(await raw(case))
        turns.append(await bench.turn(case, reads=reads))
    return median(alone), median(turns)


async def measure(name: str, store: perdure.RunStore, rounds: int, tokens: int) -> None:
    bench = Bench(store)
    await bench.turn(Case(typed, 10, 0), reads=True)
    alone, turn = await compare(bench, Case(typed, tokens, 0.001), rounds, reads=True)
    print(f"{name:>7}  1 ms a token, one reader: {turn.wall_s / alone.wall_s:5.2f} x raw")
    many = 10 * tokens
    for label, make in (("typed", typed), ("verbatim", verbatim)):
        for reads in (True, False):
            alone, turn = await compare(bench, Case(make, many, 0), rounds, reads=reads)
            wall, cpu = (1e6 * (b - a) / many for a, b in zip(alone, turn, strict=True))
            who = "one reader" if reads else "no reader"
            print(f"{name:>7}  no pause, {label}, {who}: {wall:5.1f} us a token ({cpu:.1f} cpu)")


async def main(rounds: int, tokens: int, durability: Any) -> None:
    await measure("memory", perdure.MemoryStore(), rounds, tokens)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:{Path(folder) / 'bench.db'}"
        store = await perdure.open_store(url, durability=durability)
        await measure("sqlite", store, rounds, tokens)
        await store.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=1_000)
    parser.add_argument("--durability", choices=["full", "normal"], default="full")
    given = parser.parse_args()
    asyncio.run(main(given.rounds, given.tokens, given.durability))
