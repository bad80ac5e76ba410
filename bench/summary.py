"""What the stored figures say, in a few sentences: for whoever reads no table."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Final

from bench import alone, growth
from bench.budget import BUDGET, Measured
from bench.figure import Alone
from bench.loaded import Loaded
from bench.suite import OURS, STORES, Compared, Figure

NAMES: Final = {
    "langgraph": "LangGraph",
    "dbos": "DBOS",
    "absurd": "Absurd",
    "restate": "Restate",
}
WIDTH: Final = 110
_BOUNDED: Final = ("sqlite", "postgres")


def few(measured: Measured) -> str:
    """Return the figures that matter to most, as a list."""
    sentences = [_step(measured), _runs(measured), _resumed(measured)]
    sentences += [_streamed(measured), _alone(measured)]
    return "\n".join(_wrapped(f"- {sentence}", "  ") for sentence in sentences if sentence)


def verdicts(measured: Measured) -> str:
    """Return how many bounds are met, and which are not."""
    found = [(bound, figure) for bound in BUDGET if (figure := bound.find(measured)) is not None]
    missed = [
        f"{bound.work} ({bound.told(figure.value)})"
        for bound, figure in found
        if "missed" in bound.verdict(figure.value)
    ]
    goals = sum("goal too" in bound.verdict(figure.value) for bound, figure in found)
    told = f"Of {len(found)} bounds {len(found) - len(missed)} are met, {goals} with their goal."
    return _wrapped(f"{told} Missed: {'; '.join(missed)}." if missed else told)


def loads(known: Mapping[str, Sequence[Loaded]]) -> str:
    """Return for each load how many tokens came of those that its pace allows."""
    lines = [
        _wrapped(f"- {name}: {_load(rows[-1], rows[0])}", "  ")
        for name, rows in known.items()
        if rows
    ]
    return "\n".join(lines) or "Nothing yet."


def _wrapped(sentence: str, indent: str = "") -> str:
    return textwrap.fill(
        sentence, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _load(row: Loaded, raw: Loaded) -> str:
    allowed = (row.turns + row.readers) * 1e3 / row.pace_ms
    told = (
        f"with {row.turns:,} turns {allowed * row.arrived_percent / 100:,.0f} tokens a second came "
        f"of {allowed:,.0f}"
    )
    if raw is not row and not raw.store:
        more = row.cpu_us_a_token - raw.cpu_us_a_token
        told += f", each for {row.cpu_us_a_token:.0f} µs of processor time, {more:+.0f} µs"
    return f"{told}; it {'bends' if row.bends else 'keeps pace'}."


def _of(measured: Measured, name: str) -> Compared | None:
    return next((one for one in measured.compared if one.comparison.name == name), None)


def _side(one: Compared, side: str) -> Figure | None:
    return next((each for each in one.figures if each.side == side), None)


def _others(one: Compared) -> str:
    found = [(each.ratio, NAMES[each.side]) for each in one.figures if each.side in NAMES]
    found.sort(reverse=one.comparison.more_is_better)
    return ", ".join(f"{name} {ratio:.1f}" for ratio, name in found)


def _stores(measured: Measured, name: str) -> list[tuple[str, Compared, Figure]]:
    """Return our figure of a comparison, on SQLite and on PostgreSQL; there may be none."""
    found = []
    for store in _BOUNDED:
        # The streams on SQLite have the short names.
        one = (
            _of(measured, f"{name}-{store}") or (store == "sqlite" and _of(measured, name)) or None
        )
        ours = None if one is None else _side(one, OURS)
        if one is not None and ours is not None:
            found.append((STORES[store], one, ours))
    return found


def _times(measured: Measured, name: str) -> str:
    parts = []
    for store, one, ours in _stores(measured, name):
        others = _others(one)
        parts.append(f"{ours.ratio:.2f} × on {store}" + (f" ({others})" if others else ""))
    return ", ".join(parts)


def _step(measured: Measured) -> str:
    told = _times(measured, "steps")
    return told and f"**A durable step**, beside the smallest program that stores it: {told}."


def _runs(measured: Measured) -> str:
    parts = []
    for store, one, ours in _stores(measured, "runs"):
        others = [each for each in one.figures if each.side in NAMES]
        best = max(others, key=lambda each: each.ratio, default=None)
        told = "" if best is None else f" ({NAMES[best.side]} {best.value:,.0f})"
        parts.append(f"{ours.value:,.0f} a second on {store}{told}")
    return f"**Short runs** of three steps, 64 at once: {', '.join(parts)}." if parts else ""


def _resumed(measured: Measured) -> str:
    parts = [f"{ours.value:.0f} ms on {store}" for store, _, ours in _stores(measured, "resume")]
    killed = [
        f"{value / 1e3:.1f} s on {STORES[store]}"
        for store, name in (("sqlite", "sqlite"), ("postgres", "postgresql"))
        if (value := _figure(measured.alone, f"{alone.AFTER_A_KILL}, {name}")) is not None
    ]
    if not (parts and killed):
        return ""
    return (
        f"**Going on** behind 1,000 steps: {', '.join(parts)}. After `kill -9` and a new start of "
        f"the service a reader has the next frame within {', '.join(killed)}."
    )


def _streamed(measured: Measured) -> str:
    told = _times(measured, "stream-paced")
    model = "a token each millisecond, all of them stored, one reader"
    return told and f"**A streamed turn**, {model}, beside the generator alone: {told}."


def _alone(measured: Measured) -> str:
    asked = {
        "`import perdure` takes {:.0f} ms": alone.IMPORT,
        "a live turn {:.0f} KiB": alone.LIVE_TURN,
        "and a run behind 1,000,000 old ones {:.2f} times one on an empty database": (
            f"{growth.BEHIND_OLD_RUNS}, sqlite"
        ),
    }
    found = [
        text.format(value)
        for text, name in asked.items()
        if (value := _figure(measured.alone, name)) is not None
    ]
    return f"{', '.join(found)}." if found else ""


def _figure(figures: Sequence[Alone], name: str) -> float | None:
    return next((one.value for one in figures if one.name == name), None)
