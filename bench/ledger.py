"""How long it takes to add up a large ledger of model calls on SQLite.

    python -m bench.ledger [--calls 1000000]

The calls are written by SQL: four weeks, a hundred tenants, twenty calls a session, a run for each.
Every question is asked three times; the median counts. What is measured is processor time of all
threads, since nothing else takes long.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perdure.observe.ledger import usage_summary
from perdure.observe.prices import ModelPrice, PriceList
from perdure.store.opening import open_store

TENANTS, TURNS, DAYS = 100, 20, 28
ROUNDS = 3
PRICES = PriceList({"small-1": ModelPrice(input="0.25", output=2)}, version="1")
COLUMNS = (
    "run_id, epoch, call, token, tenant, session_id, provider, model, request_id, state, "
    "tokens_in, tokens_out, tokens_cached, tokens_reasoning, cost_nanos, currency, intended_at, "
    "settled_at"
)


def rows(calls: int) -> Iterator[tuple[object, ...]]:
    sessions = max(calls // TURNS, 1)
    for number in range(calls):
        minute = number * DAYS * 24 * 60 // calls
        day, rest = divmod(minute, 24 * 60)
        at = f"2026-11-{day + 1:02d}T{rest // 60:02d}:{rest % 60:02d}:00.000Z"
        session, turn = number % sessions, number // sessions
        tenant = f"tenant-{session % TENANTS}"
        run_id = f"@{tenant}/chat:session-{session}:{turn}"
        known = (100, 50, 10, 5, 125_000, "USD", at, at)
        yield (
            run_id,
            1,
            0,
            "t",
            tenant,
            f"session-{session}",
            "p",
            "small-1",
            "r",
            "settled",
            *known,
        )


def fill(path: Path, calls: int) -> None:
    with sqlite3.connect(path) as connection:
        marks = ", ".join("?" * len(COLUMNS.split(", ")))
        connection.executemany(
            f"INSERT INTO perdure_usage ({COLUMNS}) VALUES ({marks})", rows(calls)
        )
    connection.close()


async def measure(folder: Path, calls: int) -> None:
    url = f"sqlite:{folder / 'runs.db'}"
    await (await open_store(url)).close()
    fill(folder / "runs.db", calls)
    store = await open_store(url)
    questions: dict[str, dict[str, Any]] = {
        "by day": {"by": "day"},
        "by day, of the last four days": {"by": "day", "since": f"2026-11-{DAYS - 3}"},
        "by day, of one tenant": {"by": "day", "tenant": "tenant-7"},
        "by model": {"by": "model"},
        "by session, the newest 50": {"by": "session", "limit": 50},
        "by run, the newest 50": {"by": "run", "limit": 50},
    }
    for name, options in questions.items():
        times: list[float] = []
        for _ in range(ROUNDS):
            begun = time.process_time()
            await usage_summary(store, **options, prices=PRICES)
            times.append((time.process_time() - begun) * 1_000)
        print(f"{name:32} {statistics.median(times):>10,.0f} ms")
    await store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000)
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(measure(Path(place), parser.parse_args().calls))


if __name__ == "__main__":
    main()
