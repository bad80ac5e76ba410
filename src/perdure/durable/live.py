"""The runs that are alive in this process, so that a second opener joins instead of competing."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
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

    def find(self, handle: Hashable, stored_id: str) -> LiveRun[T] | None:
        """Return the live run, or None."""
        return self._runs.get((handle, stored_id))

    def enter(self, handle: Hashable, stored_id: str, manifest_hash: str) -> LiveRun[T]:
        """Register a run before its claim is asked for: a second opener then finds it."""
        key = (handle, stored_id)
        assert key not in self._runs, "a live run was entered twice"
        live = self._runs[key] = LiveRun(manifest_hash)
        return live

    def leave(self, handle: Hashable, stored_id: str) -> None:
        """Forget a run and wake whoever waits for that."""
        live = self._runs.pop((handle, stored_id), None)
        if live is not None:
            live.opened.set()
            live.gone.set()
