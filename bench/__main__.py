"""Measure Perdure beside the floor and its peers, in turn, and make the page of it.

    python -m bench [--quick] [--rounds 5] [--only NAME …] [--keep] [--no-peers]
                    [--durability full|normal]

Without `--quick` and `--only` it writes bench/results.json, docs/performance.md and its picture;
with `--keep` those of the names alone are put into the page, beside what is there already.
`--quick` measures next to nothing: it shows that the programs work. Peers are installed into
.venv-bench. Ratios travel between machines, times do not.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import date

from bench import alone, counts, page, suite
from bench.peers import PEERS


def main() -> None:
    options = _options()
    # The loads have a command of their own, and stay as they were measured.
    loads = page.load().loads
    results = page.Results(_machine(), date.today().isoformat(), [], [], [], loads)
    with ExitStack() as stack:
        places = suite.Places(stack)
        results.compared.extend(_compared(options, places))
        if _wanted(options, "counts"):
            counted = counts.measure(places, steps=100 if options.quick else 1_000)
            results = results._replace(counted=counted)
    parts = [name for name in alone.parts(quick=options.quick) if _wanted(options, name)]
    results.alone.extend(alone.measure(parts, quick=options.quick))
    found = (page.comparisons(results.compared), page.counts(results.counted))
    print(*found, page.alone(results.alone), sep="\n\n")
    if options.keep:
        results = page.keep(results)
    if options.keep or not (options.quick or options.only or options.no_peers):
        page.save(results)
        page.write(results)


def _wanted(options: argparse.Namespace, name: str) -> bool:
    return (
        not options.only
        or name in options.only
        or ("alone" in options.only and name in alone.parts(quick=False))
    )


def _compared(options: argparse.Namespace, places: suite.Places) -> list[suite.Compared]:
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

    def compare(comparison: suite.Comparison) -> suite.Compared:
        print(comparison.title, file=sys.stderr)
        rounds, durability = options.rounds, options.durability
        return suite.compare(
            comparison, places, rounds=rounds, quick=options.quick, durability=durability
        )

    # What measures nothing may go on side by side.
    with ThreadPoolExecutor(os.cpu_count() if options.quick else 1) as pool:
        return list(pool.map(compare, wanted))


def _without(comparison: suite.Comparison, *left_out: str) -> tuple[str, ...]:
    return tuple(side for side in comparison.sides if side not in left_out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    names = [comparison.name for comparison in suite.plan()]
    names += ["counts", "alone", *alone.parts(quick=False)]
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
    return (
        f"{os.cpu_count()} cores of a shared virtual machine, {platform.system()}, "
        f"Python {python}, SQLite {sqlite3.sqlite_version}, PostgreSQL 18"
    )


if __name__ == "__main__":
    main()
