"""Several processes on one folder, the death of one, and what a step costs."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from perdure.core.limits import LEASE_MS
from perdure.core.records import Lease
from perdure.store.filelog import locked
from perdure.store.files import FileStore
from perdure.testing.clock import ManualClock
from perdure.testing.samples import HANDLER, completed, finish, hold, row
from tests.store.file_folders import log_of, start
from tests.store.sql.processes import next_line, output, start_together


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs"


async def test_two_processes_write_many_steps_side_by_side(folder: Path) -> None:
    count = 400
    children = [start("write_steps", folder, f"run-{number}", count) for number in range(2)]
    start_together(children)
    for child in children:
        assert output(child) == [str(position) for position in range(count)]
    store = FileStore(folder)
    for number in range(2):
        steps = await store.read_steps(f"run-{number}")
        assert [step.result for step in steps] == list(range(count))
    await store.close()


async def test_of_two_processes_that_claim_at_once_one_gets_each_run(folder: Path) -> None:
    children = [start("claim_all", folder, f"worker-{number}", 100) for number in range(2)]
    start_together(children)
    got = [line.split(",") for child in children for line in output(child)]
    claimed = [run_id for ids in got for run_id in ids if run_id]
    assert sorted(claimed) == sorted(f"run-{number}" for number in range(100))


async def test_two_processes_take_turns_in_one_session(folder: Path) -> None:
    count = 40
    children = [start("finish_turns", folder, name, count) for name in ("ann", "bob")]
    start_together(children)
    for child in children:
        assert len(output(child)) == count
    store = FileStore(folder)
    turns = await store.list_runs(session_id="s", limit=1_000)
    assert len(turns) == 2 * count
    spans = sorted((turn.created_at, turn.completed_at or "") for turn in turns)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    await store.close()


async def test_what_was_acknowledged_survives_every_kill(folder: Path) -> None:
    clock = ManualClock(4_000_000_000_000)
    store = FileStore(folder, clock=clock)
    for number in range(8):
        run_id = f"run-{number}"
        child = start("write_steps", folder, run_id, 100_000)
        start_together([child])
        acknowledged = -1
        for _ in range(20 + 7 * number):
            acknowledged = int(next_line(child))
        os.kill(child.pid, signal.SIGKILL)
        acknowledged = max([acknowledged, *rest_of(child)])
        steps = await store.read_steps(run_id)
        assert [step.result for step in steps] == list(range(len(steps)))
        assert len(steps) in (acknowledged + 1, acknowledged + 2)
        (claim,) = await store.claim_due([HANDLER], worker_id="w", lease_ms=LEASE_MS, limit=9)
        assert claim.lease is not None
        assert (claim.lease.run_id, claim.lease.epoch) == (run_id, 2)
        assert claim.next_seq == len(steps) + 1
        await store.write(claim.lease, completed(len(steps)), row(claim.next_seq, "x"))
    await store.close()


def rest_of(child: subprocess.Popen[str]) -> list[int]:
    """Return the whole lines that a killed process has left behind."""
    assert child.stdin is not None
    assert child.stdout is not None
    with child.stdin, child.stdout:
        lines = child.stdout.read().split("\n")[:-1]
    child.wait(20)
    return [int(line) for line in lines]


def test_a_handle_does_not_survive_a_fork(folder: Path) -> None:
    lines = output(start("fork", folder))
    assert "fork" in lines[0]
    assert lines[1] == "the parent goes on"


def test_a_lock_is_given_back_even_if_a_fork_took_the_file_along(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    with locked(path, create=True, patience_ms=0) as file:
        assert file is not None
        taken_along = os.dup(file)
    with locked(path, create=False, patience_ms=0) as file:
        assert file is not None
    os.close(taken_along)


async def test_who_waited_for_a_log_that_was_replaced_writes_to_the_new_one(folder: Path) -> None:
    store, other = FileStore(folder), FileStore(folder)
    lease = await hold(store)
    log = log_of(folder)
    with log.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write = asyncio.ensure_future(store.write(lease, completed(0)))
        await asyncio.to_thread(wait_for_opening, log)
        shutil.copy(log, folder / "copy")
        (folder / "copy").replace(log)
    await write
    assert len(await other.read_steps("run")) == 1
    await store.close()
    await other.close()


def wait_for_opening(log: Path) -> None:
    """Return once this process has the log open twice: then somebody waits for its lock."""
    pause = threading.Event()
    while sum(path == str(log) for path in open_files()) < 2:
        pause.wait(0.001)


def open_files() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            yield os.readlink(f"/proc/self/fd/{name}")


class Meter:
    """Counts the calls of the system that work with files, and the bytes that they move."""

    CALLS = ("open", "close", "pread", "pwrite", "fstat", "stat", "utime", "ftruncate", "mkdir")

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        for name in (*self.CALLS, "listdir", "scandir"):
            patch.setattr(os, name, self._counting(name, getattr(os, name)))

    def _counting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            answer = call(*arguments, **options)
            self.counts[name] += 1
            if name == "pread":
                self.counts["bytes read"] += len(answer)
            elif name == "pwrite":
                self.counts["bytes written"] += answer
            return answer

        return counted


async def test_a_step_costs_the_same_after_many_steps_and_beside_many_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(folder, durability="normal")
    lease = await hold(store)
    for position in range(1_000, 1_100):
        await store.write(lease, completed(position, "done"), row(position - 999, "x"))
    with monkeypatch.context() as patch:
        meter = Meter(patch)
        early = await _measured(meter, store, lease, 1_100)
    for position in range(1_101, 6_000):
        await store.write(lease, completed(position, "done"), row(position - 999, "x"))
    for number in range(300):
        await finish(store, f"old-{number}")
    with monkeypatch.context() as patch:
        late = await _measured(Meter(patch), store, lease, 6_000)
    widths = 40  # The numbers of line, step and frame have more digits by then.
    assert abs(late.pop("bytes written") - early.pop("bytes written")) < widths
    assert late == early
    assert early["open"] == 2
    assert early["bytes read"] < 200
    await store.close()


async def _measured(meter: Meter, store: FileStore, lease: Lease, position: int) -> Counter[str]:
    meter.counts.clear()
    await store.write(lease, completed(position, "done"), row(position - 999, "x"))
    assert len(await store.read_frames("run", after=position - 1_000)) == 1
    return Counter(meter.counts)


async def test_opening_and_sweeping_leave_the_logs_of_old_runs_unread(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = FileStore(folder, durability="normal")
    for number in range(50):
        await finish(first, f"old-{number}", completed(0, "x" * 10_000))
    await hold(first, "live")
    await first.close()
    store = FileStore(folder, durability="normal")
    with monkeypatch.context() as patch:
        meter = Meter(patch)
        await store.open()
        for _ in range(3):
            assert await store.claim_due([HANDLER], worker_id="w", lease_ms=1, limit=9) == []
            assert await store.claim_deliveries([HANDLER], limit=9) == []
        assert meter.counts["bytes read"] < 40_000
        assert meter.counts["open"] < 40
        meter.counts.clear()
        assert [run.run_id for run in await store.list_runs(state="running")] == ["live"]
        assert meter.counts["bytes read"] < 2_000
        assert len(await store.list_runs(state="completed", limit=2)) == 2
        assert meter.counts["bytes read"] < 40_000
    await store.close()
