"""The schedules of a store whose values are protected: their manifests are."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.store.guarding import ValueGuard
from perdure.store.scheduling import Firing, Schedule, Schedules, Upcoming, template_id


class ProtectedSchedules:
    """`Schedules` over those of another store."""

    def __init__(self, inner: Schedules, guard: ValueGuard, tenant: str) -> None:
        self._inner = inner
        self._guard = guard
        self._tenant = tenant

    async def put(self, schedule: Schedule) -> Schedule:
        run_id = template_id(schedule.name)
        kept = await self._guard.manifest(schedule.manifest, self._tenant, run_id)
        return await self._opened(await self._inner.put(schedule._replace(manifest=kept)))

    async def find(self, name: str) -> Schedule | None:
        return await self._if_there(await self._inner.find(name))

    async def list(self) -> Sequence[Schedule]:
        return [await self._opened(one) for one in await self._inner.list()]

    async def pause(self, name: str) -> Schedule | None:
        return await self._if_there(await self._inner.pause(name))

    async def resume(self, name: str, *, next_due_at: str) -> Schedule | None:
        return await self._if_there(await self._inner.resume(name, next_due_at=next_due_at))

    async def remove(self, name: str) -> bool:
        return await self._inner.remove(name)

    async def upcoming(self, tasks: Sequence[str], *, limit: int) -> Upcoming:
        found = await self._inner.upcoming(tasks, limit=limit)
        return found._replace(schedules=[await self._opened(one) for one in found.schedules])

    async def fire(self, schedule: Schedule, *, next_due_at: str, firing: Firing | None) -> bool:
        if firing is not None:
            kept = await self._guard.manifest(firing.manifest, schedule.tenant, firing.run_id)
            firing = firing._replace(manifest=kept)
        return await self._inner.fire(schedule, next_due_at=next_due_at, firing=firing)

    async def _if_there(self, schedule: Schedule | None) -> Schedule | None:
        return None if schedule is None else await self._opened(schedule)

    async def _opened(self, schedule: Schedule) -> Schedule:
        run_id = template_id(schedule.name)
        manifest = await self._guard.opened_manifest(schedule.manifest, schedule.tenant, run_id)
        return schedule._replace(manifest=manifest)
