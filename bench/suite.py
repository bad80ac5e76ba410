"""Comparisons: the same work by several sides, in turn (A B C A B C), each in a fresh process."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg

from bench.peers import PEERS, peer
from tests.engines.restate_server import running_restate
from tests.node_packages import need_node_packages
from tests.store.postgres_server import PostgresServer, running_server

ROOT: Final = Path(__file__).parent.parent
PATIENCE_S: Final = 600
FLOOR: Final = "floor"
OURS: Final = "perdure"


class Comparison(NamedTuple):
    """One piece of work. `size` counts steps, runs or tokens; `gate` is the budget's ratio.

    With `more_is_better`, the figure is a rate, and the ratio has to be above the gate.
    """

    name: str
    title: str
    work: str
    store: str
    unit: str
    size: int
    sides: tuple[str, ...]
    gate: float | None = None
    goal: float | None = None
    more_is_better: bool = False
    pause_ms: float = 0
    quick_size: int = 20


class Figure(NamedTuple):
    """What one side needed: the median of all rounds, and the median of its paired ratios."""

    side: str
    version: str
    value: float
    low: float
    high: float
    ratio: float
    cpu_us: float | None = None
    p99_ms: float | None = None


class Compared(NamedTuple):
    """A comparison and its figures, the floor's first."""

    comparison: Comparison
    rounds: int
    durability: str
    figures: list[Figure]


_SQLITE: Final = (FLOOR, OURS, "langgraph", "restate", "dbos")
_POSTGRES: Final = (FLOOR, OURS, "langgraph", "absurd", "dbos")
_OWN: Final = (FLOOR, OURS)


def plan() -> list[Comparison]:
    """Return the comparisons of the budget, gates and goals with them."""
    on_sqlite = _of_runs("sqlite", "SQLite", _SQLITE, step_gate=1.5, rate_gates=(0.2, 0.35))
    on_postgres = _of_runs(
        "postgres", "PostgreSQL", _POSTGRES, step_gate=1.6, rate_gates=(0.15, 0.3)
    )
    return [*on_sqlite, *on_postgres, *_of_streams()]


def _of_runs(
    store: str,
    where: str,
    sides: tuple[str, ...],
    *,
    step_gate: float,
    rate_gates: tuple[float, float],
) -> list[Comparison]:
    one = Comparison("", "", "steps", store, "µs", 1_000, sides)
    step = one._replace(
        name=f"steps-{store}", title=f"A durable step, {where}", gate=step_gate, goal=1.25
    )
    gate, goal = rate_gates
    rate = one._replace(
        name=f"runs-{store}",
        title=f"Runs of 3 steps, 64 at once, {where}",
        work="runs",
        unit="runs/s",
        size=500,
        gate=gate,
        goal=goal,
        more_is_better=True,
    )
    resume = one._replace(
        name=f"resume-{store}",
        title=f"Going on behind 1,000 steps, {where}",
        work="resume",
        unit="ms",
        sides=tuple(side for side in sides if side != "dbos"),
        gate=3,
        goal=1.5,
    )
    long = one._replace(
        name=f"steps-long-{store}",
        title=f"A step of a run of 10,000, {where}",
        size=10_000,
        sides=_OWN,
    )
    return [step, rate, resume, long]


def _of_streams() -> list[Comparison]:
    fast = Comparison(
        "stream-fast",
        "A token of a turn without a pause, one reader, SQLite",
        "stream",
        "sqlite",
        "µs",
        2_000,
        (*_OWN, "dbos"),
    )
    paced = fast._replace(
        name="stream-paced",
        title="A token of a turn at 1 ms each, all journaled, one reader, SQLite",
        size=1_000,
        gate=1.10,
        goal=1.05,
        pause_ms=1,
    )
    return [paced, fast]


class Places:
    """Hands out empty places: folders, databases of one server of our own, Restate's servers."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._server: PostgresServer | None = None
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
        if store != "postgres":
            with tempfile.TemporaryDirectory(prefix="perdure-bench-") as folder:
                yield folder
            return
        if self._server is None:
            self._server = self._stack.enter_context(running_server(flushes=True))
        name = f"bench_{next(self._numbers)}"
        self._execute(f'CREATE DATABASE "{name}"')
        yield f"{self._server.url.rsplit('/', 1)[0]}/{name}"
        self._execute(f'DROP DATABASE "{name}" WITH (FORCE)')

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
    for _ in range(rounds):
        for side in sides:
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
        command, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{side} failed at {comparison.name}:\n{done.stderr[-2_000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _figure(
    side: str, answers: Sequence[dict[str, float]], floors: Sequence[dict[str, float]]
) -> Figure:
    values = [answer["value"] for answer in answers]
    ratios = [
        answer["value"] / floor["value"] for answer, floor in zip(answers, floors, strict=True)
    ]

    def median(key: str) -> float | None:
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
    )


def _version(side: str) -> str:
    if side == FLOOR:
        return ""
    return peer(side).version if side in PEERS else version("perdure")
