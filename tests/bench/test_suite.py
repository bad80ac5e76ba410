"""The benchmarks run, and the page says what they found. Nothing here depends on time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench import page
from bench.picture import bars
from bench.suite import Compared, Comparison, Figure, plan

ROOT = Path(__file__).parent.parent.parent


def test_the_comparisons_run_and_end_in_a_table() -> None:
    names = ["steps-sqlite", "runs-sqlite", "resume-sqlite", "stream-fast", "steps-postgres"]
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--only", *names],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    titles = {one.name: one.title for one in plan()}
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    for name in names:
        (row,) = (row for row in rows if titles[name] in row)
        assert "**" in row


def test_a_side_that_fails_is_told_with_its_words() -> None:
    side = [sys.executable, "-m", "bench.sides.perdure_side", "steps", "--store", "sqlite"]
    done = subprocess.run(
        [*side, "--place", "/dev/null/no-folder", "--size", "1"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode
    assert "no-folder" in done.stderr


def test_the_page_shows_the_stored_results() -> None:
    results = page.load()
    assert page.rendered(page.PAGE.read_text(), results) == page.PAGE.read_text()
    several = [one for one in results.compared if len(one.figures) > 2]
    assert bars(several) == page.PICTURE.read_text()


def test_results_are_read_as_they_were_stored(tmp_path: Path) -> None:
    results = page.load()
    page.save(results, tmp_path / "results.json")
    assert page.load(tmp_path / "results.json") == results


@pytest.mark.parametrize(("more_is_better", "shown"), [(False, "4.00×"), (True, "0.25×")])
def test_a_picture_shows_effort_whatever_the_unit(more_is_better: bool, shown: str) -> None:
    comparison = Comparison(
        "x", "X", "steps", "sqlite", "µs", 1, ("floor", "perdure"), more_is_better=more_is_better
    )
    figures = [Figure("floor", "", 1, 1, 1, 1.0), Figure("perdure", "1", 4, 4, 4, 4.0)]
    assert f">{shown}<" in bars([Compared(comparison, 1, "full", figures)])
