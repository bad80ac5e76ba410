"""What the machine itself can do: the least that a step has to pay for, whoever records it.

    python -m bench.limits [--rounds 5]

A flush, a commit of one row by itself, a hop to another thread and back, JSON of a small result.
The rounds go in turn; each figure is the median of them, in µs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import queue
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final

import psycopg

from bench.figure import Alone, promise
from bench.sides.asked import result
from tests.store.postgres_server import running_server

PAGE: Final = b"\xa5" * 4_096
ROW: Final = json.dumps({**result(1), "text": "x" * 150})
Once = Callable[[], object]


class Limit:
    """One thing to do again and again, and what it is kept with."""

    def __init__(self, once: Once, how: str, durability: str = "") -> None:
        self.once = once
        self.how = how
        self.durability = durability
        self.rounds_us: list[float] = []

    def do(self, times: int) -> None:
        began = time.perf_counter()
        for _ in range(times):
            self.once()
        self.rounds_us.append((time.perf_counter() - began) * 1e6 / times)


def measure(times: int, rounds: int) -> list[Alone]:
    """Return a figure for each limit."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perdure-bench-")))
        limits = _limits(stack, folder)
        for _ in range(rounds):
            for limit in limits.values():
                limit.do(times)
    return [
        Alone(f"limit: {name}", statistics.median(one.rounds_us), "µs", one.how, one.durability)
        for name, one in limits.items()
    ]


def _limits(stack: ExitStack, folder: Path) -> Mapping[str, Limit]:
    sqlite, postgres = promise("sqlite"), promise("postgres")
    server = stack.enter_context(running_server(flushes=True))
    asked = stack.enter_context(psycopg.connect(server.url, autocommit=True))
    asked.execute("CREATE TABLE kept (body text)")

    def insert() -> None:
        asked.execute("INSERT INTO kept VALUES (%s)", (ROW,), prepare=True)

    return {
        "a flush": Limit(stack.enter_context(_flushes(folder)), "4 KiB appended", "fdatasync"),
        "a commit, SQLite": Limit(
            stack.enter_context(_commits(folder)), "one row, no other thread", sqlite
        ),
        "a round trip, PostgreSQL": Limit(
            lambda: asked.execute("SELECT 1", prepare=True), "SELECT 1, prepared, psycopg"
        ),
        "a commit, PostgreSQL": Limit(insert, "one row, prepared, psycopg", postgres),
        "a hop": Limit(stack.enter_context(_hops()), "from a thread to another one and back"),
        "JSON": Limit(lambda: json.loads(json.dumps(result(1))), "a small result, there and back"),
    }


@contextmanager
def _flushes(folder: Path) -> Iterator[Once]:
    opened = os.open(folder / "flushed", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def once() -> None:
        os.write(opened, PAGE)
        os.fdatasync(opened)

    yield once
    os.close(opened)


@contextmanager
def _commits(folder: Path) -> Iterator[Once]:
    with closing(sqlite3.connect(folder / "kept.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE kept (body TEXT)")
        yield lambda: connection.execute("INSERT INTO kept VALUES (?)", (ROW,))


@contextmanager
def _hops() -> Iterator[Once]:
    """The way of a write to a thread of its own: a queue there, the loop's call back."""
    loop = asyncio.new_event_loop()
    asked: queue.SimpleQueue[asyncio.Future[None] | None] = queue.SimpleQueue()

    def work() -> None:
        while (future := asked.get()) is not None:
            loop.call_soon_threadsafe(future.set_result, None)

    def once() -> None:
        future: asyncio.Future[None] = loop.create_future()
        asked.put(future)
        loop.run_until_complete(future)

    thread = threading.Thread(target=work)
    thread.start()
    yield once
    asked.put(None)
    thread.join()
    loop.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=int, default=500)
    options = parser.parse_args()
    for one in measure(options.times, options.rounds):
        print(f"{one.name:<32}{one.value:8.1f} {one.unit}  {one.how}; {one.durability}")


if __name__ == "__main__":
    main()
