"""A disk that is full or broken, by injected errors of system calls, costs nothing acknowledged."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from perdure.store.opening import open_store
from tests.conftest import IN_CI
from tests.crash.disk_process import ALONE, AT_ONCE, RUN_ID

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60
POSITIONS = [str(position) for position in range(ALONE + AT_ONCE)]
CLEAR = {"StoreFullError", "StoreUnavailableError", "StoreBusyError"}
"""What a caller may be told of a disk that fails; that the data is damaged would not be true."""
FLUSH = "fsync,fdatasync"
WRITE = "pwrite64"


class Fault(NamedTuple):
    """The `nth` of some system calls fails, and with `lasts` every one behind it too."""

    calls: str
    error: str
    nth: int
    lasts: bool = False

    def __str__(self) -> str:
        return f"{self.calls}:error={self.error}:when={self.nth}{'+' if self.lasts else ''}"


@cache
def can_trace() -> bool:
    """Return whether a process may be traced here, which some containers forbid."""
    tried = subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], check=False, timeout=30)
    return tried.returncode == 0


@pytest.fixture(autouse=True)
def strace() -> None:
    if shutil.which("strace") is None:
        reason = "NOT TESTED WITH FAILING DISKS: apt-get install strace"
        if IN_CI:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    if not can_trace():
        pytest.skip("NOT TESTED WITH FAILING DISKS: no process may be traced here")


def run_with(url: str, fault: Fault) -> list[tuple[str, str]]:
    """Run the process on a failing disk, and return what it said."""
    command = ["strace", "-f", "-qq", "--seccomp-bpf", "-o", os.devnull]
    command += ["-e", f"trace={fault.calls}", "-e", f"inject={fault}"]
    command += [sys.executable, "-m", "tests.crash.disk_process", url, "full"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise AssertionError(f"it hangs at {fault}") from None
    assert process.returncode == 0, (str(fault), errors.decode())
    lines = [line.split() for line in output.decode().splitlines()]
    return [(position, what) for position, what in lines]


async def survive(url: str, fault: Fault, *, is_new: bool = False) -> bool:
    """Return whether the fault was met; what was acknowledged is there, and nothing is damaged.

    `is_new`: the store is made on the failing disk, not before.
    """
    if not is_new:
        await (await open_store(url)).close()
    said = run_with(url, fault)
    refused = [what for _, what in said if what not in ("acknowledged", "over")]
    assert set(refused) <= CLEAR, (str(fault), said)
    assert not any(what.startswith("StoreFull") for what in refused) or fault.error == "ENOSPC"
    acknowledged = [position for position, what in said if what == "acknowledged"]
    store = await open_store(url)
    steps = {str(step.step_index): step.result for step in await store.read_steps(RUN_ID)}
    await store.close()
    lost = set(acknowledged) - steps.keys()
    assert not lost, f"{fault}: lost {lost}, said {said}"
    assert all(result == f"result {position}" for position, result in steps.items())
    if fault.calls == FLUSH:
        check_the_handle_is_dead(fault, said)
    return bool(refused)


def check_the_handle_is_dead(fault: Fault, said: Sequence[tuple[str, str]]) -> None:
    """Nothing is acknowledged by a handle whose flush has failed: what it flushed may be gone."""
    told = [what for position, what in said if position in POSITIONS]
    if {*told} & CLEAR:
        first = min(told.index(what) for what in {*told} & CLEAR)
        assert "acknowledged" not in told[first:], f"{fault}: {said}"


SAMPLE = [
    ("sqlite", Fault(FLUSH, "EIO", 5)),
    ("sqlite", Fault(WRITE, "ENOSPC", 25, lasts=True)),
    ("sqlite", Fault(WRITE, "EIO", 25)),
    ("file", Fault(FLUSH, "EIO", 8)),
    ("file", Fault(WRITE, "ENOSPC", 10, lasts=True)),
    ("file", Fault(WRITE, "EIO", 10)),
]


@pytest.mark.parametrize(("scheme", "fault"), SAMPLE, ids=str)
async def test_a_disk_that_fails_costs_nothing_acknowledged(
    tmp_path: Path, scheme: str, fault: Fault
) -> None:
    assert await survive(f"{scheme}:{tmp_path / 'store'}", fault)


@pytest.mark.campaign
@pytest.mark.parametrize("is_new", [False, True], ids=["old store", "new store"])
@pytest.mark.parametrize("lasts", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("calls", [WRITE, FLUSH, "ftruncate"])
@pytest.mark.parametrize("scheme", ["sqlite", "file"])
async def test_a_disk_that_fails_at_any_call_costs_nothing_acknowledged(
    tmp_path: Path,
    *,
    scheme: str,
    calls: str,
    error: str,
    lasts: bool,
    is_new: bool,
    record_property: Callable[[str, object], None],
) -> None:
    nth = met = unmet = 0
    # A new database takes hundreds of writes.
    stride = 7 if is_new and (scheme, calls) == ("sqlite", WRITE) else 1
    while unmet < 3:
        nth += stride
        url = f"{scheme}:{tmp_path / str(nth)}"
        found = await survive(url, Fault(calls, error, nth, lasts), is_new=is_new)
        met, unmet = met + found, 0 if found else unmet + 1
    record_property("met", met)
