"""What a worker's looks take that find nothing, behind very many runs that are over.

    python -m bench.sweeps [--store sqlite|postgres] [--runs 1000000] [--rounds 50]

Fills a store by SQL with runs like one that has ended, and asks it, in turn with one that has only
that one (A B A B): for runs that are due, for deliveries and schedules that are, for frames and
runs that need not be kept any longer, and for the newest page of runs. Milliseconds, medians.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import perdure
from bench import growth
from bench.stage import empty
from perdure.store.sql.store import SqlStore
from perdure.testing.samples import HANDLER, completed, finish

LONG_AGO: Final = "2020-01-01T00:00:00.000Z"
Look = Callable[[], Awaitable[object]]


def looks_of(store: SqlStore) -> Mapping[str, Look]:
    upkeep, schedules = store.upkeep(), store.schedules()
    return {
        "runs that are due": lambda: store.claim_due(
            (HANDLER,), worker_id="host:1:0:1", lease_ms=15_000, limit=16
        ),
        "deliveries that are due": lambda: store.claim_deliveries((HANDLER,), limit=16),
        "schedules that are due": lambda: schedules.upcoming((HANDLER,), limit=16),
        "frames to clean up": lambda: upkeep.find_framed(LONG_AGO, limit=50),
        "runs to clean up": lambda: upkeep.find_ended(LONG_AGO, limit=50),
        "the newest page": store.list_runs,
    }


async def measure(scheme: str, runs: int, rounds: int) -> None:
    async with empty(scheme) as new_url, empty(scheme) as old_url:
        stores: list[SqlStore] = []
        for url in (new_url, old_url):
            store = await perdure.open_store(url)
            assert isinstance(store, SqlStore)
            await finish(store, "old", completed(0))
            stores.append(store)
        if scheme == "postgres":
            await asyncio.to_thread(growth.multiply_postgres, old_url, "old", runs)
        else:
            path = Path(old_url.partition(":")[2])
            await asyncio.to_thread(growth.multiply, path, "old", runs)
        print(f"{'ms':<28}{'one run':>12}{f'{runs:,} runs':>18}")
        for name in looks_of(stores[0]):
            took: list[list[float]] = [[], []]
            for _ in range(rounds):
                for place, store in enumerate(stores):
                    look = looks_of(store)[name]
                    began = time.perf_counter()
                    await look()
                    took[place].append((time.perf_counter() - began) * 1e3)
            one, many = map(statistics.median, took)
            print(f"{name:<28}{one:>12.2f}{many:>18.2f}")
        for store in stores:
            await store.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    asyncio.run(measure(options.store, options.runs, options.rounds))


if __name__ == "__main__":
    main()
