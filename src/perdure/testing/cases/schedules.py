"""Schedules: one firing for each due time, whoever fires, and what a schedule keeps."""

from __future__ import annotations

import asyncio
from typing import Any

from perdure.core.records import RunManifest
from perdure.errors import NotSerializableError, UsageError
from perdure.store.protocol import RunStore
from perdure.store.scheduling import Firing, Schedule, schedules_of
from perdure.testing.lab import StoreLab, case, check, read, refused, same
from perdure.testing.samples import HANDLER, finish, manifest

HOUR_MS = 60 * 60 * 1_000


def _hourly(lab: StoreLab, name: str = "report", **others: Any) -> Schedule:
    """Return a schedule that is due in an hour."""
    schedule = Schedule(
        name, HANDLER, manifest(), every_ms=HOUR_MS, next_due_at=lab.clock.iso(HOUR_MS)
    )
    return schedule._replace(**others)


def _firing(run_id: str = "schedule:report:1", question: str = "And this hour?") -> Firing:
    return Firing(run_id, manifest(question))


async def _fire(store: RunStore, schedule: Schedule, next_due_at: str, firing: Firing) -> bool:
    schedules = schedules_of(store)
    return await schedules.fire(schedule, next_due_at=next_due_at, firing=firing)


@case
async def a_schedule_is_kept_with_everything_that_was_said_of_it(lab: StoreLab) -> None:
    store, other = await lab.open(), await lab.open()
    wanted = Schedule(
        "nightly",
        "letters",
        manifest("Who wrote?")._replace(tags={"by": "night"}, scenario_id="s"),
        cron="0 3 * * *",
        timezone="Europe/Berlin",
        catch_up="all",
        overlap="skip",
        next_due_at=lab.clock.iso(HOUR_MS),
    )
    kept = await schedules_of(store).put(wanted)
    moment = lab.clock.iso()
    same(kept, wanted._replace(created_at=moment, updated_at=moment), "the answer")
    same(await schedules_of(other).find("nightly"), kept, "what another handle finds")
    same(await schedules_of(other).find("daily"), None, "an unknown one")
    hourly = await schedules_of(other).put(_hourly(lab))
    same(hourly.cron, None, "the cron of an interval")
    same(hourly.every_ms, HOUR_MS, "its length")
    same(list(await schedules_of(store).list()), [kept, hourly], "all by name")


@case
async def what_the_caller_changes_afterwards_is_not_stored(lab: StoreLab) -> None:
    store = await lab.open()
    letters = ["a"]
    mine = RunManifest("lab", manifest().task, input={"letters": letters})
    await schedules_of(store).put(_hourly(lab, manifest=mine))
    letters.append("b")
    found = await schedules_of(store).find("report")
    check(found is not None, "the schedule is there")
    same(found and found.manifest.input, {"letters": ["a"]}, "its input")


@case
async def a_schedule_that_is_put_again_stays_due_when_it_was(lab: StoreLab) -> None:
    store = await lab.open()
    first = await schedules_of(store).put(_hourly(lab))
    lab.clock.advance(HOUR_MS // 2)
    again = _hourly(lab, task="parcels", catch_up="skip", overlap="skip", manifest=manifest("?"))
    kept = await schedules_of(store).put(again)
    same(kept.next_due_at, first.next_due_at, "when it is due")
    same((kept.created_at, kept.updated_at), (first.created_at, lab.clock.iso()), "its moments")
    same((kept.task, kept.catch_up, kept.overlap), ("parcels", "skip", "skip"), "what is new")
    same(kept.manifest, manifest("?"), "the new manifest")


@case
async def another_timing_decides_anew_when_a_schedule_is_due(lab: StoreLab) -> None:
    store = await lab.open()
    schedules = schedules_of(store)
    await schedules.put(_hourly(lab))
    changes: list[dict[str, Any]] = [
        {"every_ms": 2 * HOUR_MS},
        {"every_ms": None, "cron": "0 3 * * *"},
        {"every_ms": None, "cron": "0 4 * * *"},
        {"every_ms": None, "cron": "0 4 * * *", "timezone": "Europe/Berlin"},
        {"every_ms": HOUR_MS},
    ]
    for number, change in enumerate(changes, 2):
        due_at = lab.clock.iso(number * HOUR_MS)
        kept = await schedules.put(_hourly(lab, **change, next_due_at=due_at))
        same(kept.next_due_at, due_at, f"when it is due with {change}")


@case
async def a_firing_queues_its_run_and_moves_the_due_time_on(lab: StoreLab) -> None:
    store = await lab.open()
    schedule = await schedules_of(store).put(_hourly(lab))
    lab.clock.advance(HOUR_MS)
    later = lab.clock.iso(HOUR_MS)
    check(await _fire(store, schedule, later, _firing()), "it fires")
    run = await read(store, "schedule:report:1")
    same((run.state, run.handler), ("queued", HANDLER), "the run")
    same(run.manifest, manifest("And this hour?"), "its manifest")
    found = await schedules_of(store).find("report")
    gone_on = schedule._replace(
        next_due_at=later,
        last_due_at=schedule.next_due_at,
        last_run_id="schedule:report:1",
        updated_at=lab.clock.iso(),
    )
    same(found, gone_on, "the schedule")
    (claim,) = await store.claim_due([HANDLER], worker_id="ann", lease_ms=1_000, limit=9)
    same(claim.run.run_id, "schedule:report:1", "what a worker claims")


@case
async def a_due_time_fires_once_whoever_is_told_of_it(lab: StoreLab) -> None:
    store, other = await lab.open(), await lab.open()
    schedule = await schedules_of(store).put(_hourly(lab))
    later = lab.clock.iso(2 * HOUR_MS)
    check(await _fire(store, schedule, later, _firing()), "the first fires")
    check(not await _fire(other, schedule, later, _firing("other")), "the second does not")
    same(await store.read_run("other"), None, "the run of the second")


@case
async def of_many_firings_at_once_one_happens(lab: StoreLab) -> None:
    stores = [await lab.open() for _ in range(3)]
    schedule = await schedules_of(stores[0]).put(_hourly(lab))
    later = lab.clock.iso(2 * HOUR_MS)
    fired = await asyncio.gather(
        *(
            _fire(store, schedule, later, _firing(f"run-{number}"))
            for number, store in enumerate(stores * 4)
        )
    )
    same(fired.count(True), 1, "the firings that happened")
    same(len(await stores[0].list_runs()), 1, "the runs")


@case
async def a_firing_may_pass_a_due_time_without_a_run(lab: StoreLab) -> None:
    store = await lab.open()
    schedule = await schedules_of(store).put(_hourly(lab))
    later = lab.clock.iso(2 * HOUR_MS)
    passed = await schedules_of(store).fire(schedule, next_due_at=later, firing=None)
    check(passed, "it is passed")
    found = await schedules_of(store).find("report")
    check(found is not None, "the schedule is there")
    if found is not None:
        same((found.next_due_at, found.last_run_id), (later, None), "the schedule")
    same(list(await store.list_runs()), [], "the runs")


@case
async def a_firing_leaves_a_run_that_is_there_as_it_is(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "schedule:report:1")
    before = await read(store, "schedule:report:1")
    schedule = await schedules_of(store).put(_hourly(lab))
    later = lab.clock.iso(2 * HOUR_MS)
    check(await _fire(store, schedule, later, _firing()), "it fires, though it has another input")
    same(await read(store, "schedule:report:1"), before, "the run")


@case
async def a_paused_schedule_neither_comes_up_nor_fires(lab: StoreLab) -> None:
    store, other = await lab.open(), await lab.open()
    schedule = await schedules_of(store).put(_hourly(lab))
    lab.clock.advance(1)
    halted = await schedules_of(other).pause("report")
    moment = lab.clock.iso()
    same(halted, schedule._replace(paused_at=moment, updated_at=moment), "the answer")
    later = lab.clock.iso(2 * HOUR_MS)
    check(not await _fire(store, schedule, later, _firing()), "it does not fire")
    same((await schedules_of(store).upcoming([HANDLER], limit=9)).schedules, [], "what comes up")
    lab.clock.advance(1)
    again = await schedules_of(store).pause("report")
    same(again and again.paused_at, moment, "since when it is paused")
    put = await schedules_of(store).put(_hourly(lab))
    same(put.paused_at, moment, "since when it is paused, put again")


@case
async def a_resumed_schedule_is_due_when_its_caller_says(lab: StoreLab) -> None:
    store = await lab.open()
    schedules = schedules_of(store)
    schedule = await schedules.put(_hourly(lab))
    ignored = await schedules.resume("report", next_due_at=lab.clock.iso(1))
    same(ignored, schedule, "one that was not paused")
    await schedules.pause("report")
    lab.clock.advance(3 * HOUR_MS)
    due_at = lab.clock.iso(HOUR_MS)
    resumed = await schedules.resume("report", next_due_at=due_at)
    expected = schedule._replace(next_due_at=due_at, updated_at=lab.clock.iso())
    same(resumed, expected, "the answer")
    same(await schedules.find("report"), expected, "what is stored")
    same(await schedules.resume("unknown", next_due_at=due_at), None, "an unknown one, resumed")
    same(await schedules.pause("unknown"), None, "an unknown one, paused")


@case
async def a_removed_schedule_is_gone_and_its_runs_stay(lab: StoreLab) -> None:
    store, other = await lab.open(), await lab.open()
    schedule = await schedules_of(store).put(_hourly(lab))
    await _fire(store, schedule, lab.clock.iso(2 * HOUR_MS), _firing())
    check(await schedules_of(other).remove("report"), "it was there")
    check(not await schedules_of(store).remove("report"), "it is there no more")
    same(await schedules_of(store).find("report"), None, "what is found")
    same(list(await schedules_of(store).list()), [], "what is listed")
    check(not await _fire(store, schedule, lab.clock.iso(9 * HOUR_MS), _firing("b")), "it is over")
    same((await read(store, "schedule:report:1")).state, "queued", "its run")
    fresh = await schedules_of(store).put(_hourly(lab))
    same((fresh.last_run_id, fresh.last_due_at), (None, None), "what a new one has done")


@case
async def the_soonest_schedules_of_the_tasks_come_up_first(lab: StoreLab) -> None:
    store = await lab.open()
    for number, (name, task) in enumerate([("c", "a"), ("b", "b"), ("a", "a"), ("d", "x")]):
        due_at = lab.clock.iso((9 - number) * HOUR_MS)
        await schedules_of(store).put(_hourly(lab, name, task=task, next_due_at=due_at))
    upcoming = await schedules_of(store).upcoming(["a", "b"], limit=9)
    same(upcoming.now, lab.clock.iso(), "the store's time")
    same([one.name for one in upcoming.schedules], ["a", "b", "c"], "what comes up")
    first = await schedules_of(store).upcoming(["b", "a"], limit=2)
    same([one.name for one in first.schedules], ["a", "b"], "the first two")
    same((await schedules_of(store).upcoming([], limit=9)).schedules, [], "that of no tasks")


@case
async def a_tenant_has_schedules_of_its_own_that_any_worker_fires(lab: StoreLab) -> None:
    store, acme = await lab.open(), await lab.open(tenant="acme")
    mine = await schedules_of(store).put(_hourly(lab))
    theirs = await schedules_of(acme).put(_hourly(lab, catch_up="all"))
    same((mine.tenant, theirs.tenant), ("", "acme"), "the tenants")
    same(list(await schedules_of(store).list()), [mine], "those of the one")
    same(list(await schedules_of(acme).list()), [theirs], "those of the other")
    upcoming = await schedules_of(store).upcoming([HANDLER], limit=9)
    same(list(upcoming.schedules), [mine, theirs], "what comes up for a worker")
    later = lab.clock.iso(2 * HOUR_MS)
    check(await _fire(store, theirs, later, _firing("run")), "it fires")
    same((await read(acme, "run")).tenant, "acme", "the tenant of the run")
    same(await store.read_run("run"), None, "that run, seen by the other")
    same(await schedules_of(store).find("report"), mine, "the other schedule")
    check(not await schedules_of(await lab.open(tenant="b")).remove("report"), "no third has one")


@case
async def a_schedule_that_cannot_be_stored_is_refused(lab: StoreLab) -> None:
    store = await lab.open()
    schedules = schedules_of(store)
    for name in ("", "@a", "a\n", "x" * 300):
        with refused(UsageError):
            await schedules.put(_hourly(lab, name))
    odd = RunManifest("lab", manifest().task, input={"odd": {1}})
    with refused(NotSerializableError):
        await schedules.put(_hourly(lab, manifest=odd))
    same(list(await schedules.list()), [], "what is listed")
    longest = await schedules.put(_hourly(lab, "x" * 200))
    due_at = longest.next_due_at
    firing = _firing(f"schedule:{longest.name}:{due_at}")
    check(await _fire(store, longest, lab.clock.iso(9 * HOUR_MS), firing), "it fires")
