"""A store whose process is killed before or after a call that is named by what it writes.

A point is the name of a call and which of its kind it is, such as "AppendFrames#2". A write is
named by the weightiest of its changes, so that a point means the same on every store.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

from perdure.core.changes import (
    AppendFrames,
    BeginStep,
    Change,
    CompleteStep,
    EndRun,
    FailStep,
    Release,
    Restart,
    Suspend,
)
from perdure.core.records import Lease, Written
from perdure.store.forwarding import ForwardingStore
from perdure.store.protocol import Renewer, RunStore

T = TypeVar("T")
When = Literal["before", "after"]
NO_POINTS = frozenset({"renew"})
"""Calls that come when they come."""
WEIGHT = (EndRun, Suspend, Release, Restart, FailStep, CompleteStep, BeginStep, AppendFrames)


class Point(NamedTuple):
    """Where a process dies: `call` is a name with its number, "EndRun#1"."""

    call: str
    when: When

    def __str__(self) -> str:
        return f"{self.when} {self.call}"


class Killer:
    """Counts the calls of one process, notes each, and kills the process at a point of them."""

    def __init__(self, note: Callable[[str], None], point: Point | None = None) -> None:
        self._note = note
        self._point = point
        self._counts: Counter[str] = Counter()

    async def call(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        """Perform a call of the store, unless the process dies at it."""
        self._counts[name] += 1
        label = f"{name}#{self._counts[name]}"
        self._note(f"call {label}")
        if self._point == (label, "before"):
            die()
        answer = await call()
        if self._point == (label, "after"):
            die()
        return answer


class KillingStore(ForwardingStore):
    """A whole RunStore whose process a killer may kill at each call that may write."""

    def __init__(self, inner: RunStore, killer: Killer) -> None:
        super().__init__(inner)
        self._killer = killer

    async def _write(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        if name in NO_POINTS:
            return await call()
        return await self._killer.call(name, call)

    async def write(self, lease: Lease, *changes: Change) -> Written:
        call: Callable[[], Any] = partial(self._inner.write, lease, *changes)
        return await self._killer.call(named_by(changes), call)

    def open_renewer(self) -> Renewer:
        return self._open_inner_renewer()

    def for_tenant(self, tenant: str) -> KillingStore:
        return KillingStore(self._inner.for_tenant(tenant), self._killer)


def named_by(changes: Sequence[Change]) -> str:
    """Return the name of a write: its weightiest change, whatever frames travel with it."""
    kinds = {type(change) for change in changes}
    return next((kind.__name__ for kind in WEIGHT if kind in kinds), "other")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
