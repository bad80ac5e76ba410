"""The package under Pyodide, which Python Workers run on, with Cloudflare's SDK and a real D1."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from perdure.testing.contract import STORE_CASES
from tests.docs.pages import blocks_of
from tests.node_packages import NODE_TESTS, need_node_packages, python_wheel

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
WORKER = ROOT / "examples" / "cloudflare_worker" / "src"
GUIDE = ROOT / "docs" / "guides" / "cloudflare-d1.md"
WORKFLOW_GUIDE = GUIDE.with_name("engine-cloudflare.md")
SDK = ("workers-runtime-sdk", "1.9.5")
EVERY = 90


def seen_under_pyodide(every: int, timeout_s: int) -> dict[str, Any]:
    need_node_packages()
    wheel = python_wheel(*SDK)
    folders = map(str, (ROOT / "src", WORKER, wheel))
    done = subprocess.run(
        ["node", "pyodide.mjs", "under_pyodide.py", *folders, str(every)],
        cwd=NODE_TESTS,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def check(told: dict[str, Any]) -> None:
    assert told["modules"] > 100
    assert told["threads"] is False
    run = [["first", "broke", "it broke"], [1, None, "ü"], "completed", 2]
    assert told["direct"]["run"] == run
    for way in ("raw", "wrapped"):
        first, again, calls = told[way]["turn"]
        assert "6 * 7 = 42" in first
        assert (again, calls) == (first, 1)
        assert told[way]["run"] == run
        assert told[way]["beats"] is True
        assert told[way]["failures"] == []
    check_worker(told["worker"])
    check_workflow(told["workflow"])


def check_worker(told: dict[str, Any]) -> None:
    status, text = told["posted"]
    assert status == 200
    assert '"delta":"morning "' in text
    # What is over is told in one piece.
    assert told["again"] == told["read"]
    assert '"delta":"You said: good morning "' in told["read"][1]
    assert told["other"][0] == 409
    assert told["nowhere"][0] == 404
    assert told["left"] == [200, ""]
    assert "session.run.completed" in told["back"][1]
    assert told["asked"] == ["good morning", "whoever asks this does not wait"]


def check_workflow(told: dict[str, Any]) -> None:
    seen = [{"none": None, "n": [1]}, [1, "ü"], 36, {"by": "Ann", "none": None}]
    assert told["told"] == [[seen, seen]] * 2
    assert told["calls"] == ["first", "first"]  # Once for each door.
    steps = ["0:first", "1:p", "2:q", "3:deterministic:sleep", "4:deterministic:uuid"]
    names = [*steps, "5:event:yes"]
    assert told["names"] == [f"{door}/{name}" for door in ("plain", "whole") for name in names]
    assert told["asked"][0] == 202
    assert told["states"] == ["completed"] * 2
    status, text = told["read"]
    assert status == 200
    assert '"delta":"You said: good night "' in text


def test_runs_turns_and_leases_work_without_threads_on_a_binding() -> None:
    told = seen_under_pyodide(EVERY, 280)
    check(told)
    assert told["raw"]["cases"] + told["wrapped"]["cases"] > 2 * len(STORE_CASES) // EVERY - 2


def test_the_guide_shows_what_the_example_does() -> None:
    [shown] = [block for block in blocks_of(GUIDE) if block.words == ["text"]]
    example = (WORKER / "entry.py").read_text("utf-8")
    assert not [line for line in shown.text.splitlines() if line.strip() not in example]


def test_the_guide_of_workflows_shows_what_the_example_does() -> None:
    shown = [
        block.text for block in blocks_of(WORKFLOW_GUIDE) if "answer_on_workflow(" in block.text
    ]
    assert len(shown) == 1
    example = (WORKER / "workflow_entry.py").read_text("utf-8")
    assert shown[0] in example


@pytest.mark.campaign
@pytest.mark.timeout(1_800)
def test_every_case_of_the_contract_holds_on_a_binding() -> None:
    told = seen_under_pyodide(1, 1_700)
    check(told)
    assert told["raw"]["cases"] == len(STORE_CASES)
    assert told["wrapped"]["cases"] == len(STORE_CASES)
