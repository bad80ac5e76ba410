"""A power cut takes nothing that was acknowledged, at whatever moment, from SQLite and files."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from perdure.store.opening import open_store
from tests.crash.disk_process import RUN_ID
from tests.crash.erasing_process import SESSION, TURNS
from tests.crash.power_cuts import Disk, Event, File, record
from tests.crash.test_disk_faults import strace

__all__ = ["strace"]

CUTS = 60


class Recording(NamedTuple):
    """The folder of a store as it was before, and what a process did in it."""

    scheme: str
    folder: Path
    before: Path
    events: Sequence[Event]

    def url(self, folder: Path) -> str:
        return f"{self.scheme}:{folder / 'store'}"

    def behind_what_was_said(self) -> list[int]:
        """Return the moments at which something had just been acknowledged."""
        return [at for at, event in enumerate(self.events, 1) if event.name == "said"]


async def recording(scheme: str, tmp_path: Path, durability: str = "full") -> Recording:
    """Record a process that writes steps into a store that was there."""
    recorded = await recording_of(scheme, tmp_path, "tests.crash.disk_process", durability)
    assert sum(event.data.endswith(b"acknowledged\n") for event in recorded.events) >= 10
    return recorded


async def recording_of(scheme: str, tmp_path: Path, module: str, *options: str) -> Recording:
    """Record what a process does in a store that was there."""
    folder, before = tmp_path / "disk", tmp_path / "before"
    folder.mkdir()
    url = f"{scheme}:{folder / 'store'}"
    await (await open_store(url)).close()
    shutil.copytree(folder, before)
    return Recording(scheme, folder, before, record(module, url, *options, folder=folder))


def left_by_a_cut(
    recording: Recording, seed: int, to: Path, moments: Sequence[int] = ()
) -> list[str]:
    """Cut the power at a random moment, one of these; return what the process had said by then."""
    dice = random.Random(seed)
    moment = dice.choice(moments or range(len(recording.events) + 1))
    disk = disk_of(recording)
    said = b""
    for number, event in enumerate(recording.events[:moment]):
        if event.name == "said":
            said += event.data
        elif not event.path.endswith("-shm"):
            disk.take(number, event)
    disk.after_the_cut(dice, recording.folder, to)
    return said.decode().splitlines()


async def lost_by_a_cut(recording: Recording, seed: int, to: Path) -> set[str]:
    """Return what was acknowledged before a cut, and is not there behind it."""
    said = left_by_a_cut(recording, seed, to)
    acknowledged = {line.split()[0] for line in said if "ack" in line}
    store = await open_store(recording.url(to))
    steps = {str(step.step_index): step.result for step in await store.read_steps(RUN_ID)}
    await store.close()
    assert all(result == f"result {position}" for position, result in steps.items())
    check_whole(recording, to)
    return acknowledged - steps.keys()


def check_whole(recording: Recording, to: Path) -> None:
    if recording.scheme == "sqlite":
        connection = sqlite3.connect(to / "store")
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()


def disk_of(recording: Recording) -> Disk:
    """Return the disk as it was before: by the names that the folder had then."""
    disk = Disk(recording.before)
    disk.move(str(recording.before), str(recording.folder))
    return disk


async def cut(recording: Recording, tmp_path: Path, seeds: Sequence[int]) -> int:
    """Return how many of the cuts took something that was acknowledged."""
    losses = 0
    for seed in seeds:
        to = tmp_path / "after"
        try:
            losses += bool(await lost_by_a_cut(recording, seed, to))
        except BaseException as error:
            error.add_note(f"seed {seed}, kept in {to}")
            raise
        shutil.rmtree(to)
    return losses


@pytest.mark.parametrize("scheme", ["sqlite", "file"])
async def test_a_power_cut_takes_nothing_acknowledged(tmp_path: Path, scheme: str) -> None:
    seeds = random.sample(range(10**6), CUTS)
    assert await cut(await recording(scheme, tmp_path), tmp_path, seeds) == 0, seeds


@pytest.mark.campaign
@pytest.mark.parametrize("scheme", ["sqlite", "file"])
async def test_many_power_cuts_take_nothing_acknowledged(tmp_path: Path, scheme: str) -> None:
    assert await cut(await recording(scheme, tmp_path), tmp_path, range(5_000)) == 0


@pytest.mark.parametrize("scheme", ["sqlite", "file"])
async def test_what_is_not_flushed_is_taken_by_some_cuts(tmp_path: Path, scheme: str) -> None:
    # So these cuts are real ones; and what is left is whole, all the same.
    relaxed = await recording(scheme, tmp_path, "normal")
    assert await cut(relaxed, tmp_path, range(CUTS)) > 0


# Sessions that are erased, and begin anew.


async def is_wrong_behind_a_cut(
    recording: Recording, seed: int, to: Path, moments: Sequence[int]
) -> bool:
    """Return whether a cut left another session than the process was told of, or a part of one."""
    said = ["erased -1", *left_by_a_cut(recording, seed, to, moments)]
    what, number = said[-1].split()
    store = await open_store(recording.url(to))
    listed = {run.run_id for run in await store.list_runs(session_id=SESSION)}
    found = {
        run.run_id: [step.result for step in await store.read_steps(run.run_id)]
        for run in await store.list_runs()
    }
    await store.close()
    check_whole(recording, to)
    assert listed == found.keys()
    whole = {run_id: [int(number)] for run_id in TURNS}
    if what == "erased":  # The next round may have begun.
        return not all(results in ([], [int(number) + 1]) for results in found.values())
    return found not in ([whole] if what == "begun" else [whole, {}])


async def check_erasures(
    recording: Recording, tmp_path: Path, seeds: Sequence[int], moments: Sequence[int] = ()
) -> None:
    wrong = []
    for seed in seeds:
        to = tmp_path / "after"
        if await is_wrong_behind_a_cut(recording, seed, to, moments):
            wrong.append(seed)
        shutil.rmtree(to)
    assert wrong == []


async def test_a_power_cut_brings_no_erased_session_back_and_takes_none_that_began_since(
    tmp_path: Path,
) -> None:
    recorded = await recording_of("file", tmp_path, "tests.crash.erasing_process")
    moments = recorded.behind_what_was_said()
    await check_erasures(recorded, tmp_path, range(CUTS), moments)


@pytest.mark.campaign
@pytest.mark.parametrize("scheme", ["sqlite", "file"])
async def test_many_power_cuts_bring_no_erased_session_back(tmp_path: Path, scheme: str) -> None:
    recorded = await recording_of(scheme, tmp_path, "tests.crash.erasing_process")
    await check_erasures(recorded, tmp_path, range(5_000))


# The disk itself.


def left_of(*events: Event, seeds: int = 200) -> set[bytes]:
    file = File(b"old")
    for number, event in enumerate(events):
        if event.name == "fsync":
            file.flush(event.since)
        else:
            file.change(number, event)
    return {file.after_the_cut(random.Random(seed)) for seed in range(seeds)}


def test_what_was_flushed_stays_and_what_was_not_may_go() -> None:
    first, second = Event("pwrite64", "f", b"a", 0), Event("pwrite64", "f", b"b", 1)
    assert left_of(first, second) == {b"old", b"ald", b"obd", b"abd"}
    assert left_of(first, Event("fsync", "f", since=1), second) == {b"ald", b"abd"}
    assert left_of(first, second, Event("fsync", "f", since=1)) == {b"ald", b"abd"}


def test_a_long_write_may_be_torn_at_a_sector() -> None:
    sizes = {len(data) for data in left_of(Event("pwrite64", "f", b"x" * 1_300, 0))}
    assert sizes == {3, 512, 1_024, 1_300}


def names_left(tmp_path: Path, *events: Event) -> set[tuple[str, ...]]:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a").write_bytes(b"")
    found: set[tuple[str, ...]] = set()
    for seed in range(40):
        disk = Disk(tmp_path / "disk")
        for number, event in enumerate(events):
            disk.take(number, event)
        to = tmp_path / str(seed)
        disk.after_the_cut(random.Random(seed), tmp_path / "disk", to)
        found.add(tuple(sorted(path.name for path in to.iterdir())))
    return found


def test_a_name_stays_once_its_folder_was_flushed(tmp_path: Path) -> None:
    folder = str(tmp_path / "disk")
    made, moved = Event("create", f"{folder}/b"), Event("rename", f"{folder}/b", to=f"{folder}/a")
    assert names_left(tmp_path, made) == {("a",), ("a", "b")}
    shutil.rmtree(folder)
    for seed in range(40):
        shutil.rmtree(tmp_path / str(seed))
    flushed = Event("fsync", folder, since=1)
    assert names_left(tmp_path, made, flushed, moved) == {("a",), ("a", "b")}
