"""Whether things cost more behind many others: runs behind runs, steps behind steps, tokens."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import psycopg

import perdure
from bench import long_run
from bench.figure import Alone, promise
from bench.sides.asked import AT_ONCE, tokens
from bench.sides.perdure_side import run, task_of
from bench.stage import empty, read
from perdure.core.frames import text, upstream_end
from perdure.store.sql.postgres.address import read_address

CHUNK: Final = 100
"""Runs that are looked at together."""
PARTS: Final = 8
TABLES: Final = ("durable_runs", "durable_steps", "perdure_attempts")
FRAMES: Final = 1_000
"""Tokens that are looked at together."""
BEHIND_OLD_RUNS: Final = "behind old runs"
LONG_TURN: Final = "a long turn"
LONG_RUN: Final = "a long run"
LONG_RUN_BYTES: Final = "a long run, bytes"


async def of_runs(old: int) -> list[Alone]:
    """Short runs on an empty database and behind many old ones, in turn; and a page of those."""
    found: list[Alone] = []
    for scheme in ("sqlite", "postgres"):
        async with empty(scheme) as new_url, empty(scheme) as old_url:
            stores = [await perdure.open_store(url) for url in (new_url, old_url)]
            await run(stores[1], "old", task_of(1))
            if scheme == "postgres":
                await asyncio.to_thread(multiply_postgres, old_url, "old", old)
            else:
                path = Path(old_url.partition(":")[2])
                await asyncio.to_thread(multiply, path, "old", old)
            ratio = await _in_turn(stores)
            pages = [await _page(stores[1]) for _ in range(20)]
            for store in stores:
                await store.close()
        how = f"{old:,} of them; short runs, beside an empty database"
        page = "the newest runs, asked of the store; over HTTP: python -m bench.dashboard"
        told = ("ms", f"of {old:,}; {page}", promise(scheme))
        found += [
            Alone(f"{BEHIND_OLD_RUNS}, {scheme}", ratio, "×", how, promise(scheme)),
            Alone(f"a page of many runs, {scheme}", statistics.median(pages), *told),
        ]
    return found


async def _in_turn(stores: Sequence[perdure.RunStore]) -> float:
    """Return how many times longer short runs take on the second store."""
    places = asyncio.Semaphore(AT_ONCE)

    async def short(store: perdure.RunStore, run_id: str) -> None:
        async with places:
            await run(store, run_id, task_of(3))

    took: tuple[list[float], ...] = ([], [])
    for part in range(PARTS + 1):
        # Neither of both is always the one that goes first.
        for at in (0, 1) if part % 2 else (1, 0):
            began = time.perf_counter()
            names = (f"run-{part}-{index}" for index in range(CHUNK))
            await asyncio.gather(*(short(stores[at], name) for name in names))
            took[at].append(time.perf_counter() - began)
    # The first part warms up.
    first, second = (times[1:] for times in took)
    return statistics.median(b / a for a, b in zip(first, second, strict=True))


async def _page(store: perdure.RunStore) -> float:
    began = time.perf_counter()
    await store.list_runs()
    return (time.perf_counter() - began) * 1e3


def multiply(path: Path, run_id: str, count: int) -> None:
    """Add so many runs like the one that has ended, by SQL: nobody waits for a million of them."""
    numbers = (
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)"
    )
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for table in TABLES:
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            with connection:
                connection.execute(f"{numbers} {_copied(table, columns)}", (count, run_id))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def multiply_postgres(url: str, run_id: str, count: int) -> None:
    """Do the same on PostgreSQL."""
    address = read_address(url)
    asked = "SELECT column_name FROM information_schema.columns WHERE table_schema = %s AND "
    with psycopg.connect(address.conninfo, autocommit=True) as connection:
        connection.execute(f'SET search_path = "{address.schema}"; SET synchronous_commit = off')
        for table in TABLES:
            rows = connection.execute(f"{asked} table_name = %s", (address.schema, table))
            sql = _copied(table, [name for (name,) in rows])
            numbers = "WITH numbers (n) AS (SELECT generate_series(1, %s))"
            connection.execute(f"{numbers} {sql.replace('?', '%s')}", (count, run_id))
        # What so many rows leave to be done would else be done while runs are measured.
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("CHECKPOINT")


def _copied(table: str, columns: Sequence[str]) -> str:
    others = ", ".join(column for column in columns if column != "run_id")
    return (
        f"INSERT INTO {table} (run_id, {others}) "
        f"SELECT run_id || '-' || n, {others} FROM numbers, {table} WHERE run_id = ?"
    )


async def of_frames(count: int, rounds: int) -> list[Alone]:
    """The last thousands of tokens of a long turn beside the first ones of others, in turn."""
    late: list[float] = []
    early: list[float] = []

    async def said(tokens: AsyncIterator[str], took: list[float]) -> AsyncIterator[perdure.Frame]:
        began = time.perf_counter()
        for _ in range(FRAMES):
            yield text(await anext(tokens))
        took.append(time.perf_counter() - began)

    async def produce(turn: perdure.Turn) -> AsyncIterator[perdure.Frame]:
        source = tokens(count, 0)
        if turn.user_message == "long":
            for _ in range(count - rounds * FRAMES):
                yield text(await anext(source))
            for index in range(rounds):
                await submitted(f"short-{index}")
                async for frame in said(source, late):
                    yield frame
        else:
            async for frame in said(source, early):
                yield frame
        yield upstream_end("stop")

    async def submitted(name: str) -> None:
        turn = perdure.ChatTurnIdentity("", name, "ann", 0)
        await read(await engine.submit(turn, name))

    found: list[Alone] = []
    for scheme in ("sqlite", "postgres"):
        late.clear()
        early.clear()
        async with empty(scheme) as url:
            store = await perdure.open_store(url)
            engine = perdure.ChatTurnEngine(store, produce=produce, recover=False)
            await submitted("long")
            await engine.aclose()
            await store.close()
        ratio = statistics.median(b / a for a, b in zip(early, late, strict=True))
        how = f"the last {FRAMES * rounds:,} of {count:,} tokens beside others' first, in turn"
        found.append(Alone(f"{LONG_TURN}, {scheme}", ratio, "×", how, promise(scheme)))
    return found


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
