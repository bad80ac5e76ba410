"""What a process of its own waits for, or takes: a token, a run to go on with, an import.

    python -m bench.processes [--rounds 10] [--store sqlite|file]

Durability full. A token: a turn is silent, a reader in another process is at its end, and what is
measured is from the moment the model says it until the reader has it. A run: until a new process
stands behind 1,000 finished steps, from the start of Python and from opening the store. An import:
resident memory.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import perdure
from bench.sides.perdure_side import Unfinished, run, task_of
from perdure.core.frames import text, upstream_end

ROOT: Final = Path(__file__).parent.parent
STEPS: Final = 1_000
TOKEN: Final = "the-token"
_RESIDENT: Final = (
    "print(next(line.split()[1] for line in open('/proc/self/status') if line[:5] == 'VmRSS'))"
)


def _python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


async def first_token(url: str, rounds: int) -> list[float]:
    """Return for each of `rounds` turns how many ms another process waited for its token."""
    said: list[float] = []
    may_say = asyncio.Event()

    async def produce(_turn: perdure.Turn) -> AsyncIterator[perdure.Frame]:
        await may_say.wait()
        said.append(time.perf_counter())
        yield text(TOKEN)
        yield upstream_end("stop")

    store = await perdure.open_store(url)
    engine = perdure.ChatTurnEngine(store, produce=produce, recover=False)
    took: list[float] = []
    for index in range(rounds):
        may_say.clear()
        await engine.submit(perdure.ChatTurnIdentity("", f"s{index}", "ann", 0), "Hi")
        reader = await asyncio.create_subprocess_exec(
            *_python("-m", "bench.processes", "--read", f"s{index}", url),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        assert reader.stdout is not None
        assert await reader.stdout.readline() == b"reading\n"
        # It has read what there is, and waits at any moment between two looks.
        await asyncio.sleep(random.uniform(0.2, 0.4))
        may_say.set()
        took.append((float(await reader.stdout.readline()) - said[-1]) * 1e3)
        await reader.wait()
    await engine.aclose()
    await store.close()
    return took


async def read(session: str, url: str) -> None:
    """Read a turn of another process; print when its token came, by the clock of the machine."""

    async def nothing(_turn: perdure.Turn) -> AsyncIterator[perdure.Frame]:
        raise AssertionError("a reader produces nothing")
        yield

    store = await perdure.open_store(url)
    engine = perdure.ChatTurnEngine(store, produce=nothing, recover=False)
    print("reading", flush=True)
    async for frame in engine.read(perdure.ChatTurnIdentity("", session, "ann", 0)):
        if TOKEN in str(frame):
            print(time.perf_counter(), flush=True)
            break
    await engine.aclose()
    await store.close()


async def go_on(url: str, steps: int) -> None:
    """Run to the step that is not done, behind `steps` that are; print when it was reached."""
    reached = 0.0

    def last() -> None:
        nonlocal reached
        reached = time.perf_counter()
        raise Unfinished

    async def task(context: perdure.DurableContext) -> None:
        await task_of(steps)(context)
        await context.step("last", last)

    began = time.perf_counter()
    store = await perdure.open_store(url)
    with suppress(Unfinished):
        await run(store, "run", task)
    print(reached, (reached - began) * 1e3)
    await store.close()


def resumed(url: str, rounds: int) -> tuple[list[float], list[float]]:
    """Return how many ms each new process took: from its start, and from opening the store."""

    def once() -> tuple[float, float]:
        began = time.perf_counter()
        command = _python("-m", "bench.processes", "--go-on", url)
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
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--go-on", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        asyncio.run(read(*options.read))
    elif options.go_on:
        asyncio.run(go_on(options.go_on, STEPS))
    else:
        report(options.rounds, options.store)


def report(rounds: int, scheme: str) -> None:
    def show(name: str, ms: list[float]) -> None:
        print(f"{name:<46}{statistics.median(ms):7.1f} ms, worst {max(ms):.1f}")

    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as folder:
        waited = asyncio.run(first_token(f"{scheme}:{Path(folder) / 'turns'}", rounds))
        show(f"a token at a reader in another process, {scheme}", waited)
        whole, opened = resumed(f"{scheme}:{Path(folder) / 'runs'}", rounds)
        show(f"a new process behind {STEPS:,} steps, {scheme}", whole)
        show("the same, from opening the store", opened)
    print(f"a bare start of Python {bare_start(rounds):.1f} ms")
    every = "import perdure; [getattr(perdure, name) for name in perdure.__all__]"
    print(f"memory after `import perdure` {resident('import perdure'):.1f} MB", end="")
    print(f", with every name {resident(every):.1f} MB, bare {resident('pass'):.1f} MB")


if __name__ == "__main__":
    main()
