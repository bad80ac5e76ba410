"""Whether a step of a long run costs more than one of its beginning: time, and bytes to the disk.

    python -m bench.long_run [--rounds 3] [--steps 10000] [--store sqlite|file|memory]

Durability full. One run, marked as it goes: the last hundredth and the first one, in pairs of
rounds, behind steps that warm the process up.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import perdure
from bench.counts import written
from bench.sides.asked import WARM_STEPS, Asked, result
from bench.sides.perdure_side import opened, run, task_of


class Mark(NamedTuple):
    """Where a run was, when, and what its process had handed to the system by then."""

    wall_s: float
    bytes_written: int


async def marked(asked: Asked) -> tuple[float, float]:
    """Return how the last hundredth of a run's steps stands to the first: in time, in bytes."""
    part = max(1, asked.size // 100)
    marks: list[Mark] = []

    async def task(context: perdure.DurableContext) -> None:
        for index in range(asked.size):
            if index in (0, part, asked.size - part):
                marks.append(Mark(time.perf_counter(), written()))
            await context.step("small", partial(result, index))
        marks.append(Mark(time.perf_counter(), written()))

    store = await opened(asked)
    await run(store, "warm", task_of(WARM_STEPS + part))
    await run(store, "run", task)
    await store.close()
    first, last = ([b - a for a, b in zip(*pair, strict=True)] for pair in (marks[:2], marks[2:]))
    return last[0] / first[0], last[1] / first[1] if first[1] else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--store", choices=("sqlite", "file", "memory"), default="sqlite")
    options = parser.parse_args()
    found: list[tuple[float, float]] = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="perdure-bench-") as folder:
            place = str(Path(folder))
            asked = Asked("steps", options.store, place, options.steps, 0, "full")
            found.append(asyncio.run(marked(asked)))
    in_time, in_bytes = (statistics.median(column) for column in zip(*found, strict=True))
    print(f"{options.store}: the last steps of {options.steps:,} beside the first ones")
    print(f"time {in_time:.2f} x, bytes {in_bytes:.2f} x; rounds {[round(a, 2) for a, _ in found]}")


if __name__ == "__main__":
    main()
