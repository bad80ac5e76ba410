"""A run survives SIGKILL at any moment, and a process that slept past its lease writes nothing."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest

from perdure.store.opening import open_store, path_of
from perdure.testing.lab import Snapshot, snapshot
from tests.crash.conftest import NewUrl
from tests.crash.freezing import freeze
from tests.crash.run_process import INTENTS, LEASE_LOST, PARKED

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0
WRITES = 7
"""Writing calls of an undisturbed run at the least: the claim, five steps, the end."""


class Crew:
    """Starts processes on one run, and sees to it that none outlives the test."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.notes = folder / "notes.txt"
        self.notes.touch()
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.crash.run_process",
                self.url,
                str(self.notes),
                *options,
            ],
            cwd=ROOT,
        )
        self._processes.append(process)
        return process

    def finish(self, *options: str) -> None:
        """Start processes until one finishes the run."""
        for _ in range(8):
            code = self.start(*options).wait(PATIENCE_S)
            if code == 0:
                return
            assert code in (LEASE_LOST, PARKED, -signal.SIGKILL), f"exit code {code}"
        raise AssertionError("no process finished the run")

    def lines(self) -> list[str]:
        return self.notes.read_text().splitlines()

    def connect(self) -> AbstractContextManager[sqlite3.Connection]:
        """Return a connection past the store; there is one for SQLite only."""
        return closing(sqlite3.connect(str(path_of(self.url)), timeout=0, isolation_level=None))

    def shown(self) -> Snapshot:
        """Return all that the store shows of the run."""

        async def look() -> Snapshot:
            store = await open_store(self.url)
            try:
                return await snapshot(store, "run")
            finally:
                await store.close()

        return asyncio.run(look())

    def results(self) -> dict[str, tuple[str, object]]:
        return {step.intent: (step.status, step.result) for step in self.shown().steps}

    def wait_for_progress(self, process: subprocess.Popen[bytes], lines: int) -> None:
        until(lambda: len(self.lines()) > lines or process.poll() is not None)

    def end(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                process.wait(PATIENCE_S)


@pytest.fixture(params=["sqlite", "postgresql"])
def crew(request: pytest.FixtureRequest, tmp_path: Path, new_url: NewUrl) -> Iterator[Crew]:
    crew = Crew(tmp_path, new_url(request.param))
    yield crew
    crew.end()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for does not happen"
        time.sleep(0.005)


def check_finished(crew: Crew) -> None:
    """Check that the run is whole, and that no body ran after its step was known committed."""
    if crew.url.startswith("sqlite"):
        with crew.connect() as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    shown = crew.shown()
    assert shown.run is not None
    assert shown.run.state == "completed"
    assert [step.intent for step in shown.steps] == list(INTENTS)
    assert {step.status for step in shown.steps} == {"completed"}
    lines = crew.lines()
    for intent in INTENTS:
        runs = [place for place, line in enumerate(lines) if line == f"run {intent}"]
        done = lines.index(f"done {intent}")
        assert runs, f"{intent} never ran"
        assert max(runs) < done, f"{intent} ran again after its commit"


def kill_at_random_moments(crew: Crew, kills: int, *, seed: int) -> None:
    """Kill `kills` processes, then let one finish; what was recorded must stay as it was."""
    dice = random.Random(seed)
    recorded: dict[str, tuple[str, object]] = {}
    for _ in range(kills):
        before = len(crew.lines())
        process = crew.start("--step-ms", "60")
        crew.wait_for_progress(process, before)
        time.sleep(dice.uniform(0, 0.12))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_S)
        results = crew.results()
        final = {intent: one for intent, one in results.items() if one[0] == "completed"}
        assert recorded.items() <= final.items(), f"a recorded result changed (seed {seed})"
        recorded = final
    crew.finish()
    assert recorded.items() <= crew.results().items(), f"a recorded result changed (seed {seed})"
    check_finished(crew)


def test_an_undisturbed_run_writes_at_least_as_often_as_is_assumed_here(crew: Crew) -> None:
    # More often on a slow machine, where a step outlasts the 20 ms of a lazy begin.
    process = crew.start("--die-at", str(WRITES - 1), "--when", "after")
    assert process.wait(PATIENCE_S) == -signal.SIGKILL, "it wrote less often"
    crew.finish()
    check_finished(crew)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", range(WRITES))
def test_a_run_survives_its_death_at_every_write(crew: Crew, call: int, when: str) -> None:
    process = crew.start("--die-at", str(call), "--when", when)
    assert process.wait(PATIENCE_S) == -signal.SIGKILL
    crew.finish()
    check_finished(crew)


def test_a_run_survives_ten_deaths_at_random_moments(crew: Crew) -> None:
    kill_at_random_moments(crew, 10, seed=random.randrange(10**6))


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(100))
def test_a_run_survives_thirty_deaths_at_random_moments(crew: Crew, seed: int) -> None:
    kill_at_random_moments(crew, 30, seed=seed)


@pytest.mark.parametrize("crew", ["sqlite", "file", "postgresql"], indirect=True)
def test_a_process_that_slept_past_its_lease_writes_nothing(crew: Crew) -> None:
    check_a_sleeper(crew)


@pytest.mark.campaign
@pytest.mark.node
@pytest.mark.parametrize("crew", ["d1"], indirect=True)
def test_a_process_that_slept_past_its_lease_writes_nothing_to_d1(crew: Crew) -> None:
    check_a_sleeper(crew)


def check_a_sleeper(crew: Crew) -> None:
    zombie = crew.start("--step-ms", "900", "--lease-ms", "1000")
    until(lambda: "run left" in crew.lines())
    freeze(zombie.pid, crew.url)
    crew.finish()
    check_finished(crew)
    before, lines = crew.shown(), crew.lines()
    os.kill(zombie.pid, signal.SIGCONT)
    assert zombie.wait(PATIENCE_S) == LEASE_LOST
    assert crew.shown() == before
    assert crew.lines() == lines, "its task took no further step either"
