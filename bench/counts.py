"""What a durable step is made of: statements, commits, bytes, context switches, by store.

    python -m bench.counts [--steps 1000]

Each figure is the difference between a long run and a short one, each in a process of its own, for
each further step. Statements are those that are given to the database, BEGIN and COMMIT with them.
Bytes are those that are handed to the system (SQLite, files) or to the server's write-ahead log;
what D1 writes is its own affair, where each request is one transaction.
None of it depends on how busy the machine is, but for the switches and the processor time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock

import psycopg

from bench.d1_floor import D1Floor
from bench.postgres_floor import PostgresFloor
from bench.sides import floor_side, perdure_side
from bench.sides.asked import Asked
from perdure.store.sql.d1.address import TOKEN_VARIABLE
from perdure.store.sql.d1.api import D1Api
from perdure.store.sql.postgres.texts import Renderer
from tests.store.d1_server import TOKEN

ROOT: Final = Path(__file__).parent.parent
SHORT: Final = 100
PATIENCE_S: Final = 300
STORES: Final = ("sqlite", "postgres", "file", "d1", "memory")


class Counted(NamedTuple):
    """What one more step takes. A file store has no statements: its commits are its flushes."""

    side: str
    store: str
    statements: float
    commits: float
    bytes_written: float | None
    switches: float
    cpu_us: float


def measure(places: Any, *, steps: int, stores: Sequence[str] = STORES) -> list[Counted]:
    """Return a row for each side and store; `places` hands out empty ones."""
    rows: list[Counted] = []
    for store in stores:
        for side in ("floor", "perdure"):
            if side == "perdure" or store != "memory":
                further = steps // 10 if store == "d1" else steps
                sizes = (SHORT, SHORT + further)
                short, long = (_asked(places, side, store, size) for size in sizes)
                each = {name: (long[name] - short[name]) / further for name in long}
                # A row whose bytes nobody counts has none.
                written = each.pop("bytes_written", None)
                rows.append(Counted(side, store, bytes_written=written, **each))
    return rows


def _asked(places: Any, side: str, store: str, size: int) -> dict[str, float]:
    with places.empty(store) as place:
        command = [sys.executable, "-m", "bench.counts", "--side", side, "--store", store]
        done = subprocess.run(
            [*command, "--place", place, "--size", str(size)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, TOKEN_VARIABLE: TOKEN},
            timeout=PATIENCE_S,
            check=True,
        )
        found: dict[str, float] = json.loads(done.stdout)
        if store == "d1":
            del found["bytes_written"]
        if store == "postgres":
            found.update(_of_server(place))
        return found


def _of_server(url: str) -> dict[str, float]:
    """Return what the server counted; a connection that is closed has told it all."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(
            "SELECT (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()), "
            "(SELECT wal_bytes FROM pg_stat_wal)"
        ).fetchone()
    assert row is not None
    return {"commits": float(row[0]), "bytes_written": float(row[1])}


# In a process of its own.


async def _count(side: str, asked: Asked) -> dict[str, float]:
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        stack.enter_context(_sqlite_counted(counts))
        stack.enter_context(_postgres_counted(counts))
        stack.enter_context(_d1_counted(counts))
        stack.enter_context(_flushes_counted(counts))
        spent, switches, bytes_before = time.process_time(), _switches(), written()
        if side == "perdure":
            store = await perdure_side.opened(asked)
            await perdure_side.run(store, "run", perdure_side.task_of(asked.size))
            await store.close()
        else:
            floor = await floor_side.opened(asked)
            await floor.run_steps("run", asked.size)
            await floor.close()
        spent, switches = time.process_time() - spent, _switches() - switches
    commits = counts["flushes"] if asked.store == "file" else counts["commits"]
    return {
        "statements": counts["statements"],
        "commits": commits,
        "bytes_written": written() - bytes_before,
        "switches": switches,
        "cpu_us": spent * 1e6,
    }


@contextmanager
def _sqlite_counted(counts: Counter[str]) -> Iterator[None]:
    """Count what is given to SQLite; a statement outside a transaction is one by itself."""
    connect = sqlite3.connect

    def counted(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        connection.set_trace_callback(_traced(counts))
        return connection

    with mock.patch.object(sqlite3, "connect", counted):
        yield


def _traced(counts: Counter[str]) -> Callable[[str], None]:
    within = False

    def trace(sql: str) -> None:
        nonlocal within
        counts["statements"] += 1
        if sql.startswith("BEGIN"):
            within = True
        elif sql.startswith(("COMMIT", "ROLLBACK")):
            within = False
            counts["commits"] += sql.startswith("COMMIT")
        elif not within and sql.startswith(("INSERT", "UPDATE", "DELETE")):
            counts["commits"] += 1

    return trace


@contextmanager
def _postgres_counted(counts: Counter[str]) -> Iterator[None]:
    """Count what is sent to PostgreSQL: by us, and by the floor."""
    render, send = Renderer.render, PostgresFloor._send

    def rendered(self: Renderer, statements: Any) -> Any:
        sent = render(self, statements)
        # Several go between a BEGIN and a COMMIT.
        counts["statements"] += len(sent) + (2 if len(sent) > 1 else 0)
        return sent

    def counted(self: PostgresFloor, *arguments: Any) -> Any:
        counts["statements"] += 1
        return send(self, *arguments)

    with (
        mock.patch.object(Renderer, "render", rendered),
        mock.patch.object(PostgresFloor, "_send", counted),
    ):
        yield


@contextmanager
def _d1_counted(counts: Counter[str]) -> Iterator[None]:
    """Count what is sent to D1: by us, several statements in a request, and by the floor."""
    batch, write = D1Api.batch, D1Floor.write

    def sent(self: D1Api, statements: Sequence[Any]) -> Any:
        counts["statements"] += len(statements)
        counts["commits"] += 1
        return batch(self, statements)

    def written(self: D1Floor, *arguments: Any) -> Any:
        counts["statements"] += 1
        counts["commits"] += 1
        return write(self, *arguments)

    with (
        mock.patch.object(D1Api, "batch", sent),
        mock.patch.object(D1Floor, "write", written),
    ):
        yield


@contextmanager
def _flushes_counted(counts: Counter[str]) -> Iterator[None]:
    def counting(flush: Callable[[int], None]) -> Callable[[int], None]:
        def counted(descriptor: int) -> None:
            counts["flushes"] += 1
            flush(descriptor)

        return counted

    with (
        mock.patch.object(os, "fsync", counting(os.fsync)),
        mock.patch.object(os, "fdatasync", counting(os.fdatasync)),
    ):
        yield


def _switches() -> int:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_nvcsw + used.ru_nivcsw


def written() -> int:
    """Return how many bytes this process has handed to the system to be written."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--side", choices=("floor", "perdure"), help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    parser.add_argument("--place", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        asked = Asked("steps", options.store, options.place, options.size, 0, "full")
        print(json.dumps(asyncio.run(_count(options.side, asked))))
        return
    from bench import page, suite

    with ExitStack() as stack:
        print(page.counts(measure(suite.Places(stack), steps=options.steps)))


if __name__ == "__main__":
    main()
