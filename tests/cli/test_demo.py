"""`perdure demo`: a real worker is really killed, and the turn goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from perdure.cli.demo_worker import ANSWER, OPENING
from tests.cli.commands import PATIENCE_S, environment, perdure


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid)


def test_programs_are_told_every_moment_of_it(tmp_path: Path) -> None:
    ended = perdure("demo", "--json", env={"TMPDIR": str(tmp_path)})
    assert (ended.code, ended.err) == (0, ""), ended
    told = [json.loads(line) for line in ended.out.splitlines()]
    moments = [moment["moment"] for moment in told]
    assert moments == ["worker", "asked", "killed", "worker", "restarted", "ended"]
    first, _, killed, second, restarted, end = told
    assert first["pid"] == killed["pid"] != second["pid"]
    assert restarted["attempt"] == 2
    assert ANSWER.startswith(restarted["lostText"])
    assert len(restarted["lostText"]) >= 45
    assert end == {
        "moment": "ended",
        "state": "completed",
        "attempts": 2,
        "modelCalls": 2,
        "stepExecutions": 1,
        "usage": {"unknown": 1, "settled": 1},
        "lostCharacters": len(restarted["lostText"]),
        "answerIsWhole": True,
    }
    assert list(tmp_path.iterdir()) == []
    assert not any(is_alive(worker["pid"]) for worker in (first, second))


def test_people_read_the_answer_twice_and_the_lost_words_in_between() -> None:
    ended = perdure("demo")
    assert (ended.code, ended.err) == (0, "")
    assert "\x1b" not in ended.out
    text = " ".join(ended.out.replace("│", " ").split())
    assert text.count(OPENING.strip()) == 2
    assert f"{OPENING}{ANSWER}" in text
    assert "kill -9" in text
    assert "Lost, since no step had recorded it: “High water" in text
    assert "attempts 1 lost, 2 completed" in text
    assert "was executed once" in text
    assert "model calls 2" in text


def test_an_interrupt_leaves_no_worker_and_no_folder(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "perdure", "demo", "--json"],
        env=environment({"TMPDIR": str(tmp_path)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    pid = json.loads(process.stdout.readline())["pid"]
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not is_alive(pid)
    assert list(tmp_path.iterdir()) == []
