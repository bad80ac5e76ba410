"""Every bound of the budget has a figure on the page, and a verdict that follows from it."""

from __future__ import annotations

from html import escape

import pytest

from bench import page
from bench.budget import BUDGET, Bound, Measured
from bench.gates import gates


def test_every_gate_stands_on_the_page_with_its_figure_and_its_verdict() -> None:
    results = page.load()
    measured = Measured(results.compared, results.alone)
    rows = {
        row.split(" | ")[0].removeprefix("| "): row
        for row in page.PAGE.read_text().splitlines()
        if row.startswith("| ")
    }
    for bound in BUDGET:
        found = bound.find(measured)
        assert found is not None, f"{bound.work!r} was not measured"
        assert f"| {bound.verdict(found.value)} |" in rows[bound.work]


@pytest.mark.parametrize(
    "part",
    [
        "a durable logic step, SQLite",
        "a durable logic step, PostgreSQL",
        "own CPU of a step above the floor, SQLite",
        "own CPU of a step above the floor, PostgreSQL",
        "64 at once, SQLite",
        "99th percentile",
        "64 at once, PostgreSQL",
        "going on behind 1,000 steps",
        "in a new process",
        "1 ms a token, all journaled",
        "typed deltas",
        "verbatim events",
        "the first frame, same process",
        "the first frame, another process",
        "crash to the first new frame",
        "an event wakes a run, SQLite",
        "an event wakes a turn that sleeps, SQLite",
        "an event wakes a turn that sleeps, PostgreSQL",
        "an event of another process to the frame behind it, SQLite",
        "an event of another process to the frame behind it, PostgreSQL",
        "a step, 100 → 10,000 steps",
        "bytes of a step",
        "old runs, SQLite",
        "old runs, PostgreSQL",
        "50,000 in a turn, SQLite",
        "50,000 in a turn, PostgreSQL",
        "a further reader",
        "`import perdure`",
        "memory after `import perdure`",
        "a live turn",
    ],
)
def test_the_budget_bounds_what_the_design_names(part: str) -> None:
    assert [bound for bound in BUDGET if part in bound.work]


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(1.1, "met, the goal too"), (1.25, "met"), (1.254, "met"), (1.26, "**missed**")],
)
def test_a_figure_is_judged_as_it_is_shown(value: float, verdict: str) -> None:
    assert Bound("work", lambda _: None, "×", 1.25, 1.1).verdict(value) == verdict


def test_a_rate_has_to_be_at_least_its_bound() -> None:
    bound = Bound("work", lambda _: None, "×", 0.2, 0.35, at_least=True)
    verdicts = [bound.verdict(value) for value in (0.19, 0.2, 0.35)]
    assert verdicts == ["**missed**", "met", "met, the goal too"]


def test_a_goal_without_a_gate_is_met_or_missed() -> None:
    bound = Bound("work", lambda _: None, "ms", None, 60)
    assert [bound.verdict(value) for value in (60, 61)] == ["met", "**missed**"]


def test_what_was_not_measured_is_said_to_be_so() -> None:
    assert page.budget(Measured([], [])).count("not measured") == len(BUDGET)


def test_the_picture_tells_what_is_missed_from_what_is_met() -> None:
    results = page.load()
    measured = Measured(results.compared, results.alone)
    found = [(bound, bound.find(measured)) for bound in BUDGET]
    verdicts = [bound.verdict(figure.value) for bound, figure in found if figure is not None]
    picture = gates(measured)
    missed = sum("missed" in verdict for verdict in verdicts)
    assert picture.count('class="missed"') == missed
    assert picture.count('<rect class="met"') == len(verdicts) - missed


def test_the_picture_tells_the_figures_of_the_table() -> None:
    results = page.load()
    measured = Measured(results.compared, results.alone)
    picture, table = gates(measured), page.budget(measured)
    for bound in BUDGET:
        found = bound.find(measured)
        assert found is not None
        assert f">{escape(bound.told(found.value))}<" in picture
        assert f"| {bound.shown(found.value)} |" in table


def test_a_gate_that_is_passed_easily_may_be_tightened() -> None:
    bound = Bound("work", lambda _: None, "ms", 60, 25, held_to=30)
    verdicts = [bound.verdict(value) for value in (25, 30, 31, 61)]
    assert verdicts[:2] == ["met, the goal too", "met"]
    assert verdicts[2:] == ["gate met, the tightened one **missed**", "**missed**"]
