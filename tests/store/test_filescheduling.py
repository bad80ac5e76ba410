"""The schedules of a folder: what a crash leaves, what stands in the log, how long that gets."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from perdure.errors import StoreCorruptError
from perdure.store.files import FileStore
from perdure.store.filescheduling import LINES_SPARE
from perdure.store.protocol import RunStore
from perdure.store.scheduling import Firing, Schedule, schedules_of
from perdure.testing.clock import ManualClock
from perdure.testing.samples import HANDLER, manifest

CLOCK = ManualClock()
FIRING = Firing("schedule:report:1", manifest())


def hourly(due_at: str) -> Schedule:
    return Schedule("report", HANDLER, manifest(), every_ms=3_600_000, next_due_at=due_at)


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[RunStore]:
    store = FileStore(folder, clock=CLOCK)
    try:
        yield store
    finally:
        await store.close()


async def died_after_the_firing(folder: Path) -> Path:
    """Return a folder as a process leaves it that died before it had queued the run."""
    before, after = folder / "before", folder / "after"
    async with opened(after) as store:
        schedule = await schedules_of(store).put(hourly(CLOCK.iso()))
    shutil.copytree(after, before)
    async with opened(after) as store:
        await schedules_of(store).fire(schedule, next_due_at=CLOCK.iso(1), firing=FIRING)
    *lines, queued = (after / "schedules").read_bytes().splitlines(keepends=True)
    assert b"queued" in queued
    (before / "schedules").write_bytes(b"".join(lines))
    return before


async def test_a_firing_that_was_cut_off_is_made_up_for_by_whoever_looks(tmp_path: Path) -> None:
    folder = await died_after_the_firing(tmp_path)
    async with opened(folder) as store, opened(folder) as other:
        assert await store.list_runs() == []
        (schedule,) = (await schedules_of(store).upcoming([HANDLER], limit=9)).schedules
        assert schedule.next_due_at == CLOCK.iso(1)
        (run,) = await other.list_runs()
        assert (run.run_id, run.state, run.handler) == (FIRING.run_id, "queued", HANDLER)
        assert len(await other.claim_due([HANDLER], worker_id="w", lease_ms=9, limit=9)) == 1


async def test_it_is_made_up_for_before_the_next_one(tmp_path: Path) -> None:
    folder = await died_after_the_firing(tmp_path)
    async with opened(folder) as store:
        known = await schedules_of(store).find("report")
        assert known is not None
        second = FIRING._replace(run_id="schedule:report:2")
        assert await schedules_of(store).fire(known, next_due_at=CLOCK.iso(2), firing=second)
        assert [run.run_id for run in await store.list_runs()] == [FIRING.run_id, second.run_id]


async def test_a_run_that_was_queued_and_deleted_does_not_come_back(tmp_path: Path) -> None:
    async with opened(tmp_path / "runs") as store:
        schedule = await schedules_of(store).put(hourly(CLOCK.iso()))
        await schedules_of(store).fire(schedule, next_due_at=CLOCK.iso(1), firing=FIRING)
        assert await store.delete(FIRING.run_id)
    async with opened(tmp_path / "runs") as store:
        await schedules_of(store).upcoming([HANDLER], limit=9)
        assert await store.list_runs() == []


async def test_the_log_of_schedules_does_not_grow_for_ever(tmp_path: Path) -> None:
    async with opened(tmp_path / "runs") as store, opened(tmp_path / "runs") as other:
        schedules = schedules_of(store)
        schedule = await schedules.put(hourly(CLOCK.iso()))
        for number in range(LINES_SPARE + 50):
            due_at = CLOCK.iso(number + 1)
            assert await schedules.fire(schedule, next_due_at=due_at, firing=None)
            schedule = schedule._replace(next_due_at=due_at)
        lines = (tmp_path / "runs" / "schedules").read_bytes().splitlines()
        assert len(lines) < LINES_SPARE
        found = await schedules_of(other).find("report")
        assert found is not None
        assert found.next_due_at == schedule.next_due_at


async def test_a_strange_line_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path / "runs") as store:
        await schedules_of(store).put(hourly(CLOCK.iso()))
        await schedules_of(store).put(hourly(CLOCK.iso())._replace(name="second"))
    path = tmp_path / "runs" / "schedules"
    header, first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + first.replace(b"letters", b"lEtters") + second)
    async with opened(tmp_path / "runs") as store:
        with pytest.raises(StoreCorruptError, match="damaged"):
            await schedules_of(store).list()
