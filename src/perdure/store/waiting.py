"""Who waits for a change of a run, and what changed lately."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Collection
from typing import Any, Final, Protocol

from perdure.errors import StoreError

logger = logging.getLogger("perdure.store")

LOOK_RUN_MS: Final = 10
"""How soon a write of another process is noticed while somebody waits for one run."""
LOOK_ANY_MS: Final = 250
_KEPT: Final = 4_096


class Watched(Protocol):
    """What tells of writes of other processes."""

    def watch(self, changed: Callable[[], None], *, interval_ms: int | None) -> None:
        """Call `changed` on the loop after such a write, looked for so often; None: never."""
        ...


class Waiting:
    """Wakes waiters after this handle's own writes at once, after those of others by polling.

    A change between a caller's read and its wait is not lost: each asyncio task remembers how
    much had changed when it last came back from here.
    """

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._waiters: dict[str | None, set[asyncio.Future[None]]] = {}
        self._count = 0
        self._changed: dict[str | None, int] = {}
        self._forgotten = 0
        self._seen: weakref.WeakKeyDictionary[asyncio.Task[Any], int] = weakref.WeakKeyDictionary()

    def changed(self, stored_id: str, *, may_be_due: bool) -> None:
        """Wake who waits for this run and, if there may be work for a worker, who waits for any."""
        self._mark(stored_id)
        if may_be_due:
            self._mark(None)

    def changed_elsewhere(self) -> None:
        """Wake everybody: nobody knows which run another process has written."""
        self._count += 1
        self._forget()
        for stored_id in list(self._waiters):
            self._wake(stored_id)

    @property
    def waited_for(self) -> Collection[str | None]:
        """The stored ids of the runs that somebody waits for; None: for any."""
        return list(self._waiters)

    async def wait(self, stored_id: str | None, timeout_ms: int) -> None:
        """Return when the run, or (None) any run, may have changed, at the latest in time."""
        self._watch()
        task = asyncio.current_task()
        seen = 0 if task is None else self._seen.get(task, 0)
        if self._changed.get(stored_id, self._forgotten) <= seen:
            await self._sleep(stored_id, timeout_ms)
        if task is not None:
            self._seen[task] = self._count

    async def _sleep(self, stored_id: str | None, timeout_ms: int) -> None:
        woken = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(stored_id, set()).add(woken)
        self._watch()
        try:
            await asyncio.wait((woken,), timeout=timeout_ms / 1_000)
        finally:
            waiters = self._waiters.get(stored_id)
            if waiters is not None:
                waiters.discard(woken)
                if not waiters:
                    del self._waiters[stored_id]
            try:
                self._watch()
            except StoreError as error:
                # It must not take the place of a cancellation; the next wait raises it.
                logger.debug("nobody is watched any more: %s", error)

    def _mark(self, stored_id: str | None) -> None:
        self._count += 1
        if len(self._changed) >= _KEPT:
            self._forget()
        self._changed[stored_id] = self._count
        if self._waiters:
            self._wake(stored_id)

    def _forget(self) -> None:
        """Forget what changed when; it all counts as changed just now."""
        self._changed.clear()
        self._forgotten = self._count

    def _wake(self, stored_id: str | None) -> None:
        for woken in self._waiters.pop(stored_id, ()):
            if not woken.done():
                woken.set_result(None)

    def _watch(self) -> None:
        if not self._waiters:
            interval_ms = None
        elif self._waiters.keys() == {None}:
            interval_ms = LOOK_ANY_MS
        else:
            interval_ms = LOOK_RUN_MS
        self._watched.watch(self.changed_elsewhere, interval_ms=interval_ms)
