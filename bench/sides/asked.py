"""What a side is asked to do, and how it answers: one JSON object on the last line it prints.

Imports the standard library alone, for a peer's virtual environment has neither us nor our tools.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

AT_ONCE = 64
"""How many short runs are under way at a time."""
WARM_STEPS = 30
STORES = ("sqlite", "postgres", "file", "d1", "memory")


class Asked(NamedTuple):
    """One measurement.

    `place` is a folder for files, or the address of an empty database of PostgreSQL or D1. `size`
    counts steps, runs or tokens, as the work says.
    """

    work: str
    store: str
    place: str
    size: int
    pause_ms: float
    durability: str

    def file(self, name: str) -> str:
        return str(Path(self.place) / name)


Answer = dict[str, float]
Work = Callable[[Asked], Awaitable[Answer]]


def answer(works: Mapping[str, Work]) -> None:
    """Do what the command line asks for, and say what it took."""
    asked = _asked(sorted(works))
    logging.disable(logging.CRITICAL)
    found = asyncio.run(_alone(works[asked.work], asked))
    print(json.dumps(found), flush=True)
    # Some libraries leave threads behind that would wait for more work.
    sys.stdout.flush()
    os._exit(0)


async def _alone(work: Work, asked: Asked) -> Answer:
    gc.collect()
    return await work(asked)


def _asked(works: list[str]) -> Asked:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=works)
    parser.add_argument("--store", choices=STORES, required=True)
    parser.add_argument("--place", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--pause-ms", type=float, default=0)
    parser.add_argument("--durability", choices=("full", "normal"), default="full")
    return Asked(**vars(parser.parse_args()))


async def many(one: Callable[[int], Awaitable[object]], runs: int) -> Answer:
    """Do `runs` short runs, 64 at a time: how many a second, and the length of the 99th of 100."""
    lengths: list[float] = []
    places = asyncio.Semaphore(AT_ONCE)

    async def place(index: int) -> None:
        async with places:
            began = time.perf_counter()
            await one(index)
            lengths.append((time.perf_counter() - began) * 1e3)

    began = time.perf_counter()
    await asyncio.gather(*(place(index) for index in range(runs)))
    took_s = time.perf_counter() - began
    return {"value": runs / took_s, "p99_ms": sorted(lengths)[int(len(lengths) * 0.99)]}


async def timed(work: Callable[[], Awaitable[Any]], *, per: int) -> Answer:
    """Return the wall time and the processor time of the work, each in µs for one of `per`."""
    wall, cpu = time.perf_counter(), time.process_time()
    await work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"value": wall * 1e6 / per, "cpu_us": cpu * 1e6 / per}


def result(index: int) -> dict[str, Any]:
    """What the body of a step returns."""
    return {"i": index, "status": "ok"}


async def tokens(count: int, pause_ms: float) -> AsyncIterator[str]:
    """The model: so many tokens, with a pause before each."""
    for index in range(count):
        if pause_ms:
            await asyncio.sleep(pause_ms / 1e3)
        yield f"tok{index % 1000:03d} "


async def events(count: int, pause_ms: float) -> AsyncIterator[dict[str, Any]]:
    """The same model behind another agent's server, whose events travel verbatim.

    Each differs in more than its text, so that none can be joined with the one before.
    """
    index = 0
    async for token in tokens(count, pause_ms):
        part = {"id": "p1", "type": "text", "index": index}
        index += 1
        yield {"type": "message.part.updated", "data": {"delta": token, "part": part}}
