"""Simulate many schedules: `python -m perdure.testing.simulator --seeds 0:100000 --processes 2`."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor

from perdure.testing.simulator.schedule import first_violation

_AT_ONCE = 2_000


def _search(seeds: range) -> tuple[int, str] | None:
    found = first_violation(seeds)
    return None if found is None else (found[0], str(found[1]))


def main(arguments: list[str] | None = None) -> int:
    """Print the first violation, or that there was none; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m perdure.testing.simulator", description=__doc__
    )
    parser.add_argument("--seeds", default="0:100000", metavar="FROM:TO")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(arguments)
    begin, end = (int(part) for part in options.seeds.split(":"))
    pieces = [range(at, min(at + _AT_ONCE, end)) for at in range(begin, end, _AT_ONCE)]
    with ProcessPoolExecutor(options.processes) as pool:
        for found in pool.map(_search, pieces):
            if found is not None:
                sys.stdout.write(f"seed {found[0]}: {found[1]}\n")
                pool.shutdown(cancel_futures=True)
                return 1
    sys.stdout.write(f"{end - begin:,} schedules, no violation\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
