"""The schedules of a folder: the calls, which its thread answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from perdure.store import scheduling
from perdure.store.filehandle import FileHandle
from perdure.store.scheduling import Firing, Schedule, Upcoming


class FileSchedules:
    """`Schedules` of one handle, or its view of a tenant, on a folder."""

    def __init__(self, inside: FileHandle, tenant: str) -> None:
        self._inside = inside
        self._scheduling = inside.scheduling
        self._tenant = tenant

    async def put(self, schedule: Schedule) -> Schedule:
        kept = scheduling.as_stored(schedule, self._tenant)
        return await self._inside.run(partial(self._scheduling.put, kept, self._tenant))

    async def find(self, name: str) -> Schedule | None:
        return await self._inside.run(partial(self._scheduling.find, self._tenant, name))

    async def list(self) -> Sequence[Schedule]:
        return await self._inside.run(partial(self._scheduling.list, self._tenant))

    async def pause(self, name: str) -> Schedule | None:
        change = partial(self._scheduling.change, self._tenant, name, scheduling.paused)
        return await self._inside.run(change)

    async def resume(self, name: str, *, next_due_at: str) -> Schedule | None:
        def resumed(known: Schedule, now: str) -> Schedule:
            return scheduling.resumed(known, next_due_at, now)

        return await self._inside.run(partial(self._scheduling.change, self._tenant, name, resumed))

    async def remove(self, name: str) -> bool:
        return await self._inside.run(partial(self._scheduling.remove, self._tenant, name))

    async def upcoming(self, tasks: Sequence[str], *, limit: int) -> Upcoming:
        return await self._inside.run(partial(self._scheduling.upcoming, tuple(tasks), limit))

    async def fire(self, schedule: Schedule, *, next_due_at: str, firing: Firing | None) -> bool:
        opening = None if firing is None else scheduling.firing_of(schedule, firing)
        fire = partial(self._scheduling.fire, schedule, next_due_at, opening)
        fired = await self._inside.run(fire)
        if fired and opening is not None:
            self._inside.waiting.changed(opening.stored_id, may_be_due=True)
        return fired
