"""Whether things cost more behind many others: runs behind runs, steps behind steps, tokens."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Final

import perdure
from bench import long_run
from bench.figure import Alone, promise
from bench.sides.asked import tokens
from bench.sides.perdure_side import run, task_of
from bench.stage import read
from perdure.core.frames import text, upstream_end

CHUNK: Final = 100
"""Runs that are looked at together."""
BEHIND_OLD_RUNS: Final = "behind old runs"
LONG_TURN: Final = "a long turn"
LONG_RUN: Final = "a long run"
LONG_RUN_BYTES: Final = "a long run, bytes"


async def of_runs(old: int) -> list[Alone]:
    """Short runs on an empty database and behind many finished ones, in turn."""
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as folder:
        stores = [
            await perdure.open_store(f"sqlite:{Path(folder) / name}") for name in ("new", "old")
        ]
        places = asyncio.Semaphore(64)
        await run(stores[1], "old", task_of(1))
        await asyncio.to_thread(multiply, Path(folder) / "old", "old", old)

        async def short(store: perdure.RunStore, run_id: str) -> None:
            async with places:
                await run(store, run_id, task_of(3))

        took: dict[int, list[float]] = {0: [], 1: []}
        for part in range(8):
            for at, store in enumerate(stores):
                began = time.perf_counter()
                names = (f"run-{part}-{index}" for index in range(CHUNK))
                await asyncio.gather(*(short(store, name) for name in names))
                took[at].append(time.perf_counter() - began)
        pages: list[float] = []
        for _ in range(20):
            began = time.perf_counter()
            await stores[1].list_runs()
            pages.append((time.perf_counter() - began) * 1e3)
        for store in stores:
            await store.close()
    ratio = statistics.median(b / a for a, b in zip(took[0], took[1], strict=True))
    how = "short runs, beside an empty database"
    page = "the newest runs, asked of the store; over HTTP: python -m bench.dashboard"
    return [
        Alone(BEHIND_OLD_RUNS, ratio, "×", f"{old:,} of them; {how}", promise("sqlite")),
        Alone("a page of many runs", statistics.median(pages), "ms", f"of {old:,}; {page}"),
    ]


def multiply(path: Path, run_id: str, count: int) -> None:
    """Add so many runs like the one that has ended, by SQL: nobody waits for a million of them."""
    numbers = (
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)"
    )
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for table in ("durable_runs", "durable_steps", "perdure_attempts"):
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            others = ", ".join(column for column in columns if column != "run_id")
            with connection:
                connection.execute(
                    f"{numbers} INSERT INTO {table} (run_id, {others}) "
                    f"SELECT printf('%s-%07d', run_id, n), {others} FROM numbers, {table} "
                    "WHERE run_id = ?",
                    (count, run_id),
                )
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


async def of_frames(count: int) -> list[Alone]:
    """The last thousand tokens of a long turn beside the first thousand."""
    marks: list[float] = []

    async def produce(_turn: perdure.Turn) -> AsyncIterator[perdure.Frame]:
        index = 0
        async for token in tokens(count, 0):
            if index in (0, 1_000, count - 1_000):
                marks.append(time.perf_counter())
            index += 1
            yield text(token)
        marks.append(time.perf_counter())
        yield upstream_end("stop")

    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as folder:
        store = await perdure.open_store(f"sqlite:{Path(folder) / 'perdure'}")
        engine = perdure.ChatTurnEngine(store, produce=produce, recover=False)
        turn = perdure.ChatTurnIdentity("", "s", "ann", 0)
        await read(await engine.submit(turn, "Hi"))
        await engine.aclose()
        await store.close()
    ratio = (marks[3] - marks[2]) / (marks[1] - marks[0])
    how = f"the last 1,000 tokens of {count:,} beside the first"
    return [Alone(LONG_TURN, ratio, "×", how, promise("sqlite"))]


async def of_steps(steps: int, rounds: int) -> list[Alone]:
    """The last steps of long runs beside the first ones of others, in time and in bytes."""
    found: list[Alone] = []
    for store in ("sqlite", "postgres"):
        pairs = await long_run.measure(store, steps, rounds)
        how = f"the last {long_run.CHUNK * rounds:,} of {steps:,} steps beside others' first"
        told = (f"{how}, in turn", promise(store))
        found.append(Alone(f"{LONG_RUN}, {store}", pairs.in_time, "×", *told))
        if pairs.in_bytes is not None:
            found.append(Alone(f"{LONG_RUN_BYTES}, {store}", pairs.in_bytes, "×", *told))
    return found
