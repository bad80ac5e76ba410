"""Starting the processes of `children.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def start(name: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.store.sql.children", name, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def start_together(processes: list[subprocess.Popen[str]]) -> None:
    """Let processes that are ready go at the same moment."""
    for process in processes:
        assert next_line(process) == "ready"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def output(process: subprocess.Popen[str]) -> list[str]:
    """Wait for the end, which must be a good one, and return the lines."""
    lines, _ = process.communicate(timeout=100)
    assert process.returncode == 0, lines
    return lines.splitlines()


def rest_of(process: subprocess.Popen[str]) -> list[str]:
    """Return the whole lines that a killed child has left behind.

    Not by `communicate`, which knows nothing of what `next_line` has read ahead.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        lines = process.stdout.read().split("\n")[:-1]
    process.wait(20)
    return lines
