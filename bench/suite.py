"""Comparisons: the same work by several sides, in turn (A B C A B C), each in a fresh process."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, Final, NamedTuple

import psycopg

from bench.peers import PEERS, peer
from perdure.store.sql.d1.address import TOKEN_VARIABLE
from tests.engines.restate_server import running_restate
from tests.node_packages import need_node_packages
from tests.store.d1_server import TOKEN, D1Server, running_d1
from tests.store.postgres_server import PostgresServer, running_server

ROOT: Final = Path(__file__).parent.parent
PATIENCE_S: Final = 600
FLOOR: Final = "floor"
FENCED: Final = "fenced"
"""The smallest program that keeps our own promise, where one was written for the store."""
OURS: Final = "perdure"
_OWN: Final = (FLOOR, OURS)


class Comparison(NamedTuple):
    """One piece of work. `size` counts steps, runs or tokens.

    With `more_is_better`, the figure is a rate, and the ratio of a good one is above others. Peers
    take part in the first `peer_rounds` alone, as some need a minute for what takes us a second.
    """

    name: str
    title: str
    work: str
    store: str
    unit: str
    size: int
    sides: tuple[str, ...]
    more_is_better: bool = False
    pause_ms: float = 0
    quick_size: int = 20
    peer_rounds: int = 3


class Figure(NamedTuple):
    """What one side needed: the median of all rounds, and the median of its paired ratios.

    `own_cpu_us` is the processor time above the floor's, paired likewise. `rounds`: how many there
    were of this side; None for all.
    """

    side: str
    version: str
    value: float
    low: float
    high: float
    ratio: float
    cpu_us: float | None = None
    p99_ms: float | None = None
    own_cpu_us: float | None = None
    rounds: int | None = None


class Compared(NamedTuple):
    """A comparison and its figures, the floor's first."""

    comparison: Comparison
    rounds: int
    durability: str
    figures: list[Figure]


_SIDES: Final = {
    "sqlite": (FLOOR, OURS, "langgraph", "restate", "dbos"),
    "postgres": (FLOOR, OURS, "langgraph", "absurd", "dbos"),
    "file": (FLOOR, OURS),
    "d1": (FLOOR, OURS),
}
STORES: Final = {"sqlite": "SQLite", "postgres": "PostgreSQL", "file": "files", "d1": "D1"}
_D1_PART: Final = 10
"""A request to D1 takes milliseconds: there a tenth of the work has to do."""


def plan() -> list[Comparison]:
    """Return all comparisons, those of the workloads w1 to w5 on every store."""
    runs = [one for store in STORES for one in _of_runs(store)]
    streams = [one for store in STORES for one in _of_streams(store)]
    return [*runs, *streams]


def _of_runs(store: str) -> list[Comparison]:
    where, sides = STORES[store], _SIDES[store]
    part = _D1_PART if store == "d1" else 1
    steps, runs, long = 1_000 // part, 1_000 // part, 10_000 // part
    fenced = (FLOOR, FENCED, *sides[1:]) if store in ("sqlite", "postgres") else sides
    step = Comparison(
        f"steps-{store}", f"A durable step, {where}", "steps", store, "µs", steps, fenced
    )
    rate = step._replace(
        name=f"runs-{store}",
        title=f"{runs:,} runs of 3 steps, 64 at once, {where}",
        work="runs",
        unit="runs/s",
        size=runs,
        more_is_better=True,
    )
    resume = step._replace(
        name=f"resume-{store}",
        title=f"Going on behind {steps:,} steps, {where}",
        work="resume",
        unit="ms",
    )
    growth = step._replace(
        name=f"steps-long-{store}",
        title=f"A step of a run of {long:,}, {where}",
        size=long,
        sides=sides,
        peer_rounds=1,
    )
    return [step, rate, resume, growth]


def _of_streams(store: str) -> list[Comparison]:
    """Those on SQLite have the short names."""
    where, on = STORES[store], "" if store == "sqlite" else f"-{store}"
    is_database = store in ("sqlite", "postgres")
    paced = Comparison(
        f"stream-paced{on}",
        f"A token of a turn at 1 ms each, all journaled, one reader, {where}",
        "stream",
        store,
        "µs",
        1_000,
        (*_OWN, "dbos") if is_database else _OWN,
        pause_ms=1,
    )
    fast = paced._replace(
        name=f"stream-fast{on}",
        title=f"A token of a turn without a pause, one reader, {where}",
        size=2_000,
        pause_ms=0,
        sides=(FLOOR, FENCED, *paced.sides[1:]) if is_database else paced.sides,
    )
    verbatim = fast._replace(
        name=f"stream-verbatim{on}",
        title=f"An event of another agent's, verbatim, without a pause, one reader, {where}",
        work="verbatim",
        sides=(FLOOR, FENCED, OURS),
    )
    return [paced, fast, verbatim] if is_database else [paced, fast]


class Places:
    """Hands out empty places: folders, databases of servers of our own, Restate's servers."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._starting = Lock()
        self._d1_at_a_time = Lock()
        self._server: PostgresServer | None = None
        self._d1: D1Server | None = None
        self._numbers = count(1)

    @contextmanager
    def of(self, side: str, store: str) -> Iterator[str]:
        """Yield an empty place for a side. Restate has its own server, whose store is its own."""
        with self.empty(store) as place:
            if side != "restate":
                yield place
                return
            need_node_packages()
            with running_restate(Path(place)) as server:
                yield f"{server.ingress} {server.admin}"

    @contextmanager
    def empty(self, store: str) -> Iterator[str]:
        if store == "d1":
            with self._d1_at_a_time:
                yield self._empty_d1()
            return
        if store != "postgres":
            with tempfile.TemporaryDirectory(prefix="perdure-bench-") as folder:
                yield folder
            return
        with self._starting:
            if self._server is None:
                self._server = self._stack.enter_context(running_server(flushes=True))
        name = f"bench_{next(self._numbers)}"
        self._execute(f'CREATE DATABASE "{name}"')
        yield f"{self._server.url.rsplit('/', 1)[0]}/{name}"
        self._execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def _empty_d1(self) -> str:
        """Return the address of the one database, with our tables and no others."""
        if self._d1 is None:
            need_node_packages()
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="perdure-bench-"))
            self._d1 = self._stack.enter_context(running_d1(Path(folder)))
        return self._d1.url(self._d1.clean(self._d1.drop()))

    def _execute(self, sql: str) -> None:
        assert self._server is not None
        with psycopg.connect(self._server.url, autocommit=True) as connection:
            connection.execute(sql.encode())


def compare(
    comparison: Comparison, places: Places, *, rounds: int, quick: bool, durability: str = "full"
) -> Compared:
    """Measure all sides in turn. Raises RuntimeError with what a side said if it failed."""
    sides = [side for side in comparison.sides if not (quick and side in PEERS)]
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for index in range(rounds):
        for side in sides:
            if side in PEERS and index >= comparison.peer_rounds:
                continue
            with places.of(side, comparison.store) as place:
                found[side].append(_ask(side, comparison, place, durability, quick=quick))
    return Compared(
        comparison, rounds, durability, [_figure(side, found[side], found[FLOOR]) for side in sides]
    )


def _ask(
    side: str, comparison: Comparison, place: str, durability: str, *, quick: bool
) -> dict[str, float]:
    python = str(peer(side).python) if side in PEERS else sys.executable
    size = comparison.quick_size if quick else comparison.size
    command = [python, "-m", f"bench.sides.{side}_side", comparison.work]
    command += ["--store", comparison.store, "--place", place, "--size", str(size)]
    command += ["--pause-ms", str(comparison.pause_ms), "--durability", durability]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, TOKEN_VARIABLE: TOKEN},
        timeout=PATIENCE_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{side} failed at {comparison.name}:\n{done.stderr[-2_000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _figure(
    side: str, answers: Sequence[dict[str, float]], floors: Sequence[dict[str, float]]
) -> Figure:
    values = [answer["value"] for answer in answers]
    pairs = list(zip(answers, floors[: len(answers)], strict=True))
    ratios = [answer["value"] / floor["value"] for answer, floor in pairs]
    own = [
        {"own_cpu_us": answer["cpu_us"] - floor["cpu_us"]}
        for answer, floor in pairs
        if "cpu_us" in answer and "cpu_us" in floor
    ]

    def median(key: str, answers: Sequence[dict[str, float]] = answers) -> float | None:
        known = [answer[key] for answer in answers if key in answer]
        return statistics.median(known) if known else None

    return Figure(
        side,
        _version(side),
        statistics.median(values),
        min(values),
        max(values),
        statistics.median(ratios),
        median("cpu_us"),
        median("p99_ms"),
        None if side == FLOOR else median("own_cpu_us", own),
        len(answers),
    )


def _version(side: str) -> str:
    if side in (FLOOR, FENCED):
        return ""
    return peer(side).version if side in PEERS else version("perdure")
