"""Schedules of a worker: how they are kept, and how what is due of them becomes runs."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Final, get_args

from perdure.core import identity
from perdure.core.effects import epoch_ms, iso_time, monotonic_ms
from perdure.core.limits import SCHEDULE_GRACE_MS
from perdure.core.records import AgentTaskSpec, JsonValue, RunManifest
from perdure.core.transitions import RESTING_STATES
from perdure.durable.cron import Timing, timing_of
from perdure.errors import UsageError
from perdure.store.protocol import RunStore
from perdure.store.scheduling import (
    CatchUp,
    Firing,
    Overlap,
    Schedule,
    Schedules,
    schedules_of,
)

logger = logging.getLogger("perdure.schedules")

LOOK_MS: Final = 3_000
"""How long a worker looks at no schedule, when none that it knows of is due."""
PAGE: Final = 100
PROJECT_ID: Final = "perdure"


class TaskSchedules:
    """The schedules of a store's tenant. Any worker that has their tasks fires them."""

    def __init__(self, store: RunStore) -> None:
        self._store = store

    async def add(
        self,
        name: str,
        *,
        task: str,
        cron: str | None = None,
        every_ms: int | None = None,
        timezone: str = "UTC",
        input: Mapping[str, JsonValue] | None = None,
        catch_up: CatchUp = "one",
        overlap: Overlap = "allow",
    ) -> Schedule:
        """Keep a schedule under `name`, as `Worker.schedule`, whoever has the task."""
        if catch_up not in get_args(CatchUp):
            raise UsageError(f"catch_up must be skip, one or all, it is {catch_up!r:.40}")
        if overlap not in get_args(Overlap):
            raise UsageError(f"overlap must be allow or skip, it is {overlap!r:.40}")
        if catch_up == "all" and overlap == "skip":
            raise UsageError("catch_up 'all' begins runs together, overlap 'skip' forbids that")
        identity.check_id(task, name="task")
        now_ms = await self._now_ms()
        timing = timing_of(cron=cron, every_ms=every_ms, timezone=timezone, anchor_ms=now_ms)
        schedule = Schedule(
            name,
            task,
            _template(name, task, input or {}),
            cron=cron,
            every_ms=every_ms,
            timezone=timezone,
            catch_up=catch_up,
            overlap=overlap,
            next_due_at=iso_time(timing.after(now_ms)),
        )
        return await schedules_of(self._store).put(schedule)

    async def list(self) -> Sequence[Schedule]:
        """Return all schedules by name, the paused ones too."""
        return await schedules_of(self._store).list()

    async def pause(self, name: str) -> Schedule:
        """Let a schedule fire no more, also when it is added again. Raises UsageError."""
        return _known(await schedules_of(self._store).pause(name), name)

    async def resume(self, name: str) -> Schedule:
        """Let a paused schedule fire again, from its next due time on. Raises UsageError."""
        known = _known(await schedules_of(self._store).find(name), name)
        now_ms = await self._now_ms()
        next_due_at = iso_time(_timing(known).after(now_ms))
        return _known(await schedules_of(self._store).resume(name, next_due_at=next_due_at), name)

    async def remove(self, name: str) -> bool:
        """Forget a schedule, not the runs it began; return whether it was there."""
        return await schedules_of(self._store).remove(name)

    async def _now_ms(self) -> int:
        return epoch_ms((await schedules_of(self._store).upcoming((), limit=0)).now)


class Scheduler:
    """Fires what is due of the schedules of some tasks, over all tenants."""

    def __init__(self, store: RunStore, tasks: Collection[str]) -> None:
        self._store = store
        self._tasks = tuple(sorted(tasks))
        self._schedules = _kept_by(store) if self._tasks else None
        self._look_ms = 0.0
        self._told: set[tuple[str, str, str]] = set()

    def look_now(self) -> None:
        """Look at the store the next time, whatever was known so far."""
        self._look_ms = 0.0

    async def fire_due(self) -> int | None:
        """Fire what is due, if it is time to look; return when to look again.

        That is in how many milliseconds something more is due, None while that is longer than
        whoever asks waits anyway. Raises StoreError.
        """
        if self._schedules is None or monotonic_ms() < self._look_ms:
            return None
        self._look_ms = monotonic_ms() + LOOK_MS
        upcoming = await self._schedules.upcoming(self._tasks, limit=PAGE)
        now_ms = epoch_ms(upcoming.now)
        moved_on = False
        for schedule in upcoming.schedules:
            pause_ms = epoch_ms(schedule.next_due_at) - now_ms
            if pause_ms > 0 and not moved_on:
                return self._look_in(pause_ms)
            if pause_ms > 0:
                break
            moved_on = await self._try(schedule, now_ms) or moved_on
        # What was moved on may be due again, or soon.
        return self._look_in(0) if moved_on else None

    def _look_in(self, pause_ms: int) -> int | None:
        if pause_ms > LOOK_MS:
            return None
        self._look_ms = monotonic_ms() + pause_ms
        return pause_ms

    async def _try(self, schedule: Schedule, now_ms: int) -> bool:
        """Deal with the due time of one schedule; one that cannot be read costs no other."""
        try:
            await self._deal_with(schedule, now_ms)
        except (UsageError, ImportError) as error:
            told = (schedule.tenant, schedule.name, schedule.updated_at)
            if told not in self._told:
                self._told.add(told)
                logger.error("the schedule %r cannot fire: %s", schedule.name, error)
            return False
        return True

    async def _deal_with(self, schedule: Schedule, now_ms: int) -> None:
        assert self._schedules is not None
        timing, due_ms = _timing(schedule), epoch_ms(schedule.next_due_at)
        if schedule.catch_up != "all":
            due_ms = timing.newest(due_ms, now_ms)
        was_missed = schedule.catch_up == "skip" and now_ms - due_ms > SCHEDULE_GRACE_MS
        firing = None
        if not was_missed and not await self._overlaps(schedule):
            firing = _firing(schedule, iso_time(due_ms))
        next_due_at = iso_time(timing.after(due_ms))
        fired = await self._schedules.fire(schedule, next_due_at=next_due_at, firing=firing)
        if fired and firing is None:
            why = "was missed" if was_missed else "came while its last run was live"
            logger.info("a due time of the schedule %r %s: no run", schedule.name, why)

    async def _overlaps(self, schedule: Schedule) -> bool:
        if schedule.overlap == "allow" or schedule.last_run_id is None:
            return False
        store = self._store.for_tenant(schedule.tenant)
        last = await store.read_run(schedule.last_run_id)
        return last is not None and last.state not in RESTING_STATES


def _kept_by(store: RunStore) -> Schedules | None:
    """Return the schedules of a store; one that keeps none has none to fire."""
    try:
        return schedules_of(store)
    except UsageError:
        return None


def _template(name: str, task: str, given: Mapping[str, JsonValue]) -> RunManifest:
    if "due_at" in given:
        raise UsageError("input must leave due_at to the schedule: it is added to it")
    return RunManifest(
        PROJECT_ID,
        AgentTaskSpec(id=task, intent=f"Run {task} by the schedule {name}."),
        input=given,
        tags={"schedule": name},
    )


def _firing(schedule: Schedule, due_at: str) -> Firing:
    manifest = schedule.manifest
    return Firing(
        f"schedule:{schedule.name}:{due_at}",
        manifest._replace(input={**manifest.input, "due_at": due_at}),
    )


def _timing(schedule: Schedule) -> Timing:
    return timing_of(
        cron=schedule.cron,
        every_ms=schedule.every_ms,
        timezone=schedule.timezone,
        anchor_ms=epoch_ms(schedule.next_due_at),
    )


def _known(schedule: Schedule | None, name: str) -> Schedule:
    if schedule is None:
        raise UsageError(f"there is no schedule {name!r:.60}")
    return schedule
