"""How many instructions a step, a short run or a token takes, on the loop's thread and beside it.

    python -m bench.instructions [--work steps runs stream verbatim] [--store sqlite|postgres]
                                 [--sides floor fenced perdure]

Counted by valgrind's callgrind (which has to be installed), the floor beside ours: the difference
between a long and a short measurement, so that the start of Python does not count. What the kernel
and a server do is left out. The figures hardly change with the load of the machine, so a change of
some percent in the code is seen where a clock would see nothing. For `runs`, 64 are under way at a
time. `fenced` is our promise by hand. The floor of a stream is the generator alone.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from bench.suite import Places

ROOT: Final = Path(__file__).parent.parent
SIZES: Final = {
    "steps": (100, 500),
    "runs": (100, 300),
    "stream": (200, 2_200),
    "verbatim": (200, 2_200),
}
SIDES: Final = ("floor", "fenced", "perdure")
PATIENCE_S: Final = 300
_TOTALS: Final = re.compile(r"^totals: (\d+)", re.MULTILINE)


class Instructions(NamedTuple):
    """Thousands of instructions for one more step, run or token."""

    loop: float
    others: float


def measure(side: str, work: str, store: str, places: Places) -> Instructions:
    short, long = SIZES[work]
    (loop, others), (loop_long, others_long) = (
        _count(side, work, store, places, at) for at in (short, long)
    )
    each = 1e3 * (long - short)
    return Instructions((loop_long - loop) / each, (others_long - others) / each)


def _count(side: str, work: str, store: str, places: Places, size: int) -> tuple[int, int]:
    """Return the instructions of the main thread, and of all others."""
    with (
        places.empty(store) as place,
        tempfile.TemporaryDirectory(prefix="perdure-bench-") as folder,
    ):
        out = Path(folder) / "callgrind"
        command = ["valgrind", "--tool=callgrind", "--separate-threads=yes"]
        command += [f"--callgrind-out-file={out}", sys.executable, "-m", f"bench.sides.{side}_side"]
        command += [work, "--store", store, "--place", place, "--size", str(size)]
        subprocess.run(command, capture_output=True, cwd=ROOT, timeout=PATIENCE_S, check=True)
        totals = {
            each.name: int(found[1])
            for each in Path(folder).glob("callgrind-*")
            if (found := _TOTALS.search(each.read_text()))
        }
    loop = totals.pop("callgrind-01")
    return loop, sum(totals.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--work",
        nargs="+",
        choices=list(SIZES),
        default=["steps", "runs"],
        help="what is counted: each further step, short run, typed token or verbatim event",
    )
    parser.add_argument(
        "--store",
        choices=("sqlite", "postgres"),
        default="sqlite",
        help="of PostgreSQL the client alone is counted, which is all on the loop's thread",
    )
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["floor", "perdure"])
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed: apt-get install valgrind")
    print(f"{'thousands of instructions':<28}{'loop':>10}{'others':>10}{'all':>10}")
    with ExitStack() as stack:
        places = Places(stack)
        for work in options.work:
            for side in options.sides:
                found = measure(side, work, options.store, places)
                name = f"{work}, {side}"
                print(f"{name:<28}{found.loop:>10.0f}{found.others:>10.0f}{sum(found):>10.0f}")


if __name__ == "__main__":
    main()
