"""Measure Perdure beside the floor and its peers, in turn, and make the page of it.

    python -m bench [--quick] [--rounds 5] [--only NAME …] [--no-peers] [--durability full|normal]

Without `--quick` and `--only` it writes bench/results.json, docs/performance.md and its picture.
`--quick` measures next to nothing: it shows that the programs work. Peers are installed into
.venv-bench. Ratios travel between machines, times do not.
"""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import sys
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
        for comparison in suite.plan():
            if options.only and comparison.name not in options.only:
                continue
            if options.no_peers:
                own = tuple(side for side in comparison.sides if side not in PEERS)
                comparison = comparison._replace(sides=own)
            print(comparison.title, file=sys.stderr)
            results.compared.append(
                suite.compare(
                    comparison,
                    places,
                    rounds=options.rounds,
                    quick=options.quick,
                    durability=options.durability,
                )
            )
        if not options.only or "counts" in options.only:
            counted = counts.measure(places, steps=100 if options.quick else 1_000)
            results = results._replace(counted=counted)
    if not options.only or "alone" in options.only:
        results.alone.extend(alone.measure(quick=options.quick))
    found = (page.comparisons(results.compared), page.counts(results.counted))
    print(*found, page.alone(results.alone), sep="\n\n")
    if not (options.quick or options.only or options.no_peers):
        page.save(results)
        page.write(results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    names = [comparison.name for comparison in suite.plan()]
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", nargs="+", choices=[*names, "counts", "alone"], metavar="NAME")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--durability", choices=("full", "normal"), default="full")
    options = parser.parse_args()
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
