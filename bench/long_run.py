"""Whether a step of a long run costs more than one of its beginning: time, and bytes to the disk.

    python -m bench.long_run [--rounds 10] [--steps 10000] [--store sqlite|file|postgres|memory]

Durability full. One run of many steps; between its last hundreds a new run does its first hundred,
in turn: both are measured in a warm process, in a database of one size, in the same weather.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from functools import partial
from typing import Final, NamedTuple

import perdure
from bench.counts import written
from bench.sides.asked import result
from bench.sides.perdure_side import run
from bench.stage import empty

CHUNK: Final = 100
"""Steps that are looked at together."""


class Spent(NamedTuple):
    wall_s: float
    bytes_written: int


class Growth(NamedTuple):
    """How the last steps of a run stand to the first ones of others; medians of pairs.

    No bytes where it is a server that writes them, or nobody.
    """

    in_time: float
    in_bytes: float | None
    rounds: list[float]


async def _steps(context: perdure.DurableContext, count: int) -> Spent:
    wall, size = time.perf_counter(), written()
    for index in range(count):
        await context.step("small", partial(result, index))
    return Spent(time.perf_counter() - wall, written() - size)


async def measure(scheme: str, steps: int, rounds: int) -> Growth:
    """Pair the last `rounds` hundreds of a run of `steps` with the first hundreds of others."""
    late: list[Spent] = []
    early: list[Spent] = []
    async with empty(scheme) as url:
        store = await perdure.open_store(url)

        async def short(context: perdure.DurableContext) -> None:
            early.append(await _steps(context, CHUNK))

        async def long(context: perdure.DurableContext) -> None:
            await _steps(context, steps - rounds * CHUNK)
            for index in range(rounds):
                await run(store, f"short-{index}", short)
                late.append(await _steps(context, CHUNK))

        await run(store, "long", long)
        await store.close()
    in_time = [last.wall_s / first.wall_s for last, first in zip(late, early, strict=True)]
    size: float | None = None
    if scheme in ("sqlite", "file"):
        size = statistics.median(
            last.bytes_written / first.bytes_written
            for last, first in zip(late, early, strict=True)
        )
    return Growth(statistics.median(in_time), size, in_time)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument(
        "--store", choices=("sqlite", "file", "postgres", "memory"), default="sqlite"
    )
    options = parser.parse_args()
    found = asyncio.run(measure(options.store, options.steps, options.rounds))
    print(f"{options.store}: the last steps of {options.steps:,} beside the first ones of others")
    told = "" if found.in_bytes is None else f", bytes {found.in_bytes:.2f} x"
    print(f"time {found.in_time:.2f} x{told}; rounds {[round(a, 2) for a in found.rounds]}")


if __name__ == "__main__":
    main()
