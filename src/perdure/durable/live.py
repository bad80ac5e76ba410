"""The runs that are alive in this process, so that a second opener joins instead of competing."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Hashable
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class LiveRun(Generic[T]):
    """One run that somebody in this process is opening or working on.

    `work` is whatever its owner wants others to find; `opened` is set when it is there or will
    never be, `gone` when nobody here works on the run any more.
    """

    def __init__(self, manifest_hash: str) -> None:
        self.manifest_hash = manifest_hash
        self.opened = asyncio.Event()
        self.gone = asyncio.Event()
        self.owners = 1
        self._work: T | None = None

    @property
    def work(self) -> T | None:
        return self._work

    @work.setter
    def work(self, work: T) -> None:
        self._work = work
        self.opened.set()


class LiveRuns(Generic[T]):
    """A registry by store handle and stored run id."""

    def __init__(self) -> None:
        self._runs: dict[tuple[Hashable, str], LiveRun[T]] = {}
        self._sweeps: dict[Hashable, set[asyncio.Event]] = {}

    def find(self, handle: Hashable, stored_id: str) -> LiveRun[T] | None:
        """Return the live run, or None."""
        return self._runs.get((handle, stored_id))

    def of(self, handle: Hashable) -> list[tuple[str, LiveRun[T]]]:
        """Return the live runs of a store handle, with their stored ids."""
        return [(stored_id, live) for (at, stored_id), live in self._runs.items() if at == handle]

    def enter(self, handle: Hashable, stored_id: str, manifest_hash: str) -> LiveRun[T]:
        """Register a run before its claim is asked for: a second opener then finds it."""
        key = (handle, stored_id)
        assert key not in self._runs, "a live run was entered twice"
        live = self._runs[key] = LiveRun(manifest_hash)
        return live

    def share(self, handle: Hashable, stored_id: str, manifest_hash: str) -> LiveRun[T]:
        """Register a run that is claimed already, beside whoever else is just opening it."""
        live = self._runs.get((handle, stored_id))
        if live is None:
            return self.enter(handle, stored_id, manifest_hash)
        live.owners += 1
        return live

    def leave(self, handle: Hashable, stored_id: str) -> None:
        """Let go of a run; the last owner forgets it and wakes whoever waits for that."""
        live = self._runs.get((handle, stored_id))
        if live is None:
            return
        live.owners -= 1
        if live.owners == 0:
            del self._runs[handle, stored_id]
            live.opened.set()
            live.gone.set()

    @contextmanager
    def sweeping(self, handle: Hashable) -> Generator[None, None, None]:
        """Claim, within it, runs of which nobody knows yet which they will be."""
        over = asyncio.Event()
        sweeps = self._sweeps.setdefault(handle, set())
        sweeps.add(over)
        try:
            yield
        finally:
            over.set()
            sweeps.discard(over)
            if not sweeps:
                self._sweeps.pop(handle, None)

    async def swept(self, handle: Hashable) -> None:
        """Return when every run that is being claimed by a sweep has been registered."""
        for over in tuple(self._sweeps.get(handle, ())):
            await over.wait()
