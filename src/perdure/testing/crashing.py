"""A store whose process dies at a chosen call: what comes after it never reaches the data."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, NoReturn, TypeVar

from perdure.core.records import Lease
from perdure.errors import StoreUnavailableError
from perdure.store.forwarding import ForwardingStore
from perdure.store.protocol import Renewer, RunStore, ThreadRenewal
from perdure.store.scheduling import schedules_of
from perdure.testing.crashingschedules import CrashingSchedules

T = TypeVar("T")
When = Literal["before", "after"]


class Crash(BaseException):
    """The process died; no `except Exception` may hold it up."""


class Process:
    """The life of one process: its writing calls so far, and the one at which it dies.

    `dies_at` counts writing calls from 0; None: it lives. `when`: before the call is performed,
    or after it, so that its reply is lost.
    """

    def __init__(self, dies_at: int | None = None, when: When = "before") -> None:
        self.calls: list[str] = []
        self.dead = asyncio.Event()
        self._dies_at = dies_at
        self._when = when

    async def read(self, call: Callable[[], Awaitable[T]]) -> T:
        """Perform a call that writes nothing."""
        self._check()
        answer = await call()
        self._check()
        return answer

    async def write(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        """Perform a writing call, or die at it."""
        self._check()
        fatal = len(self.calls) == self._dies_at
        self.calls.append(name)
        if fatal and self._when == "before":
            self._die(name)
        try:
            answer = await call()
        finally:
            if fatal:
                self._die(name)
        self._check()
        return answer

    def _check(self) -> None:
        if self.dead.is_set():
            raise Crash("the process is dead")

    def _die(self, name: str) -> NoReturn:
        self.dead.set()
        raise Crash(f"the process died {self._when} {name}")


def crashing(store: RunStore, process: Process) -> CrashingStore:
    """Return `store` as `process` uses it; it renews from threads if `store` does."""
    if isinstance(store, ThreadRenewal):
        return _ThreadedCrashingStore(store, process)
    return CrashingStore(store, process)


class CrashingStore(ForwardingStore):
    """A whole RunStore that passes every call on while its process lives.

    Once the process is dead every call raises Crash, on the views for tenants too.
    """

    def __init__(self, inner: RunStore, process: Process) -> None:
        super().__init__(inner)
        self._process = process

    async def _read(self, call: Callable[[], Awaitable[T]]) -> T:
        return await self._process.read(call)

    async def _write(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        return await self._process.write(name, call)

    def schedules(self) -> CrashingSchedules:
        """Return the schedules of the store beneath, which die with this one."""
        return CrashingSchedules(schedules_of(self._inner), self._process)

    def for_tenant(self, tenant: str) -> CrashingStore:
        """Return the view of another tenant, which dies with this one."""
        return crashing(self._inner.for_tenant(tenant), self._process)


class _ThreadedCrashingStore(CrashingStore):
    """A crashing store over one that renews leases from a thread."""

    def open_renewer(self) -> Renewer:
        """Return a renewer that reaches the store while the process lives."""
        return _CrashingRenewer(self._open_inner_renewer(), self._process)


class _CrashingRenewer:
    """Renews for a thread until the process is dead; the thread then finds the store gone.

    Its calls come when they come, so they are no crash points. It does not raise Crash, because
    a thread has nobody to hand it to.
    """

    def __init__(self, inner: Renewer, process: Process) -> None:
        self._inner = inner
        self._process = process
        self.renew: Callable[[Sequence[Lease], int], Mapping[Lease, bool]] = self._renew
        self.close: Callable[[], None] = inner.close

    def _renew(self, leases: Sequence[Lease], lease_ms: int) -> Mapping[Lease, bool]:
        if self._process.dead.is_set():
            raise StoreUnavailableError("the process is dead")
        return self._inner.renew(leases, lease_ms)
