"""What a durable step, many short runs and a replay cost, in turn with the floor (A B A B).

    python -m bench.steps [--rounds 5] [--steps 1000] [--runs 1000] [--durability full|normal]
                          [--postgres [URL]]

Prints medians and the ratio to the floor. Ratios travel between machines, times do not. With
`--postgres`, on a server of its own that flushes, unless it is given the address of an empty
database.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import perdure
from bench.floor import Floor
from bench.postgres_floor import PostgresFloor
from bench.sides import perdure_side
from bench.sides.asked import AT_ONCE
from tests.store.postgres_server import running_server


class Lowest(Protocol):
    """What both floors do."""

    async def run_steps(self, run_id: str, count: int) -> None: ...
    async def replay(self, run_id: str) -> list[Any]: ...
    async def close(self) -> None: ...


class Measured(NamedTuple):
    wall_ms: float
    cpu_ms: float


async def measured(work: Callable[[], Awaitable[object]]) -> Measured:
    wall, cpu = time.perf_counter(), time.process_time()
    await work()
    return Measured((time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3)


async def run(store: perdure.RunStore, run_id: str, count: int) -> None:
    await perdure_side.run(store, run_id, perdure_side.task_of(count))


async def many(one: Callable[[str], Awaitable[None]], runs: int, mark: str) -> list[float]:
    """Do `runs` short runs, 64 at a time; return the length of each in ms."""
    lengths: list[float] = []
    places = asyncio.Semaphore(AT_ONCE)

    async def place(index: int) -> None:
        async with places:
            began = time.perf_counter()
            await one(f"{mark}-{index}")
            lengths.append((time.perf_counter() - began) * 1e3)

    await asyncio.gather(*(place(index) for index in range(runs)))
    return sorted(lengths)


async def on_sqlite(options: argparse.Namespace, folder: Path) -> None:
    floor = Floor(str(folder / "floor.db"), synchronous=options.durability)
    store = await perdure.open_store(
        f"sqlite:{folder / 'perdure.db'}", durability=options.durability
    )
    await compare(options, floor, store)


async def on_postgres(options: argparse.Namespace, url: str) -> None:
    floor = await PostgresFloor.open(url, synchronous=options.durability)
    store = await perdure.open_store(url, durability=options.durability, migrate=True)
    await compare(options, floor, store)


async def compare(options: argparse.Namespace, floor: Lowest, store: perdure.RunStore) -> None:
    await floor.run_steps("warm", 50)
    await run(store, "warm", 50)
    steps: dict[str, list[Measured]] = {"floor": [], "perdure": []}
    short: dict[str, list[Measured]] = {"floor": [], "perdure": []}
    replay: dict[str, list[Measured]] = {"floor": [], "perdure": []}
    worst: dict[str, list[float]] = {"floor": [], "perdure": []}
    for index in range(options.rounds):
        mark, count = f"run-{index}", options.steps
        ours = partial(run, store, mark, count)
        steps["floor"].append(await measured(partial(floor.run_steps, mark, count)))
        steps["perdure"].append(await measured(ours))
        replay["floor"].append(await measured(partial(floor.replay, mark)))
        replay["perdure"].append(await measured(ours))
        for name, one in (
            ("floor", lambda run_id: floor.run_steps(run_id, 3)),
            ("perdure", lambda run_id: run(store, run_id, 3)),
        ):
            lengths: list[float] = []

            async def all_of_them(one=one, lengths=lengths, mark=f"short-{index}") -> None:
                lengths.extend(await many(one, options.runs, mark))

            short[name].append(await measured(all_of_them))
            worst[name].append(lengths[int(len(lengths) * 0.99)])
    await store.close()
    await floor.close()
    report(options, steps=steps, short=short, replay=replay, worst=worst)


def report(
    options: argparse.Namespace,
    *,
    steps: dict[str, list[Measured]],
    short: dict[str, list[Measured]],
    replay: dict[str, list[Measured]],
    worst: dict[str, list[float]],
) -> None:
    def wall(rounds: list[Measured]) -> float:
        return statistics.median(one.wall_ms for one in rounds)

    def cpu(rounds: list[Measured]) -> float:
        return statistics.median(one.cpu_ms for one in rounds)

    def line(name: str, ours: float, floors: float, unit: str, ratio: float) -> str:
        return f"{name:<28}{ours:>10.1f}{floors:>10.1f} {unit:<8}{ratio:>7.2f}x"

    count, runs = options.steps, options.runs
    ours, floors = wall(steps["perdure"]) / count * 1e3, wall(steps["floor"]) / count * 1e3
    where = "SQLite" if options.postgres is None else "PostgreSQL"
    print(f"{where}, durability {options.durability}, median of {options.rounds} rounds in turn")
    print(f"{'':<28}{'perdure':>10}{'floor':>10}")
    print(line("a durable step", ours, floors, "us", ours / floors))
    ours, floors = cpu(steps["perdure"]) / count * 1e3, cpu(steps["floor"]) / count * 1e3
    print(line("CPU of a step, all threads", ours, floors, "us", ours / floors))
    ours, floors = wall(replay["perdure"]), wall(replay["floor"])
    print(line(f"replay of {count} steps", ours, floors, "ms", ours / floors))
    ours, floors = runs / wall(short["perdure"]) * 1e3, runs / wall(short["floor"]) * 1e3
    print(line(f"runs of 3 steps, {AT_ONCE} at once", ours, floors, "runs/s", ours / floors))
    ours, floors = statistics.median(worst["perdure"]), statistics.median(worst["floor"])
    print(line("the same, 99th percentile", ours, floors, "ms", ours / floors))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--durability", choices=("full", "normal"), default="full")
    parser.add_argument("--postgres", nargs="?", const="", metavar="URL")
    options = parser.parse_args()
    if options.postgres:
        asyncio.run(on_postgres(options, options.postgres))
    elif options.postgres is not None:
        with running_server(flushes=True) as server:
            asyncio.run(on_postgres(options, server.url))
    else:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(on_sqlite(options, Path(folder)))


if __name__ == "__main__":
    main()
