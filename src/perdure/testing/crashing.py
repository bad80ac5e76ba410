"""A store whose process dies at a chosen call: what comes after it never reaches the data."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Literal, NoReturn, TypeVar

from perdure.core.changes import Change, SettleUsage
from perdure.core.frames import Frame
from perdure.core.limits import LEASE_MS
from perdure.core.records import (
    Claim,
    DeliveryRecord,
    EventRecord,
    JsonValue,
    Lease,
    RunDetails,
    RunManifest,
    RunRecord,
    RunState,
    SessionKey,
    StepRecord,
    Written,
)
from perdure.errors import StoreUnavailableError
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


class CrashingStore:
    """A whole RunStore that passes every call on while its process lives.

    Once the process is dead every call raises Crash, on the views for tenants too.
    """

    def __init__(self, inner: RunStore, process: Process) -> None:
        self._inner = inner
        self._process = process

    @property
    def tenant(self) -> str:
        return self._inner.tenant

    @property
    def handle(self) -> Hashable:
        return self._inner.handle

    async def start_or_resume(
        self,
        run_id: str,
        manifest: RunManifest,
        *,
        worker_id: str,
        lease_ms: int = LEASE_MS,
        handler: str | None = None,
        session: SessionKey | None = None,
        retry: bool = False,
        token: str | None = None,
    ) -> Claim:
        call = partial(
            self._inner.start_or_resume,
            run_id,
            manifest,
            worker_id=worker_id,
            lease_ms=lease_ms,
            handler=handler,
            session=session,
            retry=retry,
            token=token,
        )
        return await self._process.write("start_or_resume", call)

    async def enqueue(
        self,
        run_id: str,
        manifest: RunManifest,
        *,
        handler: str,
        session: SessionKey | None = None,
        retry: bool = False,
    ) -> RunRecord:
        call = partial(
            self._inner.enqueue, run_id, manifest, handler=handler, session=session, retry=retry
        )
        return await self._process.write("enqueue", call)

    async def write(self, lease: Lease, *changes: Change) -> Written:
        return await self._process.write("write", partial(self._inner.write, lease, *changes))

    async def renew(self, leases: Sequence[Lease], lease_ms: int) -> Mapping[Lease, bool]:
        return await self._process.write("renew", partial(self._inner.renew, leases, lease_ms))

    async def claim_due(
        self, handlers: Sequence[str], *, worker_id: str, lease_ms: int, limit: int
    ) -> Sequence[Claim]:
        call = partial(
            self._inner.claim_due, handlers, worker_id=worker_id, lease_ms=lease_ms, limit=limit
        )
        return await self._process.write("claim_due", call)

    async def emit_event(
        self, run_id: str, key: str, payload: JsonValue
    ) -> tuple[bool, EventRecord]:
        call = partial(self._inner.emit_event, run_id, key, payload)
        return await self._process.write("emit_event", call)

    async def request_stop(self, run_id: str) -> RunRecord:
        return await self._process.write("request_stop", partial(self._inner.request_stop, run_id))

    async def settle_usage(self, lease: Lease, usage: SettleUsage) -> None:
        call = partial(self._inner.settle_usage, lease, usage)
        await self._process.write("settle_usage", call)

    async def claim_deliveries(
        self, handlers: Sequence[str], *, limit: int, run_id: str | None = None
    ) -> Sequence[DeliveryRecord]:
        call = partial(self._inner.claim_deliveries, handlers, limit=limit, run_id=run_id)
        return await self._process.write("claim_deliveries", call)

    async def settle_delivery(self, delivery: DeliveryRecord, *, error: str | None = None) -> None:
        call = partial(self._inner.settle_delivery, delivery, error=error)
        await self._process.write("settle_delivery", call)

    async def read_run(self, run_id: str) -> RunRecord | None:
        return await self._process.read(partial(self._inner.read_run, run_id))

    async def list_runs(
        self,
        *,
        state: RunState | None = None,
        session_id: str | None = None,
        turn_index: int | None = None,
        ancestors_of: str | None = None,
        after: str | None = None,
        limit: int = 50,
        with_answer: bool = False,
    ) -> Sequence[RunRecord]:
        call = partial(
            self._inner.list_runs,
            state=state,
            session_id=session_id,
            turn_index=turn_index,
            ancestors_of=ancestors_of,
            after=after,
            limit=limit,
            with_answer=with_answer,
        )
        return await self._process.read(call)

    async def read_steps(self, run_id: str) -> Sequence[StepRecord]:
        return await self._process.read(partial(self._inner.read_steps, run_id))

    async def load_event(self, run_id: str, key: str) -> EventRecord | None:
        return await self._process.read(partial(self._inner.load_event, run_id, key))

    async def read_frames(
        self, run_id: str, *, after: int = -1, limit: int = 1_000
    ) -> Sequence[Frame]:
        call = partial(self._inner.read_frames, run_id, after=after, limit=limit)
        return await self._process.read(call)

    async def read_details(self, run_id: str) -> RunDetails:
        return await self._process.read(partial(self._inner.read_details, run_id))

    async def delete(self, run_id: str, *, frames_only: bool = False) -> bool:
        call = partial(self._inner.delete, run_id, frames_only=frames_only)
        return await self._process.write("delete", call)

    async def wait_for_change(self, run_id: str | None, *, timeout_ms: int) -> None:
        call = partial(self._inner.wait_for_change, run_id, timeout_ms=timeout_ms)
        await self._process.read(call)

    def schedules(self) -> CrashingSchedules:
        """Return the schedules of the store beneath, which die with this one."""
        return CrashingSchedules(schedules_of(self._inner), self._process)

    def for_tenant(self, tenant: str) -> CrashingStore:
        """Return the view of another tenant, which dies with this one."""
        return crashing(self._inner.for_tenant(tenant), self._process)

    async def close(self) -> None:
        await self._process.read(self._inner.close)


class _ThreadedCrashingStore(CrashingStore):
    """A crashing store over one that renews leases from a thread."""

    def open_renewer(self) -> Renewer:
        """Return a renewer that reaches the store while the process lives."""
        if not isinstance(self._inner, ThreadRenewal):
            raise TypeError("the store beneath does not renew from threads")
        return _CrashingRenewer(self._inner.open_renewer(), self._process)


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
