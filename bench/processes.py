"""What a process of its own waits for, or takes: a run to go on with, an import.

    python -m bench.processes [--rounds 10] [--store sqlite|file]

Durability full. A run: until a new process stands behind 1,000 finished steps, from the start of
Python and from opening the store. An import: resident memory.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

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


def resumed(url: str, rounds: int, steps: int = STEPS) -> tuple[list[float], list[float]]:
    """Return how many ms each new process took: from its start, and from opening the store."""

    def once() -> tuple[float, float]:
        began = time.perf_counter()
        command = _python("-m", "bench.processes", "--go-on", url, "--steps", str(steps))
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        reached, since_opening = map(float, done.stdout.split())
        return (reached - began) * 1e3, since_opening

    once()  # It does the steps.
    whole, opened = zip(*(once() for _ in range(rounds)), strict=True)
    return list(whole), list(opened)


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
    parser.add_argument("--store", choices=("sqlite", "file"), default="sqlite")
    parser.add_argument("--go-on", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.go_on:
        asyncio.run(go_on(options.go_on, options.steps))
    else:
        report(options.rounds, options.store)


def report(rounds: int, scheme: str) -> None:
    def show(name: str, ms: list[float]) -> None:
        print(f"{name:<46}{statistics.median(ms):7.1f} ms, worst {max(ms):.1f}")

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
