"""What a streamed turn writes to a SQLite file, page by page, for what its reader gets.

    python -m bench.turn_bytes [--tokens 1000] [--token-ms 5] [--turns 1]

Each page that is found in the write-ahead log is counted for the table or index it belongs to, per
flush of frames: one row, or what has joined one. `to the disk` is what the system counts, in pages
of its own; what the rows themselves hold is told beside it. The log must not begin anew meanwhile,
as it does after 8 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import struct
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, NamedTuple

import perdure
from perdure.core.frames import text, upstream_end

FRAME_HEAD: Final = 24
"""What the log notes before each page: its number first."""
PAGE_SIZE_AT: Final = 8
SALT: Final = slice(12, 24)
"""Another one stands in the log's head whenever it begins anew."""
_ROWS: Final = """
SELECT sum(1 + length(body) - length(replace(body, char(10), ''))), count(*), sum(length(body))
FROM perdure_frames WHERE run_id LIKE ?"""
"""A line ends where what a flush has written joined a row."""


class Written(NamedTuple):
    """What some turns have written, and what for; sizes in bytes."""

    streamed: int
    flushes: int
    rows: int
    bodies: int
    to_disk: int
    pages: Counter[str]
    page: int


def _to_disk() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["write_bytes"])


def _log(path: str) -> bytes:
    return Path(f"{path}-wal").read_bytes()


def _pages(path: str, log: bytes, begin: int, page: int) -> Counter[str]:
    with sqlite3.connect(path) as connection:
        names: dict[int, str] = dict(connection.execute("SELECT pageno, name FROM dbstat"))
    places = range(begin, len(log), FRAME_HEAD + page)
    numbers = [int.from_bytes(log[at : at + 4], "big") for at in places]
    return Counter(names.get(number, "others") for number in numbers)


async def measure(tokens: int, token_ms: float, turns: int) -> Written:
    async def produce(_turn: perdure.Turn) -> AsyncIterator[perdure.Frame]:
        for number in range(tokens):
            await asyncio.sleep(token_ms / 1e3)
            yield text(f" tok{number % 100}")
        yield upstream_end("stop")

    async def streamed(session: str) -> int:
        turn = perdure.ChatTurnIdentity("", session, "ann", 0)
        submitted = await engine.submit(turn, "Hi")
        return sum([len(line) async for line in submitted.lines()])

    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as folder:
        path = f"{folder}/perdure.db"
        store = await perdure.open_store(f"sqlite:{path}")
        engine = perdure.ChatTurnEngine(store, produce=produce, recover=False)
        await streamed("warm")
        log, before = _log(path), _to_disk()
        size = sum(await asyncio.gather(*(streamed(f"live-{number}") for number in range(turns))))
        to_disk, found = _to_disk() - before, _log(path)
        if found[SALT] != log[SALT]:
            raise RuntimeError("the log has begun anew: ask for fewer tokens, or fewer turns")
        (page,) = struct.unpack_from(">I", found, PAGE_SIZE_AT)
        with sqlite3.connect(path) as connection:
            rows = connection.execute(_ROWS, ("%live-%",)).fetchone()
        pages = _pages(path, found, len(log), page)
        written = Written(size, *rows, to_disk=to_disk, pages=pages, page=page)
        await engine.aclose()
        await store.close()
    return written


def told(written: Written) -> str:
    streamed, flushes, rows, bodies, to_disk, pages, page = written
    log = sum(pages.values()) * (FRAME_HEAD + page)
    lines = [
        f"streamed                {streamed:>10,} bytes, in {flushes:,} flushes and {rows:,} rows",
        f"the rows themselves     {bodies:>10,} bytes {bodies / streamed:8.2f} x",
        f"the log                 {log:>10,} bytes {log / streamed:8.2f} x",
        f"to the disk             {to_disk:>10,} bytes {to_disk / streamed:8.2f} x",
        f"pages of {page:,} bytes for each flush: {sum(pages.values()) / flushes:.2f}",
    ]
    common = [(name, count) for name, count in pages.most_common() if count >= flushes / 50]
    rest = sum(pages.values()) - sum(count for _, count in common)
    lines += [f"  {name:<36}{count / flushes:6.2f}" for name, count in [*common, ("others", rest)]]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1_000)
    parser.add_argument("--token-ms", type=float, default=5)
    parser.add_argument("--turns", type=int, default=1)
    options = parser.parse_args()
    print(told(asyncio.run(measure(options.tokens, options.token_ms, options.turns))))


if __name__ == "__main__":
    main()
