"""The budget of speed: what each piece of work may cost, and how the stored figures stand to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from bench import alone, growth, readers
from bench.figure import Alone, promise
from bench.suite import OURS, Compared, Figure

LEASE_MS: Final = 15_000
_PG: Final = "postgres"


class Measured(NamedTuple):
    """The figures that bounds are held against."""

    compared: Sequence[Compared]
    alone: Sequence[Alone]


class Found(NamedTuple):
    """A figure, and the durability it was taken with."""

    value: float
    durability: str


class Bound(NamedTuple):
    """What one figure has to be: at most the gate and, better, the goal (or at least, for rates).

    A bound without a gate is a goal alone. Where a gate is passed easily, `held_to` is what we hold
    ourselves to from then on.
    """

    work: str
    find: Callable[[Measured], Found | None]
    unit: str
    gate: float | None
    goal: float | None = None
    at_least: bool = False
    held_to: float | None = None

    def verdict(self, value: float) -> str:
        """Return what the figure comes to: one of met, met with the goal, missed."""
        if self.held_to is not None and not self._holds(value, self.held_to):
            is_within = self.gate is not None and self._holds(value, self.gate)
            return "gate met, the tightened one **missed**" if is_within else "**missed**"
        if self.goal is not None and self._holds(value, self.goal):
            return "met, the goal too" if self.gate is not None else "met"
        if self.gate is not None and self._holds(value, self.gate):
            return "met"
        return "**missed**"

    @property
    def line(self) -> float:
        """What a figure has to keep to at least: where it is shown beside it."""
        known = (self.held_to, self.gate, self.goal)
        return next(bound for bound in known if bound is not None)

    def shown(self, value: float) -> str:
        return f"{value:,.0f} {self.unit}" if value >= 1_000 else f"{value:,.2f} {self.unit}"

    def told(self, value: float) -> str:
        """Return a figure and what it is held against."""
        return f"{self.shown(value)}; {'≥' if self.at_least else '≤'} {self.line:,g}"

    def _holds(self, value: float, bound: float) -> bool:
        # What a page shows is what is judged.
        return round(value, 2) >= bound if self.at_least else round(value, 2) <= bound


def _of(name: str, pick: Callable[[Figure], float | None]) -> Callable[[Measured], Found | None]:
    """Return how our figure of a comparison is found."""

    def find(measured: Measured) -> Found | None:
        for one in measured.compared:
            for figure in one.figures:
                value = pick(figure)
                if one.comparison.name == name and figure.side == OURS and value is not None:
                    return Found(value, promise(one.comparison.store, one.durability))
        return None

    return find


def _lone(name: str) -> Callable[[Measured], Found | None]:
    def find(measured: Measured) -> Found | None:
        found = (Found(one.value, one.durability) for one in measured.alone if one.name == name)
        return next(found, None)

    return find


def _ratio(figure: Figure) -> float:
    return figure.ratio


def _value(figure: Figure) -> float:
    return figure.value


def _own_cpu(figure: Figure) -> float | None:
    return figure.own_cpu_us


def _p99(figure: Figure) -> float | None:
    return figure.p99_ms


def _of_runs(store: str, where: str, step: float, rate: tuple[float, float]) -> list[Bound]:
    slowest = f"the same, {where}: 99th percentile of a run"
    steps, runs, new = f"steps-{store}", f"runs-{store}", "postgresql" if store == _PG else store
    return [
        Bound(f"a durable logic step, {where}", _of(steps, _ratio), "× floor", step, 1.25),
        Bound(f"own CPU of a step above the floor, {where}", _of(steps, _own_cpu), "µs", 120, 60),
        Bound(
            f"1,000 runs of 3 steps, 64 at once, {where}: rate",
            _of(runs, _ratio),
            "× floor",
            *rate,
            at_least=True,
        ),
        # The design bounds the slowest runs on SQLite alone.
        *([Bound(slowest, _of(runs, _p99), "ms", 60, 40, held_to=50)] if store == "sqlite" else []),
        Bound(
            f"going on behind 1,000 steps, {where}",
            _of(f"resume-{store}", _ratio),
            "× floor",
            3,
            1.5,
        ),
        Bound(
            f"the same in a new process, from opening the store, {where}",
            _lone(f"{alone.NEW_PROCESS}, {new}"),
            "ms",
            None,
            60,
        ),
    ]


def _of_turns(store: str, where: str) -> list[Bound]:
    on, new = ("", store) if store == "sqlite" else (f"-{store}", "postgresql")
    return [
        Bound(
            f"a streamed turn, 1 ms a token, all journaled, one reader, {where}",
            _of(f"stream-paced{on}", _ratio),
            "× raw",
            1.1,
            1.05,
        ),
        Bound(
            f"a token without a pause, typed deltas, {where}",
            _of(f"stream-fast{on}", _value),
            "µs",
            10,
            4,
        ),
        Bound(
            f"a token without a pause, verbatim events, {where}",
            _of(f"stream-verbatim{on}", _value),
            "µs",
            10,
            8,
        ),
        Bound(
            f"the first frame, same process, above one commit, {where}",
            _lone(f"{alone.FIRST_HERE}, {store}"),
            "ms",
            2,
            0.5,
        ),
        Bound(
            f"the first frame, another process, {where}",
            _lone(f"{alone.FIRST_ELSEWHERE}, {store}"),
            "ms",
            60,
            25,
            held_to=20,
        ),
        Bound(
            f"crash to the first new frame, {where} (gate: lease + 5 s)",
            _lone(f"{alone.AFTER_A_KILL}, {new}"),
            "ms",
            LEASE_MS + 5_000,
            1_000,
            held_to=600 if store == "sqlite" else 800,
        ),
        *(
            Bound(f"{name}, {where}", _lone(f"{name}, {store}"), "ms", 50, held_to=35)
            for name in (alone.WAKEUP, alone.TURN_WAKEUP, alone.TURN_WAKEUP_ELSEWHERE)
        ),
    ]


BUDGET: Final = (
    *_of_runs("sqlite", "SQLite", 1.5, (0.2, 0.35)),
    *_of_runs(_PG, "PostgreSQL", 1.6, (0.15, 0.3)),
    *_of_turns("sqlite", "SQLite"),
    *_of_turns(_PG, "PostgreSQL"),
    Bound(
        "a step, 100 → 10,000 steps, SQLite", _lone(f"{growth.LONG_RUN}, sqlite"), "×", 1.25, 1.1
    ),
    Bound(
        "a step, 100 → 10,000 steps, PostgreSQL",
        _lone(f"{growth.LONG_RUN}, postgres"),
        "×",
        1.25,
        1.1,
    ),
    Bound(
        "bytes of a step, 100 → 10,000 steps, SQLite",
        _lone(f"{growth.LONG_RUN_BYTES}, sqlite"),
        "×",
        1.25,
        1.1,
    ),
    *(
        bound
        for store, where in (("sqlite", "SQLite"), (_PG, "PostgreSQL"))
        for bound in (
            Bound(
                f"a run, 0 → 1,000,000 old runs, {where}",
                _lone(f"{growth.BEHIND_OLD_RUNS}, {store}"),
                "×",
                1.25,
                1.1,
            ),
            Bound(
                f"a token, 1,000 → 50,000 in a turn, {where}",
                _lone(f"{growth.LONG_TURN}, {store}"),
                "×",
                1.25,
                1.1,
            ),
        )
    ),
    Bound("a further reader, 100 → 1,000, SQLite", _lone(readers.FURTHER_READER), "×", 1.25, 1.1),
    Bound("`import perdure`", _lone(alone.IMPORT), "ms", 100, 70, held_to=20),
    Bound("memory after `import perdure`", _lone(alone.IMPORT_MEMORY), "MB", 24, held_to=14),
    Bound("a live turn", _lone(alone.LIVE_TURN), "KiB", 64),
)
"""Every gate and goal that the design names, and a few more of the same kind."""
