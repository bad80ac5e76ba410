"""The tables of docs/performance.md, made of the stored results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench import summary
from bench.budget import BUDGET, Bound, Measured
from bench.counts import Counted
from bench.figure import Alone, promise, promises
from bench.gates import gates
from bench.loaded import Loaded
from bench.picture import bars
from bench.suite import FENCED, FLOOR, OURS, Compared, Comparison, Figure, plan

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "performance.md"
README: Final = ROOT / "README.md"
PICTURE: Final = ROOT / "docs" / "images" / "performance.svg"
GATES: Final = ROOT / "docs" / "images" / "budget.svg"
RESULTS: Final = ROOT / "bench" / "results.json"
_BEGIN: Final = "<!-- measured: {} -->"
_END: Final = "<!-- end -->"


class Results(NamedTuple):
    """All that one run of the suite found, and where; the loads by name, each from its own run."""

    machine: str
    taken_on: str
    compared: list[Compared]
    alone: list[Alone]
    counted: Sequence[Counted] = ()
    loads: Mapping[str, Sequence[Loaded]] = {}


def to_plain(results: Results) -> dict[str, Any]:
    """Return what JSON can say."""
    return {
        "machine": results.machine,
        "taken_on": results.taken_on,
        "compared": [
            {
                **one._asdict(),
                "comparison": one.comparison._asdict(),
                "figures": [figure._asdict() for figure in one.figures],
            }
            for one in results.compared
        ],
        "alone": [one._asdict() for one in results.alone],
        "counted": [one._asdict() for one in results.counted],
        "loads": {name: [row._asdict() for row in rows] for name, rows in results.loads.items()},
    }


def save(results: Results, path: Path = RESULTS) -> None:
    path.write_text(json.dumps(to_plain(results), indent=1, ensure_ascii=False) + "\n")


def load(path: Path = RESULTS) -> Results:
    return of_plain(json.loads(path.read_text()))


def of_plain(plain: Mapping[str, Any]) -> Results:
    compared = [
        Compared(
            Comparison(**{**one["comparison"], "sides": tuple(one["comparison"]["sides"])}),
            one["rounds"],
            one["durability"],
            [Figure(**figure) for figure in one["figures"]],
        )
        for one in plain["compared"]
    ]
    alone = [Alone(**one) for one in plain["alone"]]
    counted = [Counted(**one) for one in plain.get("counted", [])]
    loads = {name: [Loaded(**row) for row in rows] for name, rows in plain.get("loads", {}).items()}
    return Results(plain["machine"], plain["taken_on"], compared, alone, counted, loads)


def keep(results: Results, path: Path = RESULTS) -> Results:
    """Return what is stored with these figures in the place of older ones of the same names."""
    known = load(path)
    compared = {one.comparison.name: one for one in [*known.compared, *results.compared]}
    order = [comparison.name for comparison in plan()]
    figures = {one.name: one for one in [*known.alone, *results.alone]}
    return known._replace(
        compared=sorted(compared.values(), key=lambda one: order.index(one.comparison.name)),
        alone=list(figures.values()),
        counted=results.counted or known.counted,
    )


def keep_load(name: str, rows: Sequence[Loaded], order: Sequence[str]) -> None:
    """Keep the rows of one load beside the other results, and show them in the page."""
    known = load()
    loads = {**known.loads, name: rows}
    # Names that are not in the order come last.
    names = sorted(loads, key=lambda each: order.index(each) if each in order else len(order))
    results = known._replace(loads={each: loads[each] for each in names})
    save(results)
    write(results)


def rendered(page: str, results: Results) -> str:
    """Return the page with its measured parts made anew."""
    measured = Measured(results.compared, results.alone)
    page = _replaced(page, "few", summary.few(measured))
    page = _replaced(page, "verdicts", summary.verdicts(measured))
    page = _replaced(page, "where", _where(results))
    page = _replaced(page, "budget", budget(measured))
    page = _replaced(page, "compared", comparisons(results.compared))
    page = _replaced(page, "counted", counts(results.counted))
    page = _replaced(page, "loads", loads(results.loads))
    page = _replaced(page, "loads in short", summary.loads(results.loads))
    return _replaced(page, "alone", alone(results.alone))


def rendered_readme(page: str, results: Results) -> str:
    """Return the README with its measured part made anew."""
    return _replaced(page, "few", summary.few(Measured(results.compared, results.alone)))


def write(results: Results) -> None:
    README.write_text(rendered_readme(README.read_text(), results))
    PAGE.write_text(rendered(PAGE.read_text(), results))
    GATES.write_text(gates(Measured(results.compared, results.alone)))
    PICTURE.write_text(bars([one for one in results.compared if len(one.figures) > 2]))


def _replaced(page: str, name: str, content: str) -> str:
    begin = _BEGIN.format(name)
    head, found, rest = page.partition(begin)
    assert found, f"the page has no place for {name!r}"
    _, _, tail = rest.partition(_END)
    return f"{head}{begin}\n\n{content}\n\n{_END}{tail}"


def _where(results: Results) -> str:
    return f"Taken on {results.taken_on}: {results.machine}."


def comparisons(compared: Sequence[Compared]) -> str:
    """Return a table: a row for each comparison, a column for each side."""
    sides = [
        side
        for side in (FLOOR, FENCED, OURS, "langgraph", "absurd", "restate", "dbos")
        if any(figure.side == side for one in compared for figure in one.figures)
    ]
    names = {figure.side: _name(figure) for one in compared for figure in one.figures}
    head = ["work", *(names[side] for side in sides), "own CPU above the floor", "rounds"]
    head.append("durability")
    rows = [
        [
            f"{one.comparison.title} ({one.comparison.unit})",
            *(_cell(one, side) for side in sides),
            _own_cpu(one),
            _rounds(one),
            promises(
                one.comparison.store, one.durability, tuple(each.side for each in one.figures)
            ),
        ]
        for one in compared
    ]
    return _table(head, rows)


def alone(figures: Sequence[Alone]) -> str:
    rows = [
        [one.name, f"{_short(one.value)} {one.unit}", one.how, one.durability] for one in figures
    ]
    return _table(["what", "figure", "how", "durability"], rows)


def budget(measured: Measured) -> str:
    """Return each bound with its figure, and whether it is met; a figure may be missing."""
    rows: list[list[str]] = []
    for bound in BUDGET:
        found = bound.find(measured)
        figure, verdict, durability = (
            ("not measured", "", "")
            if found is None
            else (bound.shown(found.value), bound.verdict(found.value), found.durability)
        )
        bounds = (_bound(bound, each) for each in (bound.gate, bound.goal, bound.held_to))
        rows.append([bound.work, figure, *bounds, verdict, durability])
    head = ["work", "figure", "gate", "goal", "tightened to", "verdict", "durability"]
    return _table(head, rows)


def _bound(bound: Bound, value: float | None) -> str:
    return "" if value is None else f"{'≥' if bound.at_least else '≤'} {value:,g} {bound.unit}"


def counts(rows: Sequence[Counted]) -> str:
    """Return what one step is made of, for each side and store."""
    if not rows:
        return "Not counted yet: `make bench` does it."
    head = ["a durable step", "statements", "commits", "bytes written", "switches", "CPU"]
    head.append("durability")
    lines = [
        [
            f"{one.side}, {one.store}",
            _short(one.statements),
            _short(one.commits),
            "" if one.bytes_written is None else _short(one.bytes_written),
            _short(one.switches),
            f"{_short(one.cpu_us)} µs",
            promise(one.store),
        ]
        for one in rows
    ]
    return _table(head, lines)


def loads(known: Mapping[str, Sequence[Loaded]]) -> str:
    """Return a row for each side under each load, ours with its ratio to the one above."""
    if not known:
        return "Not measured yet: `python -m bench.load --save NAME` does it."
    head = [
        "load",
        "served",
        "first token, 50 / 99 %",
        "next token, 50 / 99 / 100 %",
        "CPU",
        "tokens that came",
        "CPU of a token",
        "memory",
        "durability",
    ]
    lines: list[list[str]] = []
    for name, rows in known.items():
        for row in rows:
            other = rows[0] if rows[0].side != row.side and rows[0].turns == row.turns else None
            lines.append(_load(name, row, other))
    return _table(head, lines)


def _load(name: str, row: Loaded, other: Loaded | None) -> list[str]:
    """Return a row of the loads, each figure with its ratio to the other side's."""

    def beside(unit: str, *fields: str) -> str:
        values = [getattr(row, field) for field in fields]
        shown = f"{' / '.join(map(_short, values))} {unit}"
        others = [0.0 if other is None else getattr(other, field) for field in fields]
        # A short look may find that nothing was taken of the processor.
        if not all(others):
            return shown
        ratios = [f"{value / base:.1f}" for value, base in zip(values, others, strict=True)]
        return f"{shown} **{' / '.join(ratios)}×**"

    gaps = beside("ms", "gap_p50_ms", "gap_p99_ms", "gap_max_ms")
    return [
        f"{name}: {row.turns:,} turns, {row.readers:,} more readers (rounds: {row.rounds})",
        row.side,
        beside("ms", "first_p50_ms", "first_p99_ms"),
        gaps + (" (bends)" if row.bends else ""),
        beside("%", "cpu_percent"),
        f"{row.arrived_percent:.0f} %",
        f"{_short(row.cpu_us_a_token)} µs",
        f"{_short(row.memory_mb)} MiB",
        promise(row.store) if row.store else "stores nothing",
    ]


def _name(figure: Figure) -> str:
    name = {FLOOR: "the floor", FENCED: "our promise by hand"}.get(figure.side, figure.side)
    return f"{name} {figure.version}".strip()


def _cell(one: Compared, side: str) -> str:
    figure = next((each for each in one.figures if each.side == side), None)
    if figure is None:
        return ""
    shown = _short(figure.value)
    if figure.p99_ms is not None:
        shown += f", p99 {_short(figure.p99_ms)} ms"
    return shown if side == FLOOR else f"**{figure.ratio:.2f}×** ({shown})"


def _own_cpu(one: Compared) -> str:
    own = {each.side: each.own_cpu_us for each in one.figures}
    ours, promised = own.get(OURS), own.get(FENCED)
    if ours is None:
        return ""
    shown = f"{_short(ours)} µs"
    return shown if promised is None else f"{shown}, of which the promise {_short(promised)} µs"


def _rounds(one: Compared) -> str:
    others = {each.rounds or one.rounds for each in one.figures if each.side not in (FLOOR, OURS)}
    return str(one.rounds) + "".join(f", others {rounds}" for rounds in others - {one.rounds})


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
