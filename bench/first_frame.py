"""The first frame of a silent turn, at a reader of the same process and at one of another.

    python -m bench.first_frame [--rounds 10] [--store sqlite|file|postgres]

Durability full. A turn is silent, a reader is at its end, and what is measured is from the moment
the model says a token until the reader has it. Within a process that is one commit and what is
ours: each round commits a row of the floor as well, on the same disk, and tells the difference
(on files the floor has to make a log first, so that ours seems less than it is). Last, a model that
never waits says 2,000 tokens: when a reader of the same process has the first of them.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import perdure
from bench.sides import floor_side
from bench.sides.asked import Asked
from bench.stage import TOKEN, empty, until_token
from perdure.core.frames import text, upstream_end

ROOT: Final = Path(__file__).parent.parent
BURST: Final = 2_000


class Silent:
    """A model that says one token when it may, and notes when it did."""

    def __init__(self) -> None:
        self.may_say = asyncio.Event()
        self.said_s = 0.0

    async def __call__(self, _turn: perdure.Turn) -> AsyncIterator[perdure.Frame]:
        await self.may_say.wait()
        self.may_say.clear()
        self.said_s = time.perf_counter()
        yield text(TOKEN)
        yield upstream_end("stop")

    async def say(self) -> None:
        # The reader has read what there is, and waits at any moment between two looks.
        await asyncio.sleep(random.uniform(0.05, 0.25))
        self.may_say.set()


class Waited(NamedTuple):
    """How long a reader waited for a token, and how long a commit of the floor took."""

    token_ms: float
    commit_ms: float


@asynccontextmanager
async def _speaking(url: str, model: Silent) -> AsyncIterator[perdure.ChatTurnEngine]:
    store = await perdure.open_store(url)
    engine = perdure.ChatTurnEngine(store, produce=model, recover=False)
    yield engine
    await engine.aclose()
    await store.close()


def _turn(place: str, index: int) -> perdure.ChatTurnIdentity:
    return perdure.ChatTurnIdentity("", f"{place}{index}", "ann", 0)


async def here(url: str, asked: Asked, rounds: int) -> list[Waited]:
    """Read in the process of the turn; the floor's commits go to the place of `asked`."""
    model, found = Silent(), list[Waited]()
    floor: Any = await floor_side.opened(asked)
    async with _speaking(url, model) as engine:
        for index in range(rounds + 1):
            submitted = await engine.submit(_turn("here", index), "Hi")
            lines = submitted.lines()
            reading = asyncio.create_task(until_token(lines))
            await model.say()
            token_ms = (await reading - model.said_s) * 1e3
            await asyncio.sleep(0.05)  # The commit, too, comes after a silence.
            began = time.perf_counter()
            await floor.run_steps(f"run-{index}", 0)
            # A run without steps is two commits.
            found.append(Waited(token_ms, (time.perf_counter() - began) * 1e3 / 2))
    await floor.close()
    return found[1:]


async def elsewhere(url: str, rounds: int) -> list[float]:
    """Return for each of `rounds` turns how many ms another process waited for its token."""
    model, took = Silent(), list[float]()
    async with _speaking(url, model) as engine:
        command = ["-m", "bench.first_frame", "--read", url, str(rounds)]
        reader = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert reader.stdin is not None
        assert reader.stdout is not None
        for index in range(rounds):
            await engine.submit(_turn("elsewhere", index), "Hi")
            reader.stdin.write(f"{index}\n".encode())
            assert await reader.stdout.readline() == b"reading\n"
            await model.say()
            took.append((float(await reader.stdout.readline()) - model.said_s) * 1e3)
        await reader.wait()
    return took


async def read(url: str, rounds: int) -> None:
    """Read turns of another process; print when their token came, by the clock of the machine."""
    async with _speaking(url, Silent()) as engine:
        for _ in range(rounds):
            index = int(await asyncio.to_thread(sys.stdin.readline))
            print("reading", flush=True)
            async for frame in engine.read(_turn("elsewhere", index)):
                if TOKEN in str(frame):
                    print(time.perf_counter(), flush=True)
                    break


async def behind_a_burst(url: str, rounds: int) -> list[float]:
    """Return how many ms a reader waited for the first token of a model that never waits."""
    said_s, took = 0.0, list[float]()

    async def produce(_turn: perdure.Turn) -> AsyncIterator[perdure.Frame]:
        nonlocal said_s
        said_s = time.perf_counter()
        yield text(TOKEN)
        for number in range(BURST):
            yield text(f" tok{number}")
        yield upstream_end("stop")

    store = await perdure.open_store(url)
    engine = perdure.ChatTurnEngine(store, produce=produce, recover=False)
    for index in range(rounds + 1):
        submitted = await engine.submit(_turn("burst", index), "Hi")
        came_s = await until_token(submitted.lines())
        took.append((came_s - said_s) * 1e3)
    await engine.aclose()
    await store.close()
    return took[1:]


async def measure(scheme: str, rounds: int) -> tuple[list[Waited], list[float]]:
    """Return what readers of the same process and of another one waited, on an empty store."""
    async with empty(scheme) as url:
        # The floor has its own tables in the same database, or its own file in the same folder.
        base = url.partition("?")[0]
        place = base if scheme == "postgres" else str(Path(base.partition(":")[2]).parent)
        asked = Asked("steps", scheme, place, 0, 0, "full")
        return await here(url, asked, rounds), await elsewhere(url, rounds)


async def bursts(scheme: str, rounds: int) -> list[float]:
    async with empty(scheme) as url:
        return await behind_a_burst(url, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--store", choices=("sqlite", "file", "postgres"), default="sqlite")
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        url, rounds = options.read
        asyncio.run(read(url, int(rounds)))
        return
    same, other = asyncio.run(measure(options.store, options.rounds))
    for name, values in (
        ("a token, same process", [each.token_ms for each in same]),
        ("above one commit of the floor", [each.token_ms - each.commit_ms for each in same]),
        ("a token, another process", other),
        ("the first of a burst", asyncio.run(bursts(options.store, options.rounds))),
    ):
        print(f"{name:<32}{statistics.median(values):7.2f} ms, worst {max(values):.2f}")


if __name__ == "__main__":
    main()
