"""The schedules of a store whose process dies at a chosen call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from perdure.store.scheduling import Firing, Schedule, Schedules, Upcoming

T = TypeVar("T")


class Life(Protocol):
    """A process through which calls go; `crashing.Process` is one."""

    async def read(self, call: Callable[[], Awaitable[T]]) -> T: ...
    async def write(self, name: str, call: Callable[[], Awaitable[T]]) -> T: ...


class CrashingSchedules:
    """`Schedules` that pass every call on while their process lives."""

    def __init__(self, inner: Schedules, process: Life) -> None:
        self._inner = inner
        self._process = process

    async def put(self, schedule: Schedule) -> Schedule:
        return await self._process.write("put", partial(self._inner.put, schedule))

    async def find(self, name: str) -> Schedule | None:
        return await self._process.read(partial(self._inner.find, name))

    async def list(self) -> Sequence[Schedule]:
        return await self._process.read(self._inner.list)

    async def pause(self, name: str) -> Schedule | None:
        return await self._process.write("pause", partial(self._inner.pause, name))

    async def resume(self, name: str, *, next_due_at: str) -> Schedule | None:
        call = partial(self._inner.resume, name, next_due_at=next_due_at)
        return await self._process.write("resume", call)

    async def remove(self, name: str) -> bool:
        return await self._process.write("remove", partial(self._inner.remove, name))

    async def upcoming(self, tasks: Sequence[str], *, limit: int) -> Upcoming:
        return await self._process.read(partial(self._inner.upcoming, tasks, limit=limit))

    async def fire(self, schedule: Schedule, *, next_due_at: str, firing: Firing | None) -> bool:
        call = partial(self._inner.fire, schedule, next_due_at=next_due_at, firing=firing)
        return await self._process.write("fire", call)
