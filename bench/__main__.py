"""Measure Perdure beside the floor and its peers, in turn, and make the page of it.

    python -m bench [--quick] [--rounds 5] [--only NAME …] [--keep] [--no-peers]
                    [--durability full|normal]

Without `--quick`, `--only` and `--no-peers` it writes bench/results.json, docs/performance.md and
its pictures; what one that was interrupted has measured is kept, and the next one goes on behind
it. What fails is told at the end, and the page is left as it was: the next call measures that
alone. With `--keep` what was found is put into the page, beside what is there already. `--quick`
measures next to nothing: it shows that the programs work. Peers are installed into .venv-bench.
Ratios travel between machines, times do not.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench import alone, counts, page, suite
from bench.figure import Alone
from bench.peers import PEERS
from bench.progress import UNFINISHED, Progress
from tests.store.postgres_server import MAJOR

COUNTS: Final = "counts"
Found = dict[str, Sequence[Any]]
"""What was found, by the list that it belongs to."""


class Work(NamedTuple):
    """One thing to measure."""

    name: str
    measure: Callable[[], Found]


def main() -> None:
    options = _options()
    # The loads have a command of their own, and stay as they were measured.
    loads = page.load().loads
    results = page.Results(_machine(), date.today().isoformat(), [], [], [], loads)
    is_whole = not (options.quick or options.only or options.no_peers)
    way = {"rounds": options.rounds, "durability": options.durability}
    progress = Progress(results, way, UNFINISHED if is_whole else None)
    with ExitStack() as stack:
        works = [
            work
            for work in _works(options, suite.Places(stack))
            if _wanted(options, work.name) and work.name not in progress.done
        ]
        failed = measured(works, progress, at_once=(os.cpu_count() or 1) if options.quick else 1)
    results = progress.results
    found = (page.comparisons(results.compared), page.counts(results.counted))
    print(*found, page.alone(results.alone), sep="\n\n")
    if options.keep or (is_whole and not failed):
        if options.keep:
            kept = page.keep(results)
            # A few rows leave the page what it says of the others.
            if is_whole:
                kept = kept._replace(machine=results.machine, taken_on=results.taken_on)
            results = kept
        page.save(results)
        page.write(results)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    progress.finish()


def measured(works: Sequence[Work], progress: Progress, *, at_once: int) -> list[str]:
    """Measure, tell how long each took, and return the names of what failed."""
    failed: list[str] = []

    def done(work: Work) -> Found | None:
        began = time.monotonic()
        print(work.name, file=sys.stderr)
        try:
            found = work.measure()
        except Exception:
            # An hour of measuring is not lost to one peer: it is told, and counts as a failure.
            traceback.print_exc()
            failed.append(work.name)
            return None
        print(f"{work.name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        return found

    # What measures nothing may go on side by side.
    with ThreadPoolExecutor(at_once) as pool:
        for work, found in zip(works, pool.map(done, works), strict=True):
            if found is not None:
                progress.add(work.name, **found)
    return failed


def _works(options: argparse.Namespace, places: suite.Places) -> list[Work]:
    """Return all that can be measured here, the comparisons first."""
    quick = options.quick

    def comparison(one: suite.Comparison) -> Found:
        rounds, durability = options.rounds, options.durability
        found = suite.compare(one, places, rounds=rounds, quick=quick, durability=durability)
        return {"compared": [found]}

    def counted() -> Found:
        return {"counted": counts.measure(places, steps=100 if quick else 1_000)}

    def part(measure: Callable[[], list[Alone]]) -> Found:
        found = measure()
        told = [f"{one.name}: {one.value:,.1f} {one.unit}" for one in found]
        print(*told, sep="\n", file=sys.stderr)
        return {"alone": found}

    return [
        *(Work(one.name, partial(comparison, one)) for one in _compared(options)),
        Work(COUNTS, counted),
        *(Work(name, partial(part, measure)) for name, measure in alone.parts(quick=quick).items()),
    ]


def _wanted(options: argparse.Namespace, name: str) -> bool:
    return (
        not options.only
        or name in options.only
        or ("alone" in options.only and name in alone.parts(quick=False))
    )


def _compared(options: argparse.Namespace) -> list[suite.Comparison]:
    wanted = [one for one in suite.plan() if _wanted(options, one.name)]
    if shutil.which("npm") is None:
        print("D1 is left out, and Restate: they are packages of npm", file=sys.stderr)
        wanted = [one for one in wanted if one.store != "d1"]
        wanted = [one._replace(sides=_without(one, "restate")) for one in wanted]
    if options.quick:
        # What differs in its size alone shows nothing more.
        wanted = list({(one.work, one.store): one for one in reversed(wanted)}.values())[::-1]
    if options.no_peers:
        wanted = [one._replace(sides=_without(one, *PEERS)) for one in wanted]
    return wanted


def _without(comparison: suite.Comparison, *left_out: str) -> tuple[str, ...]:
    return tuple(side for side in comparison.sides if side not in left_out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    names = [comparison.name for comparison in suite.plan()]
    names += [COUNTS, "alone", *alone.parts(quick=False)]
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--durability", choices=("full", "normal"), default="full")
    options = parser.parse_args()
    if options.keep and options.quick:
        parser.error("--quick measures nothing that could be kept")
    options.rounds = options.rounds or (1 if options.quick else 5)
    return options


def _machine() -> str:
    python = ".".join(platform.python_version_tuple()[:2])
    kind = "a virtual machine" if _is_virtual() else "one machine"
    return (
        f"{os.cpu_count()} cores of {kind}, {platform.system()}, "
        f"Python {python}, SQLite {sqlite3.sqlite_version}, PostgreSQL {MAJOR}"
    )


def _is_virtual() -> bool:
    processor = Path("/proc/cpuinfo")
    return processor.exists() and " hypervisor " in processor.read_text()


if __name__ == "__main__":
    main()
