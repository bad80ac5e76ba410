"""How far Perdure is from the smallest program that keeps its own promise, not only the disk's.

    python -m bench.floor_with_fences [--store postgres|sqlite] [--rounds 5] [--steps 1000]
                                      [--runs 1000]

Three sides in turn (A B C A B C), in one process: the floor, the floor with leases, fences and the
whole journal in Perdure's own tables, and Perdure. Medians, and the medians of paired ratios of
times; the ratio of two rates is one through it. Going on behind many steps is timed until the last
of them is there again: a new lease, the history, and the task that asks for all of it. The floor
has no lease and no task: it reads. All statements have been used before.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Final, NamedTuple

import perdure
from bench.fenced_postgres import FencedPostgres
from bench.fenced_sqlite import FencedSqlite
from bench.floor import Floor
from bench.postgres_floor import PostgresFloor
from bench.sides.asked import AT_ONCE
from bench.sides.perdure_side import reach_last
from bench.steps import Lowest, Measured, many, measured, run
from bench.suite import Places

Work = Callable[[str, int], Awaitable[None]]
"""Does one run of so many steps."""
SIDES: Final = ("floor", "with fences", "perdure")


class Each(NamedTuple):
    """One round of one side, for a step or for a run."""

    wall_us: float
    cpu_us: float


class Sides(NamedTuple):
    floor: Lowest
    fenced: FencedPostgres | FencedSqlite
    store: perdure.RunStore

    async def close(self) -> None:
        await self.store.close()
        await self.fenced.close()
        await self.floor.close()


@asynccontextmanager
async def _on_postgres(url: str) -> AsyncIterator[Sides]:
    sides = Sides(
        await PostgresFloor.open(url, synchronous="full"),
        await FencedPostgres.open(url, synchronous="full"),
        await perdure.open_store(url, migrate=True),
    )
    yield sides
    await sides.close()


@asynccontextmanager
async def _on_sqlite(folder: str) -> AsyncIterator[Sides]:
    sides = Sides(
        Floor(f"{folder}/floor.db", synchronous="full"),
        FencedSqlite(f"{folder}/fenced.db", synchronous="full"),
        await perdure.open_store(f"sqlite:{folder}/perdure.db", durability="full"),
    )
    yield sides
    await sides.close()


OPENED: Final = {"postgres": _on_postgres, "sqlite": _on_sqlite}


async def compare(options: argparse.Namespace, place: str) -> None:
    async with OPENED[options.store](place) as sides:
        works: list[Work] = [
            sides.floor.run_steps,
            sides.fenced.run_steps,
            partial(run, sides.store),
        ]
        for work in works:
            await many(_of(work, 3), AT_ONCE, "warm")
        steps: list[list[Each]] = [[] for _ in works]
        short: list[list[Each]] = [[] for _ in works]
        for number in range(options.rounds):
            for index, work in enumerate(works):
                one = partial(work, f"long-{number}", options.steps)
                steps[index].append(_each(await measured(one), options.steps))
                all_of_them = partial(many, _of(work, 3), options.runs, f"short-{number}")
                short[index].append(_each(await measured(all_of_them), options.runs))
        again = await _going_on(sides, options.rounds, options.steps)
    print(f"{'µs (processor time of this process)':<40}{'through the floor':>40}")
    _report("a durable step", steps)
    _report(f"a run of 3 steps, {AT_ONCE} at once", short)
    _report(f"going on behind {options.steps:,} steps", again)


async def _going_on(sides: Sides, rounds: int, steps: int) -> list[list[Each]]:
    async def ours() -> None:
        # Until the last step was there; what the run writes behind it is nobody's here.
        ends.append((await reach_last(sides.store, steps), time.process_time()))

    ends: list[tuple[float, float]] = []
    await sides.floor.run_steps("again", steps)
    await ours()
    found: list[list[Each]] = [[] for _ in SIDES]
    for number in range(rounds):
        await sides.fenced.interrupt(f"again-{number}", steps)
        works: list[Callable[[], Awaitable[object]]] = [
            partial(sides.floor.replay, "again"),
            partial(sides.fenced.go_on, f"again-{number}", steps),
        ]
        for index, work in enumerate(works):
            found[index].append(_each(await measured(work), 1))
        wall, cpu = time.perf_counter(), time.process_time()
        await ours()
        reached, spent = ends[-1]
        found[2].append(Each((reached - wall) * 1e6, (spent - cpu) * 1e6))
    return found


def _of(work: Work, steps: int) -> Callable[[str], Awaitable[None]]:
    return lambda run_id: work(run_id, steps)


def _each(found: Measured, count: int) -> Each:
    wall_ms, cpu_ms = found
    return Each(wall_ms * 1e3 / count, cpu_ms * 1e3 / count)


def _report(title: str, sides: list[list[Each]]) -> None:
    for name, rounds in zip(SIDES, sides, strict=True):
        wall = statistics.median(one.wall_us for one in rounds)
        cpu = statistics.median(one.cpu_us for one in rounds)
        ratio = _ratio(rounds, sides[0])
        print(f"{f'{title}, {name}':<52}{wall:>8.0f}{f'({cpu:.0f})':>8}{ratio:>8.2f}×")
    print(
        f"{f'{title}, perdure through the one with fences':<68}{_ratio(sides[2], sides[1]):>8.2f}×"
    )


def _ratio(ours: list[Each], others: list[Each]) -> float:
    return statistics.median(
        one.wall_us / other.wall_us for one, other in zip(ours, others, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--store", choices=sorted(OPENED), default="postgres")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--runs", type=int, default=1_000)
    options = parser.parse_args()
    with ExitStack() as stack:
        place = stack.enter_context(Places(stack).empty(options.store))
        asyncio.run(compare(options, place))


if __name__ == "__main__":
    main()
