"""Schedules: what a store keeps of work that comes due again and again, beside RunStore."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from perdure.core import identity
from perdure.core.jsonvalue import decode_value
from perdure.core.recordjson import manifest_from_json
from perdure.core.records import RunManifest
from perdure.errors import UsageError
from perdure.store.entry import Opening, opening_for
from perdure.store.protocol import RunStore

CatchUp = Literal["skip", "one", "all"]
Overlap = Literal["allow", "skip"]


class Schedule(NamedTuple):
    """One schedule, found by its tenant and name; moments as they are stored.

    It has `cron` with the `timezone` in which that is read, or `every_ms`. `next_due_at` is the
    due time that was not dealt with yet. `manifest` is what the manifests of its runs are made of.
    A paused schedule (`paused_at`) never fires.
    """

    name: str
    task: str
    manifest: RunManifest
    cron: str | None = None
    every_ms: int | None = None
    timezone: str = "UTC"
    catch_up: CatchUp = "one"
    overlap: Overlap = "allow"
    next_due_at: str = ""
    tenant: str = ""
    paused_at: str | None = None
    last_due_at: str | None = None
    last_run_id: str | None = None
    created_at: str = ""
    updated_at: str = ""


class Firing(NamedTuple):
    """The run that a due time begins."""

    run_id: str
    manifest: RunManifest


class Upcoming(NamedTuple):
    """The schedules that are due soonest, and the store's time `now`."""

    now: str
    schedules: Sequence[Schedule]


class Schedules(Protocol):
    """The schedules of a store. Every method is atomic, as those of RunStore.

    All but `upcoming` and `fire` see one tenant only: that of the handle they were asked of.
    """

    async def put(self, schedule: Schedule) -> Schedule:
        """Add the schedule, or change the one of its name; return what is stored.

        Where the timing (cron, every_ms, timezone) is the old one, `next_due_at` stays as it is
        stored. What was paused stays paused, and what it last did is kept.
        """
        ...

    async def find(self, name: str) -> Schedule | None:
        """Return the schedule, or None."""
        ...

    async def list(self) -> Sequence[Schedule]:
        """Return all schedules by name."""
        ...

    async def pause(self, name: str) -> Schedule | None:
        """Let the schedule fire no more; None if there is none."""
        ...

    async def resume(self, name: str, *, next_due_at: str) -> Schedule | None:
        """Let a paused schedule fire again, from `next_due_at` on; another stays as it is.

        None if there is none.
        """
        ...

    async def remove(self, name: str) -> bool:
        """Delete the schedule, and none of its runs; return whether it was there."""
        ...

    async def upcoming(self, tasks: Sequence[str], *, limit: int) -> Upcoming:
        """Return the schedules of these tasks that are not paused, the soonest due first.

        Those of all tenants. Raises StoreError.
        """
        ...

    async def fire(self, schedule: Schedule, *, next_due_at: str, firing: Firing | None) -> bool:
        """Go on to `next_due_at`, and queue the run of `firing`, if there is one.

        Only if the stored schedule is not paused and has the `next_due_at` of the given one:
        False, and nothing happens, means that somebody else has dealt with that due time. A run
        of this id that is there already stays as it is.
        """
        ...


@runtime_checkable
class ScheduleStore(Protocol):
    """A store that keeps schedules, as all of this package do."""

    def schedules(self) -> Schedules: ...


def schedules_of(store: RunStore) -> Schedules:
    """Return the schedules of a store; UsageError for one that keeps none."""
    if isinstance(store, ScheduleStore):
        return store.schedules()
    raise UsageError(f"a {type(store).__name__} keeps no schedules: it has no schedules()")


def check_name(name: object) -> str:
    """Return `name` if it can be that of a schedule; else UsageError."""
    return identity.check_id(name, name="the name of a schedule")


def template_of(schedule: Schedule, tenant: str) -> Opening:
    """Return what is stored of a schedule's manifest. Raises UsageError, NotSerializableError."""
    run_id = template_id(check_name(schedule.name))
    return opening_for(tenant, run_id, schedule.manifest, handler=schedule.task, session=None)


def as_stored(schedule: Schedule, tenant: str) -> Schedule:
    """Return the schedule with its manifest as it comes back from a store: nobody else's part."""
    text = template_of(schedule, tenant).manifest_text
    return schedule._replace(manifest=manifest_from_json(decode_value(text)))


def template_id(name: str) -> str:
    """Return the run id that stands for a schedule itself; no run has it."""
    return f"schedule:{name}"


def firing_of(schedule: Schedule, firing: Firing) -> Opening:
    """Return what is stored of a firing's run."""
    return opening_for(
        schedule.tenant, firing.run_id, firing.manifest, handler=schedule.task, session=None
    )


def timing_of(schedule: Schedule) -> tuple[str | None, int | None, str]:
    """Return what decides when the schedule is due."""
    return schedule.cron, schedule.every_ms, schedule.timezone


def replaced(known: Schedule | None, wanted: Schedule, *, tenant: str, now: str) -> Schedule:
    """Return what `put` stores of `wanted` where `known` is stored."""
    if known is None:
        return wanted._replace(
            tenant=tenant,
            paused_at=None,
            last_due_at=None,
            last_run_id=None,
            created_at=now,
            updated_at=now,
        )
    same = timing_of(known) == timing_of(wanted)
    return wanted._replace(
        tenant=tenant,
        next_due_at=known.next_due_at if same else wanted.next_due_at,
        paused_at=known.paused_at,
        last_due_at=known.last_due_at,
        last_run_id=known.last_run_id,
        created_at=known.created_at,
        updated_at=now,
    )


def paused(known: Schedule, now: str) -> Schedule:
    """Return what `pause` makes of a schedule."""
    return known._replace(paused_at=known.paused_at or now, updated_at=now)


def resumed(known: Schedule, next_due_at: str, now: str) -> Schedule:
    """Return what `resume` makes of a schedule."""
    if known.paused_at is None:
        return known
    return known._replace(paused_at=None, next_due_at=next_due_at, updated_at=now)


def may_fire(known: Schedule | None, wanted: Schedule) -> bool:
    """Return whether `fire` finds the schedule as its caller has seen it."""
    if known is None or known.paused_at is not None:
        return False
    return known.next_due_at == wanted.next_due_at


def fired(known: Schedule, next_due_at: str, run_id: str | None, now: str) -> Schedule:
    """Return what `fire` makes of a schedule."""
    return known._replace(
        next_due_at=next_due_at,
        last_due_at=known.next_due_at,
        last_run_id=run_id or known.last_run_id,
        updated_at=now,
    )


def soonest(known: Sequence[Schedule], tasks: Sequence[str], limit: int) -> list[Schedule]:
    """Return what `upcoming` lists of the known schedules."""
    wanted = [one for one in known if one.task in tasks and one.paused_at is None]
    wanted.sort(key=lambda one: (one.next_due_at, one.tenant, one.name))
    return wanted[: max(limit, 0)]
