"""Every example runs, offline and in a folder of its own, and ends by saying what happened."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TIME_LIMIT_S = 60
LINES_MIN, LINES_MAX = 20, 70

LAST_LINES = {
    "01_a_durable_run": "called twice, 2 emails written, state completed",
    "02_crash_and_resume": "3 steps were executed, each of them once",
    "03_sleep_and_wait_for_an_event": "Grace said yes",
    "04_workers_and_queue": "12 runs, each executed once",
    "05_chat_turn": "three answers read, the model was called 2 times",
    "06_reconnect_mid_turn": (
        "no word is missing and none came twice: The turn goes on whether or not anybody reads it ."
    ),
    "07_chat_endpoint_starlette": "201 submitted, 200 rejoined, {'state': 'completed'}",
    "08_tools_inside_a_turn": "the tool ran 1 time in two attempts",
    "09_hooks_from_the_outbox": "2 tries, 1 message in the product's database",
    "10_steps_at_once": "12 pages, at most 3 at a time",
    "11_schedules": "5 due times or more, each of them one run",
    "12_fork_from_a_step": "collected 1 time, then ran ['rank', 'summarize']",
    "13_what_it_cost": "3 calls for 0.002490 USD, 1 that may be on the bill",
    "14_a_tool_loop": "6 calls of models and tools, 6 of them for the first time",
    "15_approval_by_a_human": "2 model calls, by two workers",
    "16_an_agent_task": "completed after 3 coats and 3 decisions",
    "17_a_task_as_a_stream": "session_created, then session_resumed; 2 finals, each the last",
    "18_intent_and_profiles": "valid: False, 6 errors, 1 warning",
    "19_what_a_loop_did": (
        "careful in 5 and brisk in 2 steps; after an erasure there is ['brisk']"
    ),
    "23_a_langgraph_graph": (
        "1 look, 2 answers begun, and the thread: 24 degrees in Faro. Go there."
    ),
    "24_openai_agents": "4 model calls and 3 tool calls in two attempts",
    "25_pydantic_ai": "3 model calls and 3 tool calls in two attempts",
    "26_a_task_on_dbos": "Ben confirmed the account of Ann, in 3 records of DBOS or more",
}
"""What the last line of each example says: the fact that it is there to show."""

EXAMPLES = sorted((ROOT / "examples").glob("*.py"), key=lambda path: path.name)


def test_every_example_has_its_last_line_here() -> None:
    assert [path.stem for path in EXAMPLES] == sorted(LAST_LINES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs_and_says_what_happened(path: Path, tmp_path: Path) -> None:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ANTHROPIC_", "OPENAI_"))
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        cwd=tmp_path,
        env={**environment, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].rstrip() == LAST_LINES[path.stem]
    assert done.stderr == ""
    assert not list(tmp_path.iterdir()), "the example left something behind"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_is_read_in_a_minute(path: Path) -> None:
    text = path.read_text("utf-8")
    assert LINES_MIN <= len(text.splitlines()) <= LINES_MAX
    assert re.match(r'"""[^\n]+\."""\n', text), "it opens with one sentence"
