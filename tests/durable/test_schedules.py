"""Schedules: one run for each due time, what was missed, what overlaps, who may change them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from perdure.core.changes import Suspend
from perdure.core.effects import epoch_ms, iso_time
from perdure.core.limits import SCHEDULE_GRACE_MS
from perdure.core.records import RunRecord
from perdure.durable.schedules import LOOK_MS, Scheduler, TaskSchedules
from perdure.errors import UsageError
from perdure.store.protocol import RunStore
from perdure.store.scheduling import Schedule, schedules_of
from perdure.testing.samples import ended
from tests.durable.handles import Handles

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
START = "2026-01-31T09:05:00.000Z"


class Bench:
    """A store whose clock stands still, its schedules, and somebody who fires them."""

    def __init__(self, handles: Handles, store: RunStore) -> None:
        self.handles = handles
        self.clock = handles.clock
        self.store = store
        self.schedules = TaskSchedules(store)
        self.scheduler = Scheduler(store, ["task"])

    async def fire(self, later_ms: int = 0, *, rounds: int = 1) -> int | None:
        """Move the clock on, and let what is due then fire; return when to look again."""
        self.clock.advance(later_ms)
        again_ms = None
        for _ in range(rounds):
            self.scheduler.look_now()
            again_ms = await self.scheduler.fire_due()
        return again_ms

    async def runs(self) -> Sequence[RunRecord]:
        return await self.store.list_runs(limit=1_000)

    async def due_times(self) -> list[str]:
        """Return the times of day for which there are runs."""
        return sorted(run.run_id.split("T")[1][:5] for run in await self.runs())

    async def leave(self, run_id: str, *changes: Any) -> None:
        """Claim the run of a firing and write `changes`."""
        claims = await self.store.claim_due(["task"], worker_id="w", lease_ms=HOUR_MS, limit=9)
        (lease,) = [one.lease for one in claims if one.run.run_id == run_id]
        assert lease is not None
        await self.store.write(lease, *changes)


@pytest.fixture
async def bench(handles: Handles) -> Bench:
    handles.clock.now_ms = epoch_ms(START)
    return Bench(handles, await handles.open(clock=handles.clock))


async def test_a_due_time_becomes_a_run_that_is_named_after_it(bench: Bench) -> None:
    kept = await bench.schedules.add(
        "report", task="task", cron="0 * * * *", input={"kind": "short"}
    )
    assert kept.next_due_at == "2026-01-31T10:00:00.000Z"
    await bench.fire(54 * MINUTE_MS)
    assert await bench.runs() == []
    await bench.fire(MINUTE_MS)
    (run,) = await bench.runs()
    assert (run.run_id, run.state, run.handler) == (
        "schedule:report:2026-01-31T10:00:00.000Z",
        "queued",
        "task",
    )
    assert run.manifest is not None
    assert run.manifest.input == {"kind": "short", "due_at": "2026-01-31T10:00:00.000Z"}
    assert run.manifest.tags == {"schedule": "report"}
    (listed,) = await bench.schedules.list()
    assert (listed.next_due_at, listed.last_run_id) == ("2026-01-31T11:00:00.000Z", run.run_id)


async def test_an_interval_counts_from_when_it_was_added(bench: Bench) -> None:
    await bench.schedules.add("beat", task="task", every_ms=20 * MINUTE_MS)
    for _ in range(3):
        await bench.fire(20 * MINUTE_MS)
    assert await bench.due_times() == ["09:25", "09:45", "10:05"]


async def test_many_workers_fire_each_due_time_once(bench: Bench) -> None:
    await bench.schedules.add("beat", task="task", every_ms=MINUTE_MS)
    others = [await bench.handles.open(clock=bench.clock) for _ in range(3)]
    schedulers = [Scheduler(store, ["task"]) for store in (bench.store, *others)]
    for _ in range(10):
        bench.clock.advance(MINUTE_MS)
        for scheduler in schedulers:
            scheduler.look_now()
        await asyncio.gather(*(scheduler.fire_due() for scheduler in schedulers))
    assert await bench.due_times() == [f"09:{minute:02}" for minute in range(6, 16)]


async def test_who_asks_is_told_when_something_is_due_soon(bench: Bench) -> None:
    assert await bench.fire() is None
    await bench.schedules.add("beat", task="task", every_ms=10_000)
    assert await bench.fire() is None, "longer than he waits anyway"
    assert await bench.fire(10_000 - LOOK_MS) == LOOK_MS
    assert await bench.fire(LOOK_MS - 1) == 1
    assert await bench.fire(1) == 0, "what was moved on may be due again"


async def test_between_two_looks_the_store_is_left_alone(bench: Bench) -> None:
    await bench.schedules.add("beat", task="task", every_ms=MINUTE_MS)
    await bench.fire()
    bench.clock.advance(MINUTE_MS)
    assert await bench.scheduler.fire_due() is None
    assert await bench.runs() == []


async def test_schedules_of_other_tasks_are_left_to_others(bench: Bench) -> None:
    await bench.schedules.add("theirs", task="other", every_ms=MINUTE_MS)
    await bench.schedules.add("mine", task="task", every_ms=MINUTE_MS)
    await bench.fire(MINUTE_MS)
    assert [run.handler for run in await bench.runs()] == ["task"]


async def test_a_schedule_of_a_tenant_begins_runs_of_that_tenant(bench: Bench) -> None:
    acme = bench.store.for_tenant("acme")
    await TaskSchedules(acme).add("beat", task="task", every_ms=MINUTE_MS, overlap="skip")
    await bench.fire(MINUTE_MS)
    await bench.fire(MINUTE_MS)
    assert await bench.runs() == []
    assert len(await acme.list_runs()) == 1, "the second would overlap"


# What was missed.


@pytest.mark.parametrize(
    ("catch_up", "expected"),
    [
        ("all", ["10:00", "11:00", "12:00", "13:00"]),
        ("one", ["13:00"]),
        ("skip", []),
    ],
)
async def test_what_was_missed_is_caught_up_with_as_it_was_agreed(
    bench: Bench, catch_up: Any, expected: list[str]
) -> None:
    await bench.schedules.add("report", task="task", cron="0 * * * *", catch_up=catch_up)
    await bench.fire(4 * HOUR_MS + 25 * MINUTE_MS, rounds=6)
    assert await bench.due_times() == expected
    await bench.fire(30 * MINUTE_MS, rounds=2)
    assert await bench.due_times() == [*expected, "14:00"], "then it goes on as before"


@pytest.mark.parametrize(
    ("late_ms", "fires"), [(SCHEDULE_GRACE_MS, True), (SCHEDULE_GRACE_MS + 1, False)]
)
async def test_a_due_time_of_the_last_minute_was_not_missed(
    bench: Bench, late_ms: int, fires: bool
) -> None:
    await bench.schedules.add("report", task="task", cron="0 * * * *", catch_up="skip")
    await bench.fire(3 * HOUR_MS - 5 * MINUTE_MS + late_ms, rounds=2)
    assert await bench.due_times() == (["12:00"] if fires else [])


async def test_the_night_on_which_the_clock_is_changed_has_one_report(bench: Bench) -> None:
    for start in ("2026-03-27T12:00:00.000Z", "2026-10-23T12:00:00.000Z"):
        bench.clock.now_ms = epoch_ms(start)
        await bench.schedules.add(
            start[:10], task="task", cron="30 2 * * *", timezone="Europe/Berlin", catch_up="all"
        )
        for _ in range(3 * 24 * 4):
            await bench.fire(HOUR_MS // 4)
        await bench.schedules.remove(start[:10])
    found = sorted(run.run_id.split(":", 2)[2][:16] for run in await bench.runs())
    assert found == [
        "2026-03-28T01:30",
        "2026-03-29T01:00",
        "2026-03-30T00:30",
        "2026-10-24T00:30",
        "2026-10-25T00:30",
        "2026-10-26T01:30",
    ]


# Runs that overlap.


async def test_a_due_time_that_comes_while_the_last_run_is_live_is_left_out(bench: Bench) -> None:
    await bench.schedules.add("beat", task="task", every_ms=MINUTE_MS, overlap="skip")
    await bench.fire(MINUTE_MS)
    await bench.fire(MINUTE_MS)
    await bench.leave("schedule:beat:2026-01-31T09:06:00.000Z", Suspend("sleeping"))
    await bench.fire(MINUTE_MS)
    assert await bench.due_times() == ["09:06"], "queued, then asleep"
    (kept,) = await bench.schedules.list()
    assert kept.next_due_at == iso_time(bench.clock.now_ms + MINUTE_MS)


@pytest.mark.parametrize("change", [ended(), ended("failed"), Suspend("parked", reason="strikes")])
async def test_once_the_last_run_rests_the_next_one_begins(bench: Bench, change: Any) -> None:
    await bench.schedules.add("beat", task="task", every_ms=MINUTE_MS, overlap="skip")
    await bench.fire(MINUTE_MS)
    await bench.leave("schedule:beat:2026-01-31T09:06:00.000Z", change)
    await bench.fire(MINUTE_MS)
    assert await bench.due_times() == ["09:06", "09:07"]


async def test_runs_may_overlap_unless_they_are_told_not_to(bench: Bench) -> None:
    await bench.schedules.add("beat", task="task", every_ms=MINUTE_MS)
    await bench.fire(MINUTE_MS)
    await bench.fire(MINUTE_MS)
    assert await bench.due_times() == ["09:06", "09:07"]


# Changing schedules.


async def test_a_worker_that_starts_again_moves_nothing(bench: Bench) -> None:
    await bench.schedules.add("beat", task="task", every_ms=HOUR_MS)
    bench.clock.advance(50 * MINUTE_MS)
    await bench.schedules.add("beat", task="task", every_ms=HOUR_MS)
    await bench.fire(10 * MINUTE_MS)
    assert await bench.due_times() == ["10:05"]


async def test_a_new_timing_holds_from_now_on(bench: Bench) -> None:
    await bench.schedules.add("beat", task="task", every_ms=HOUR_MS)
    bench.clock.advance(50 * MINUTE_MS)
    await bench.schedules.add("beat", task="task", every_ms=15 * MINUTE_MS)
    await bench.fire(15 * MINUTE_MS)
    assert await bench.due_times() == ["10:10"]


async def test_what_comes_due_in_a_pause_is_never_made_up_for(bench: Bench) -> None:
    await bench.schedules.add("report", task="task", cron="0 * * * *", catch_up="all")
    assert (await bench.schedules.pause("report")).paused_at == START
    await bench.schedules.add("report", task="task", cron="0 * * * *", catch_up="all")
    await bench.fire(3 * HOUR_MS, rounds=3)
    resumed = await bench.schedules.resume("report")
    assert (resumed.paused_at, resumed.next_due_at) == (None, "2026-01-31T13:00:00.000Z")
    await bench.fire(HOUR_MS, rounds=3)
    assert await bench.due_times() == ["13:00"]


async def test_a_removed_schedule_fires_no_more(bench: Bench) -> None:
    await bench.schedules.add("beat", task="task", every_ms=MINUTE_MS)
    await bench.fire(MINUTE_MS)
    assert await bench.schedules.remove("beat")
    assert not await bench.schedules.remove("beat")
    await bench.fire(MINUTE_MS)
    assert await bench.due_times() == ["09:06"]
    assert await bench.schedules.list() == []


async def test_an_unknown_schedule_is_named(bench: Bench) -> None:
    for call in (bench.schedules.pause, bench.schedules.resume):
        with pytest.raises(UsageError, match="no schedule 'nightly'"):
            await call("nightly")


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({}, "either cron or every_ms"),
        ({"cron": "0 3 * * *", "every_ms": 1_000}, "either cron or every_ms"),
        ({"cron": "0 0 */31 * MON#2"}, "never comes due"),
        ({"every_ms": 1_000, "catch_up": "none"}, "catch_up"),
        ({"every_ms": 1_000, "overlap": "queue"}, "overlap"),
        ({"every_ms": 1_000, "catch_up": "all", "overlap": "skip"}, "overlap"),
        ({"every_ms": 1_000, "input": {"due_at": "now"}}, "due_at"),
        ({"every_ms": 1_000, "name": ""}, "name of a schedule"),
        ({"every_ms": 1_000, "task": ""}, "task"),
    ],
)
async def test_a_schedule_that_makes_no_sense_is_refused(
    bench: Bench, options: dict[str, Any], culprit: str
) -> None:
    given: dict[str, Any] = {"name": "nightly", "task": "task", **options}
    with pytest.raises(UsageError, match=culprit):
        await bench.schedules.add(given.pop("name"), **given)
    assert await bench.schedules.list() == []


async def test_one_that_cannot_be_read_here_costs_no_other_and_is_told_of_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.schedules.add("beat", task="task", every_ms=MINUTE_MS)
    (beat,) = await bench.schedules.list()
    odd = Schedule(
        "odd", "task", beat.manifest, cron="0 3 * * *", timezone="Mars/Base", next_due_at=START
    )
    await schedules_of(bench.store).put(odd)
    with caplog.at_level(logging.ERROR, logger="perdure.schedules"):
        await bench.fire(MINUTE_MS, rounds=2)
    assert await bench.due_times() == ["09:06"]
    (told,) = [record.getMessage() for record in caplog.records]
    assert "'odd' cannot fire" in told
    assert "Mars/Base" in told
