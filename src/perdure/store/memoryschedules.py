"""The schedules of a store in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from perdure.store import scheduling
from perdure.store.memorydata import HandleState, MemoryData
from perdure.store.scheduling import Firing, Schedule, Upcoming


class MemorySchedules:
    """`Schedules` of one handle, or its view of a tenant, on data in memory."""

    def __init__(
        self, data: MemoryData, state: HandleState, tenant: str, now: Callable[[], str]
    ) -> None:
        self._data = data
        self._state = state
        self._tenant = tenant
        self._now = now

    async def put(self, schedule: Schedule) -> Schedule:
        self._state.check()
        schedule = scheduling.as_stored(schedule, self._tenant)
        with self._data.lock:
            key = (self._tenant, schedule.name)
            known = self._data.schedules.get(key)
            kept = scheduling.replaced(known, schedule, tenant=self._tenant, now=self._now())
            self._data.schedules[key] = kept
            return kept

    async def find(self, name: str) -> Schedule | None:
        self._state.check()
        with self._data.lock:
            return self._data.schedules.get((self._tenant, name))

    async def list(self) -> Sequence[Schedule]:
        self._state.check()
        with self._data.lock:
            known = self._data.schedules.values()
            mine = [one for one in known if one.tenant == self._tenant]
        return sorted(mine, key=lambda one: one.name)

    async def pause(self, name: str) -> Schedule | None:
        return self._change(name, lambda known: scheduling.paused(known, self._now()))

    async def resume(self, name: str, *, next_due_at: str) -> Schedule | None:
        return self._change(name, lambda known: scheduling.resumed(known, next_due_at, self._now()))

    async def remove(self, name: str) -> bool:
        self._state.check()
        with self._data.lock:
            return self._data.schedules.pop((self._tenant, name), None) is not None

    async def upcoming(self, tasks: Sequence[str], *, limit: int) -> Upcoming:
        self._state.check()
        with self._data.lock:
            known = list(self._data.schedules.values())
            return Upcoming(self._now(), scheduling.soonest(known, tasks, limit))

    async def fire(self, schedule: Schedule, *, next_due_at: str, firing: Firing | None) -> bool:
        self._state.check()
        opening = None if firing is None else scheduling.firing_of(schedule, firing)
        with self._data.lock:
            key, now = (schedule.tenant, schedule.name), self._now()
            known = self._data.schedules.get(key)
            if known is None or not scheduling.may_fire(known, schedule):
                return False
            run_id = None if opening is None else opening.run_id
            self._data.schedules[key] = scheduling.fired(known, next_due_at, run_id, now)
            if opening is not None and opening.stored_id not in self._data.runs:
                self._data.create(opening, now)
                self._data.changed(opening.stored_id)
            return True

    def _change(self, name: str, change: Callable[[Schedule], Schedule]) -> Schedule | None:
        self._state.check()
        with self._data.lock:
            known = self._data.schedules.get((self._tenant, name))
            if known is None:
                return None
            changed = self._data.schedules[self._tenant, name] = change(known)
            return changed
