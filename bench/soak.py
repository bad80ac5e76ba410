"""A service under load and under fire for a long time: no turn is lost, and nothing grows for ever.

    python -m bench.soak [--minutes 30] [--store sqlite|file|postgres] [--turns 40]
                         [--kill-every 20]

Two services share one store. Clients hold short conversations without a pause: each asks one of
the services for a turn and reads it to its end, by the other one where the first is gone. The
second is killed (kill -9) every so many seconds, and started again; the first lives to the end.
Frames are deleted a minute after their turn, runs after two, by the services themselves. Every half
minute a line tells the memory of the first, the files' sizes, and how many turns ended. It ends
with an error if a turn did not end, or if, in the last third of at least six minutes, something is
a quarter over what it was in the second. The log may become as long as the store lets it: SQLite
never shortens it below that, so it shows the longest of all copies of the log into the file, during
which others write on. PostgreSQL is a server of its own, whose log is its own business: there
`file` is what the tables and their indexes take. It stops by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import psycopg

from bench.load import memory_mb, wait_for
from perdure.store.sql.postgres.address import read_address
from perdure.store.sql.sqlite_connection import WAL_BYTES_KEPT
from tests.store.postgres_server import free_port, running_server

LOOK_S: Final = 30
LOOKS_MIN: Final = 12
"""What is kept for two minutes has not levelled off before."""
PATIENCE_S: Final = 60
GROWTH_MAX: Final = 1.25
TOKEN_MS: Final = 5
LOG_MB: Final = WAL_BYTES_KEPT / 2**20
TABLES: Final = ("durable_runs", "durable_steps", "perdure_frames", "perdure_attempts")
TERMINAL: Final = (b'"session.run.completed"', b'"session.run.failed"', b'"session.run.stopped"')


class Seen(NamedTuple):
    """How it stands at a moment."""

    minute: float
    turns: int
    memory_mb: float
    file_mb: float
    log_mb: float
    rows: int


class Service:
    """One of the two."""

    def __init__(self, address: str) -> None:
        self.port = free_port()
        self._address = address
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "perdure", "serve", "--port", str(self.port)]
        command += ["--store", self._address, "--backend", "scripted"]
        command += ["--token-delay-ms", str(TOKEN_MS), "--frames-after", "1m", "--runs-after", "2m"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    async def ready(self) -> None:
        await asyncio.to_thread(wait_for, self.port, self.process)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Soak:
    """The services, their clients, and what they came to."""

    def __init__(self, services: Sequence[Service], until: float) -> None:
        self.services = services
        self.until = until
        self.ended = 0
        self.lost: list[str] = []
        self.kills = 0

    async def converse(self, name: str) -> None:
        """Hold conversations of ten turns, one after another."""
        number = 0
        while time.monotonic() < self.until:
            session = f"{name}-{number // 10}"
            if await self._turn(session, number % 10):
                self.ended += 1
            else:
                self.lost.append(f"{session} {number % 10}")
            number += 1

    async def _turn(self, session: str, index: int) -> bool:
        """Ask for a turn and read it to its end, however often the stream is cut."""
        cursor, told = "", time.monotonic()
        at = hash((session, index)) % 2
        while time.monotonic() < told + PATIENCE_S:
            service = self.services[at % 2]
            at += 1
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    cursor, is_over = await _read(service.port, session, index, cursor)
                if is_over:
                    return True
            await asyncio.sleep(0.05)
        return False

    async def fire(self, every_s: float) -> None:
        """Kill the second service again and again; the first lives on, so that its memory tells."""
        while time.monotonic() + every_s < self.until:
            await asyncio.sleep(every_s)
            service = self.services[1]
            self.kills += 1
            await asyncio.to_thread(service.kill)
            service.start()
            await service.ready()


async def _read(port: int, session: str, index: int, cursor: str) -> tuple[str, bool]:
    """Ask for the turn, which attaches to one that is known, or go on behind the cursor."""
    path = f"/v1/sessions/{session}/turns"
    if cursor:
        request = f"GET {path}/{index}/stream?envelope=1&after={cursor} HTTP/1.0\r\n\r\n".encode()
    else:
        body = json.dumps({"turnIndex": index, "message": "What about the weather?"}).encode()
        request = (
            f"POST {path}?envelope=1 HTTP/1.0\r\nhost: 127.0.0.1\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode() + body
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    is_over = False
    try:
        writer.write(request.replace(b"HTTP/1.0\r\n\r\n", b"HTTP/1.0\r\nhost: 127.0.0.1\r\n\r\n"))
        while line := await reader.readline():
            if line.startswith(b'{"id":"'):
                cursor = line[7 : line.index(b'"', 7)].decode()
            is_over = is_over or any(mark in line for mark in TERMINAL)
    finally:
        writer.close()
    return cursor, is_over


async def soak(options: argparse.Namespace, address: str) -> tuple[list[Seen], Soak]:
    look = _look_there if options.store == "postgres" else _look
    first = Service(address)
    await first.ready()
    services = [first, Service(address)]
    began = time.monotonic()
    try:
        await services[1].ready()
        whole = Soak(services, began + options.minutes * 60)
        clients = [
            asyncio.create_task(whole.converse(f"client{index}")) for index in range(options.turns)
        ]
        firing = asyncio.create_task(whole.fire(options.kill_every))
        seen: list[Seen] = []
        while time.monotonic() + LOOK_S < whole.until:
            await asyncio.sleep(LOOK_S)
            memory = memory_mb(first.process.pid)
            minute = (time.monotonic() - began) / 60
            seen.append(Seen(minute, whole.ended, memory, *look(address)))
            print(_told(seen[-1], whole), flush=True)
        await asyncio.gather(firing, *clients)
    finally:
        for service in services:
            service.kill()
    return seen, whole


def _look(address: str) -> tuple[float, float, int]:
    """Return the size of the file and of its log in MiB, and the rows in it."""
    path = Path(address.partition(":")[2])
    if path.is_dir():
        files = sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
        return files / 2**20, 0, 0
    log = path.with_name("store-wal")
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        rows = sum(
            connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES
        )
    log_size = log.stat().st_size if log.exists() else 0
    return path.stat().st_size / 2**20, log_size / 2**20, rows


def _look_there(url: str) -> tuple[float, float, int]:
    """Return the same of a schema of PostgreSQL, which has no log of its own."""
    address = read_address(url)
    tables = [f"{address.schema}.{table}" for table in TABLES]
    with psycopg.connect(address.conninfo, autocommit=True) as connection:
        sql = "SELECT pg_total_relation_size(unnest(%s::text[])::regclass)"
        sizes = connection.execute(sql, (tables,))
        taken = sum(size for (size,) in sizes)
        counts = [connection.execute(f"SELECT count(*) FROM {each}".encode()) for each in tables]
        return taken / 2**20, 0, sum(count for found in counts for (count,) in found)


@contextlib.contextmanager
def place(store: str) -> Iterator[str]:
    """Yield the address of an empty store."""
    if store == "postgres":
        with running_server(flushes=True) as server:
            yield server.new_store()
    else:
        with tempfile.TemporaryDirectory(prefix="perdure-soak-") as folder:
            yield f"{store}:{folder}/store"


def _told(seen: Seen, whole: Soak) -> str:
    return (
        f"{seen.minute:5.1f} min  {seen.turns:>7,} turns  {len(whole.lost)} lost  "
        f"{whole.kills} kills  memory {seen.memory_mb:.0f} MiB  file {seen.file_mb:.1f} MiB  "
        f"log {seen.log_mb:.1f} MiB  {seen.rows:,} rows"
    )


def grown(seen: Sequence[Seen]) -> list[str]:
    """Return what has grown in the last third beside the second, where it may not."""
    if len(seen) < LOOKS_MIN:
        return []
    third = len(seen) // 3
    found: list[str] = []
    for name in ("memory_mb", "file_mb", "log_mb", "rows"):
        least = LOG_MB if name == "log_mb" else 0.0
        before, after = (
            max(least, statistics.median(getattr(each, name) for each in part))
            for part in (seen[third : 2 * third], seen[2 * third :])
        )
        # A MiB is nothing that grows for ever.
        if after > GROWTH_MAX * before and after - before > 1:
            found.append(f"{name} grew from {before:,.1f} to {after:,.1f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--store", choices=("sqlite", "file", "postgres"), default="sqlite")
    parser.add_argument("--turns", type=int, default=40, help="clients at a time (%(default)s)")
    parser.add_argument("--kill-every", type=float, default=20, metavar="SECONDS")
    options = parser.parse_args()
    with place(options.store) as address:
        seen, whole = asyncio.run(soak(options, address))
    trouble = [*grown(seen), *(f"the turn {name} did not end" for name in whole.lost[:20])]
    print(f"{whole.ended:,} turns ended, {len(whole.lost)} were lost, {whole.kills} kills")
    sys.exit("\n".join(trouble) if trouble else 0)


if __name__ == "__main__":
    main()
