"""Running the command in a process of its own, with an environment that a test knows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

PATIENCE_S = 30.0


class Ended(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str


def environment(more: Mapping[str, str] = {}) -> dict[str, str]:
    """Return the environment without what would choose a backend or a store."""
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ANTHROPIC_", "OPENAI_", "PERDURE_"))
    }
    return {**own, "PYTHONUNBUFFERED": "1", **more}


def perdure(*arguments: str, env: Mapping[str, str] = {}, python: Any = ("-m", "perdure")) -> Ended:
    """Run the command to its end."""
    done = subprocess.run(
        [sys.executable, *python, *arguments],
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


class Serving(NamedTuple):
    """A service that runs; `told` is what it printed first, by the word in front."""

    process: subprocess.Popen[str]
    told: Mapping[str, str]

    @property
    def origin(self) -> str:
        return self.told["address"].rstrip("/")

    def end(self, *signals: signal.Signals) -> tuple[int, float]:
        """Send signals, and return the exit code and how many seconds the end took."""
        begun = time.monotonic()
        for number in signals:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE_S), time.monotonic() - begun


@contextmanager
def serving(
    *arguments: str,
    env: Mapping[str, str] = {},
    folder: Path | None = None,
    python: Sequence[str] = ("-m", "perdure"),
) -> Iterator[Serving]:
    """Serve on a free port, and kill what still runs in the end."""
    process = subprocess.Popen(
        [sys.executable, *python, "serve", "--port", "0", *arguments],
        env=environment(env),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        told: dict[str, str] = {}
        while "address" not in told:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            name, _, rest = line.partition(" ")
            told[name] = rest.strip()
        yield Serving(process, told)
    finally:
        process.kill()
        process.communicate()
