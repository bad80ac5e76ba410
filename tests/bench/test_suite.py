"""The benchmarks run, and the page says what they found. Nothing here depends on time."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench import counts, page
from bench.__main__ import Found, Work, measured
from bench.budget import Measured
from bench.figure import Alone
from bench.gates import gates
from bench.load import BENDING, LOADS, OURS, RAW
from bench.loaded import Loaded
from bench.picture import bars
from bench.progress import Progress
from bench.soak import LOG_MB, Seen, grown
from bench.suite import FENCED, Compared, Comparison, Figure, Places, plan

ROOT = Path(__file__).parent.parent.parent


def test_the_comparisons_run_and_end_in_a_table() -> None:
    names = ["steps-sqlite", "runs-sqlite", "resume-sqlite", "stream-fast", "steps-postgres"]
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--only", *names, "limits", "long-turn"],
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
    for figure in ("limit: a flush", "a long turn, postgres"):
        assert f"| {figure} | " in done.stdout


def test_the_page_tells_the_promise_from_the_library() -> None:
    beside = [one for one in plan() if FENCED in one.sides]
    names = {one.name for one in beside}
    works = ("steps", "runs", "resume")
    runs = {f"{work}-{store}" for work in works for store in ("sqlite", "postgres")}
    streams = {f"stream-{work}{on}" for work in ("fast", "verbatim") for on in ("", "-postgres")}
    assert names == runs | streams
    figures = [
        Figure("floor", "", 200, 200, 200, 1.0, 90),
        Figure(FENCED, "", 250, 250, 250, 1.25, 120, own_cpu_us=30),
        Figure("perdure", "1", 300, 300, 300, 1.5, 190, own_cpu_us=100),
    ]
    head, _, row = page.comparisons([Compared(beside[0], 1, "full", figures)]).splitlines()
    assert head.startswith("| work | the floor | our promise by hand | perdure 1 |")
    assert "| 200 | **1.25×** (250) | **1.50×** (300) |" in row
    assert "100 µs, of which the promise 30.0 µs" in row


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
    assert page.rendered_readme(page.README.read_text(), results) == page.README.read_text()
    several = [one for one in results.compared if len(one.figures) > 2]
    assert bars(several) == page.PICTURE.read_text()
    assert gates(Measured(results.compared, results.alone)) == page.GATES.read_text()


def test_results_are_read_as_they_were_stored(tmp_path: Path) -> None:
    results = page.load()
    page.save(results, tmp_path / "results.json")
    assert page.load(tmp_path / "results.json") == results


def test_one_that_is_interrupted_goes_on_behind_what_it_has_measured(tmp_path: Path) -> None:
    path, way = tmp_path / "cache" / "unfinished.json", {"rounds": 5}
    nothing = page.Results("here", "today", [], [], [])
    first = Progress(nothing, way, path)
    first.add("stop", alone=[Alone("a stop", 3.0, "ms", "asked to ended")])
    second = Progress(nothing, way, path)
    assert (second.done, second.results.alone) == (["stop"], first.results.alone)
    assert Progress(nothing, {"rounds": 3}, path).done == [], "measured in another way"
    second.finish()
    assert Progress(nothing, way, path).done == []


def test_one_that_fails_costs_no_other_its_figures(capfd: pytest.CaptureFixture[str]) -> None:
    def broken() -> Found:
        raise RuntimeError("no such peer")

    progress = Progress(page.Results("here", "today", [], [], []), {})
    figure = Alone("a stop", 3.0, "ms", "asked to ended")
    works = [Work("runs", broken), Work("stop", lambda: {"alone": [figure]})]
    assert measured(works, progress, at_once=1) == ["runs"]
    assert progress.results.alone == [figure]
    assert "no such peer" in capfd.readouterr().err


@pytest.mark.parametrize(("more_is_better", "shown"), [(False, "4.00×"), (True, "0.25×")])
def test_a_picture_shows_effort_whatever_the_unit(more_is_better: bool, shown: str) -> None:
    comparison = Comparison(
        "x", "X", "steps", "sqlite", "µs", 1, ("floor", "perdure"), more_is_better=more_is_better
    )
    figures = [Figure("floor", "", 1, 1, 1, 1.0), Figure("perdure", "1", 4, 4, 4, 4.0)]
    assert f">{shown}<" in bars([Compared(comparison, 1, "full", figures)])


def test_a_page_that_lacks_what_has_its_own_command_says_so() -> None:
    assert "bench.load" in page.loads({})
    assert "make bench" in page.counts([])


def test_a_load_shows_what_it_costs_beside_the_generator() -> None:
    raw = Loaded("raw", 5, 0, 1, "", 50, 52, 80, 50, 55, 60, 4, 40, 30, 99, 5)
    ours = raw._replace(side="perdure serve", cpu_percent=12)
    late = ours._replace(gap_p99_ms=101)
    told = page.loads({"few": [raw, ours], "many": [late]})
    assert "**3.0×**" in told
    assert told.count("(bends)") == 1


def test_the_loads_of_the_page_are_those_that_are_measured_together() -> None:
    assert set(page.load().loads) <= {*LOADS, BENDING}


def test_a_load_runs_and_ends_by_itself() -> None:
    asked = ["--turns", "3", "--seconds", "0.5", "--rounds", "1", "--store", "memory"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.load", *asked],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| this load")]
    assert [row.split(" | ")[1] for row in rows] == [RAW, OURS]


def test_a_step_on_sqlite_is_one_commit_of_a_fence_and_an_insert() -> None:
    with ExitStack() as stack:
        floor, ours = counts.measure(Places(stack), steps=40, stores=["sqlite"])
    assert (floor.statements, floor.commits) == (1, 1)
    # Begins of steps that a busy machine lets wait for 20 ms come on top.
    assert 4 <= ours.statements < 7
    assert 1 <= ours.commits < 2


def test_what_levels_off_is_told_from_what_grows() -> None:
    seen = [Seen(at / 2, at, 50, min(at, 5), 8, min(at, 5) * 1_000) for at in range(30)]
    assert not grown(seen)
    leaking = [each._replace(memory_mb=10 + 5 * at) for at, each in enumerate(seen)]
    assert grown(leaking) == ["memory_mb grew from 82.5 to 132.5"]
    assert not grown(seen[:6]), "too short to tell"


def test_the_log_of_a_soak_may_be_as_long_as_the_store_lets_it() -> None:
    seen = [Seen(at / 2, at, 50, 5, 8 + at / 2, 5_000) for at in range(30)]
    assert not grown(seen)
    endless = [each._replace(log_mb=3 * LOG_MB * at / 30) for at, each in enumerate(seen)]
    assert grown(endless) == [f"log_mb grew from {1.45 * LOG_MB:.1f} to {2.45 * LOG_MB:.1f}"]
