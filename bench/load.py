"""Many live turns over HTTP: `perdure serve` beside the same model streamed straight, in turn.

    python -m bench.load [--turns 500] [--tokens-a-second 20] [--seconds 15] [--rounds 3]
                         [--store sqlite|file|memory|postgres] [--processes 1|2] [--readers 0]
                         [--ramp 100 250 500 750 1000] [--save NAME | --all]

Every turn is the long story of the scripted model, read by whoever asked for it; `--readers` come
to live turns in addition, where there are two processes half of them to the one that does not
answer it. For each side: how long the first token took, how long one waited for the next, and
what the servers took of a core while all turns were live. The readers are one process on the same
machine: its share is told too. `--ramp` asks the service for more and more turns, until it bends:
one in a hundred waits for the next token over twice the pace. It stops by itself after about
2 x rounds x (10 + seconds) seconds. `--save` keeps the rows for docs/performance.md, under a name;
`--all` measures all loads of that page, one after another, and keeps each at once; with `--only`
those that are named. One that fails is told at the end, and its rows stay as they were.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench import page
from bench.loaded import Loaded
from bench.watchers import Place, Watcher, following, posting, watch
from tests.store.postgres_server import free_port, running_server

RAMP_MS: Final = 8
"""One turn is begun so long after the other, so that their tokens do not come at one moment."""
SETTLE_S: Final = 1
START_S: Final = 30
_ACCEPTED: Final = (b"200", b"201")
LOADS: Final[Mapping[str, Mapping[str, Any]]] = {
    "250 turns, SQLite": {"turns": 250},
    "500 turns, SQLite": {"turns": 500},
    "500 turns, two processes on one file": {"turns": 500, "processes": 2},
    "two processes, readers on both": {"turns": 250, "processes": 2, "readers": 250},
    "250 turns, PostgreSQL": {"turns": 250, "store": "postgres"},
    "500 turns, PostgreSQL": {"turns": 500, "store": "postgres"},
    "1,000 readers, SQLite": {"turns": 100, "readers": 1_000},
}
"""The loads of the page, by name."""
BENDING: Final = "until it bends, SQLite"
NAMES: Final = (*LOADS, BENDING)
RAMP: Final = (100, 150, 200, 250, 300, 400, 500)
RAW: Final = "straight from the generator"
OURS: Final = "perdure serve"


class Asked(NamedTuple):
    """One measurement: how many turns at which pace, for how long, and where they live."""

    turns: int
    token_ms: float
    seconds: float
    store: str
    processes: int
    readers: int


@contextmanager
def serving(command: Sequence[str], port: int) -> Iterator[int]:
    """Run a server until the block is left; yield the number of its process."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError("the server does not listen")


def _ours(port: int, address: str, token_ms: float) -> list[str]:
    command = ["-m", "perdure", "serve", "--port", str(port), "--store", address]
    command += ["--backend", "scripted", "--token-delay-ms", f"{token_ms:.0f}"]
    return [*command, "--turns-max", "8192", "--tenant-turns-max", "8192"]


@contextmanager
def addressed(store: str) -> Iterator[str]:
    """Yield the address of an empty store."""
    with tempfile.TemporaryDirectory(prefix="perdure-load-") as folder:
        if store == "postgres":
            with running_server(flushes=True) as server:
                yield server.new_store()
        else:
            yield "memory:" if store == "memory" else f"{store}:{Path(folder) / 'perdure'}"


def measure(side: str, asked: Asked) -> Loaded:
    """Serve, let all turns live for a while, and say what their readers saw."""
    with ExitStack() as stack:
        ports = [free_port() for _ in range(asked.processes if side == OURS else 1)]
        address = stack.enter_context(addressed(asked.store)) if side == OURS else ""
        processes = [
            stack.enter_context(
                serving(
                    _ours(port, address, asked.token_ms)
                    if side == OURS
                    else ["-m", "bench.streaming", str(port), str(asked.token_ms)],
                    port,
                )
            )
            for port in ports
        ]
        places = [Place("127.0.0.1", port) for port in ports]
        return asyncio.run(_measure(side, asked, places, processes))


async def _measure(
    side: str, asked: Asked, places: Sequence[Place], processes: Sequence[int]
) -> Loaded:
    askers: list[Watcher] = []
    for index in range(asked.turns):
        askers.append(await watch(places[index % len(places)], posting(f"s{index}")))
        await asyncio.sleep(RAMP_MS / 1e3)
    await _all_spoke(askers)
    readers: list[Watcher] = []
    for index in range(asked.readers if side == OURS else 0):
        # With two processes every other reader asks the one that does not answer the turn.
        place = places[(index + index // asked.turns) % len(places)]
        readers.append(await watch(place, following(f"s{index % asked.turns}")))
    everybody = [*askers, *readers]
    await _all_spoke(readers)
    await asyncio.sleep(SETTLE_S)
    for each in everybody:
        each.begin()
    began, spent, own = time.perf_counter(), _cpu_s(processes), time.process_time()
    await asyncio.sleep(asked.seconds)
    took = time.perf_counter() - began
    spent, own = _cpu_s(processes) - spent, time.process_time() - own
    for each in everybody:
        each.end()
    size = sum(memory_mb(process) for process in processes)
    tokens = sum(each.tokens for each in everybody)
    gaps = sorted(gap for each in everybody for gap in each.gaps_ms)
    firsts = sorted(each.first_ms for each in everybody if each.first_ms is not None)
    cut = sum(each.is_cut for each in everybody)
    for each in everybody:
        each.leave()
    if cut:
        raise RuntimeError(f"{cut} of {len(everybody)} streams were cut")
    return Loaded(
        side=side,
        turns=asked.turns,
        readers=len(readers),
        processes=len(processes),
        store=asked.store if side == OURS else "",
        pace_ms=asked.token_ms,
        first_p50_ms=_at(firsts, 0.5),
        first_p99_ms=_at(firsts, 0.99),
        gap_p50_ms=_at(gaps, 0.5),
        gap_p99_ms=_at(gaps, 0.99),
        gap_max_ms=gaps[-1],
        cpu_percent=100 * spent / took,
        cpu_us_a_token=1e6 * spent / tokens,
        memory_mb=size,
        arrived_percent=100 * tokens / (len(everybody) * took * 1e3 / asked.token_ms),
        client_percent=100 * own / took,
    )


async def _all_spoke(watchers: Sequence[Watcher]) -> None:
    """Return when each has had a token. Raises RuntimeError for one that is refused, or waits."""
    until = time.monotonic() + START_S
    while any(each.first_ms is None for each in watchers):
        refused = [each.status for each in watchers if each.status not in (b"", *_ACCEPTED)]
        if refused:
            raise RuntimeError(
                f"{len(refused)} of {len(watchers)} streams were answered {refused[0].decode()}"
            )
        if time.monotonic() > until:
            raise RuntimeError("not every stream has had a token by now")
        await asyncio.sleep(0.02)


def _at(values: Sequence[float], share: float) -> float:
    return values[min(int(len(values) * share), len(values) - 1)]


def _cpu_s(processes: Sequence[int]) -> float:
    ticks = 0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mb(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def median_of(rows: Sequence[Loaded]) -> Loaded:
    """Return the median of every figure of one side's rounds."""
    numbers = {
        name: statistics.median(getattr(row, name) for row in rows)
        for name, kind in Loaded.__annotations__.items()
        if kind == "float"
    }
    return rows[0]._replace(rounds=len(rows), **numbers)


def compared(asked: Asked, rounds: int) -> list[Loaded]:
    """Measure both sides in turn (A B A B)."""
    found: dict[str, list[Loaded]] = {RAW: [], OURS: []}
    for _ in range(rounds):
        for side, rows in found.items():
            rows.append(measure(side, asked))
            print(rows[-1].told(), flush=True)
    return [median_of(rows) for rows in found.values()]


def ramped(asked: Asked, steps: Sequence[int]) -> list[Loaded]:
    """Ask for more and more turns until the service bends; the last row is where it did."""
    rows: list[Loaded] = []
    for turns in steps:
        rows.append(measure(OURS, asked._replace(turns=turns)))
        print(rows[-1].told(), flush=True)
        if rows[-1].bends:
            break
    return rows


def keep_all(asked: Asked, rounds: int, names: Sequence[str]) -> list[str]:
    """Measure loads of the page at the pace and for the time of `asked`; keep each at once.

    Return the names of what failed.
    """
    failed: list[str] = []
    for name in names:
        print(name, flush=True)
        try:
            if name == BENDING:
                rows = ramped(asked, RAMP)
            else:
                rows = compared(asked._replace(**LOADS[name]), rounds)
        except Exception:
            # The others are not lost to it.
            traceback.print_exc()
            failed.append(name)
        else:
            page.keep_load(name, rows, NAMES)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=500)
    parser.add_argument("--tokens-a-second", type=float, default=20)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--store", choices=("sqlite", "file", "memory", "postgres"), default="sqlite"
    )
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--readers", type=int, default=0)
    parser.add_argument("--ramp", type=int, nargs="+", metavar="TURNS")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--save", metavar="NAME")
    kept.add_argument("--all", action="store_true")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asked = Asked(
        options.turns,
        1e3 / options.tokens_a_second,
        options.seconds,
        options.store,
        options.processes,
        options.readers,
    )
    if options.all:
        failed = keep_all(asked, options.rounds, options.only)
        sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
    rows = ramped(asked, options.ramp) if options.ramp else compared(asked, options.rounds)
    print(page.loads({options.save or "this load": rows}))
    if options.save:
        page.keep_load(options.save, rows, NAMES)


if __name__ == "__main__":
    main()
