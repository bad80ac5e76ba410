"""What a process of its own waits for, or takes: a run to go on with, an import.

    python -m bench.processes [--rounds 10] [--store sqlite|file|postgresql]

Durability full. A run: until a new process stands behind 1,000 finished steps, from the start of
Python and from opening the store; on PostgreSQL beside the floor, in turn: a process that imports
the driver, connects, and reads and decodes the same history. An import: resident memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl

import perdure
from bench.sides.perdure_side import reach_last

ROOT: Final = Path(__file__).parent.parent
STEPS: Final = 1_000
_RESIDENT: Final = (
    "print(next(line.split()[1] for line in open('/proc/self/status') if line[:5] == 'VmRSS'))"
)


def _python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


async def go_on(url: str, steps: int) -> None:
    """Run to the step that is not done, behind `steps` that are; print when it was reached."""
    began = time.perf_counter()
    store = await perdure.open_store(url)
    reached = await reach_last(store, steps)
    print(reached, (reached - began) * 1e3)
    await store.close()


async def read_history(url: str) -> None:
    """Print when all recorded results were there, and how many ms after the driver was imported."""
    began = time.perf_counter()
    # What it takes to import it is measured.
    import psycopg

    base, _, query = url.partition("?")
    schema = dict(parse_qsl(query))["schema"]
    connection = await psycopg.AsyncConnection.connect(base, autocommit=True)
    sql = f"SELECT result_json FROM {schema}.durable_steps WHERE run_id = $1 ORDER BY step_index"
    found = await psycopg.AsyncRawCursor(connection).execute(sql.encode(), ("run",))
    results = [json.loads(text) for (text,) in await found.fetchall() if text]
    reached = time.perf_counter()
    assert results
    print(reached, (reached - began) * 1e3)
    await connection.close()


def resumed(url: str, rounds: int, steps: int = STEPS) -> tuple[list[float], list[float]]:
    """Return how many ms each new process took: from its start, and from opening the store.

    What it imports was compiled before, as an installed package is.
    """
    _reached("--go-on", url, steps)  # It does the steps, and compiles.
    whole, opened = zip(*(_reached("--go-on", url, steps) for _ in range(rounds)), strict=True)
    return list(whole), list(opened)


def _reached(how: str, url: str, steps: int) -> tuple[float, float]:
    environment = {**os.environ}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    began = time.perf_counter()
    done = subprocess.run(
        _python("-m", "bench.processes", how, url, "--steps", str(steps)),
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    reached, since_opening = map(float, done.stdout.split())
    return (reached - began) * 1e3, since_opening


def beside_the_floor(url: str, rounds: int) -> tuple[list[float], list[float]]:
    """Return how many ms the floor and ours took from opening the store, in turn."""
    _reached("--go-on", url, STEPS)
    pairs = [
        [_reached(how, url, STEPS)[1] for how in ("--read-history", "--go-on")]
        for _ in range(rounds)
    ]
    floors, ours = zip(*pairs, strict=True)
    return list(floors), list(ours)


def resident(code: str) -> float:
    """Return MB (10^6 bytes) in memory after the code."""
    command = _python("-c", f"{code}; {_RESIDENT}")
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout) * 1024 / 1e6


def bare_start(rounds: int) -> float:
    def once() -> float:
        began = time.perf_counter()
        subprocess.run(_python("-c", "pass"), check=True)
        return (time.perf_counter() - began) * 1e3

    return statistics.median(once() for _ in range(rounds))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--store", choices=("sqlite", "file", "postgresql"), default="sqlite")
    parser.add_argument("--go-on", help=argparse.SUPPRESS)
    parser.add_argument("--read-history", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.go_on:
        asyncio.run(go_on(options.go_on, options.steps))
    elif options.read_history:
        asyncio.run(read_history(options.read_history))
    else:
        report(options.rounds, options.store)


def report(rounds: int, scheme: str) -> None:
    def show(name: str, ms: list[float]) -> None:
        print(f"{name:<46}{statistics.median(ms):7.1f} ms, worst {max(ms):.1f}")

    if scheme == "postgresql":
        # It imports the driver, which a process that is measured has to do by itself.
        from tests.store.postgres_server import running_server

        with running_server(flushes=True) as server:
            floors, ours = beside_the_floor(server.new_store(), rounds)
        show("driver, connection and history alone", floors)
        show(f"a new process behind {STEPS:,} steps, {scheme}", ours)
        return
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as folder:
        whole, opened = resumed(f"{scheme}:{Path(folder) / 'runs'}", rounds)
        show(f"a new process behind {STEPS:,} steps, {scheme}", whole)
        show("the same, from opening the store", opened)
    print(f"a bare start of Python {bare_start(rounds):.1f} ms")
    every = "import perdure; [getattr(perdure, name) for name in perdure.__all__]"
    print(f"memory after `import perdure` {resident('import perdure'):.1f} MB", end="")
    print(f", with every name {resident(every):.1f} MB, bare {resident('pass'):.1f} MB")


if __name__ == "__main__":
    main()
