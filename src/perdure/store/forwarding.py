"""A store that passes every call on to another one, for stores that add something to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Required, TypedDict, TypeVar, Unpack

from perdure.core.changes import Change, SettleUsage
from perdure.core.frames import Frame
from perdure.core.pricing import PriceTable, prices_of
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
from perdure.store.protocol import Renewer, RunStore, ThreadRenewal

T = TypeVar("T")


class ClaimOptions(TypedDict, total=False):
    """How `RunStore.start_or_resume` is asked, but for the run."""

    worker_id: Required[str]
    lease_ms: int
    handler: str | None
    session: SessionKey | None
    retry: bool
    token: str | None


class QueueOptions(TypedDict, total=False):
    """How `RunStore.enqueue` is asked, but for the run."""

    handler: Required[str]
    session: SessionKey | None
    retry: bool


class ListOptions(TypedDict, total=False):
    """What `RunStore.list_runs` is asked for."""

    state: RunState | None
    session_id: str | None
    turn_index: int | None
    ancestors_of: str | None
    after: str | None
    limit: int
    with_answer: bool


class ForwardingStore:
    """A whole RunStore over another one, but for `for_tenant`, whose view is of the own kind.

    Every call goes through `_read` or `_write`. The options that a caller leaves out are left to
    the store beneath.
    """

    def __init__(self, inner: RunStore) -> None:
        self._inner = inner

    # The hooks.

    async def _read(self, call: Callable[[], Awaitable[T]]) -> T:
        """Perform a call that writes nothing."""
        return await call()

    async def _write(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        """Perform the call `name`, which may write."""
        return await call()

    def _open_inner_renewer(self) -> Renewer:
        if not isinstance(self._inner, ThreadRenewal):
            raise TypeError("the store beneath does not renew from threads")
        return self._inner.open_renewer()

    # RunStore.

    @property
    def tenant(self) -> str:
        return self._inner.tenant

    @property
    def handle(self) -> Hashable:
        return self._inner.handle

    @property
    def prices(self) -> PriceTable | None:
        """The table by which the store beneath records costs, if it does."""
        return prices_of(self._inner)

    async def start_or_resume(
        self, run_id: str, manifest: RunManifest, **options: Unpack[ClaimOptions]
    ) -> Claim:
        call = partial(self._inner.start_or_resume, run_id, manifest, **options)
        return await self._write("start_or_resume", call)

    async def enqueue(
        self, run_id: str, manifest: RunManifest, **options: Unpack[QueueOptions]
    ) -> RunRecord:
        call = partial(self._inner.enqueue, run_id, manifest, **options)
        return await self._write("enqueue", call)

    async def write(self, lease: Lease, *changes: Change) -> Written:
        return await self._write("write", partial(self._inner.write, lease, *changes))

    async def renew(self, leases: Sequence[Lease], lease_ms: int) -> Mapping[Lease, bool]:
        return await self._write("renew", partial(self._inner.renew, leases, lease_ms))

    async def claim_due(
        self, handlers: Sequence[str], *, worker_id: str, lease_ms: int, limit: int
    ) -> Sequence[Claim]:
        call = partial(
            self._inner.claim_due, handlers, worker_id=worker_id, lease_ms=lease_ms, limit=limit
        )
        return await self._write("claim_due", call)

    async def emit_event(
        self, run_id: str, key: str, payload: JsonValue
    ) -> tuple[bool, EventRecord]:
        call = partial(self._inner.emit_event, run_id, key, payload)
        return await self._write("emit_event", call)

    async def request_stop(self, run_id: str) -> RunRecord:
        return await self._write("request_stop", partial(self._inner.request_stop, run_id))

    async def settle_usage(self, lease: Lease, usage: SettleUsage) -> None:
        await self._write("settle_usage", partial(self._inner.settle_usage, lease, usage))

    async def claim_deliveries(
        self, handlers: Sequence[str], *, limit: int, run_id: str | None = None
    ) -> Sequence[DeliveryRecord]:
        call = partial(self._inner.claim_deliveries, handlers, limit=limit, run_id=run_id)
        return await self._write("claim_deliveries", call)

    async def settle_delivery(self, delivery: DeliveryRecord, *, error: str | None = None) -> None:
        call = partial(self._inner.settle_delivery, delivery, error=error)
        await self._write("settle_delivery", call)

    async def read_run(self, run_id: str) -> RunRecord | None:
        return await self._read(partial(self._inner.read_run, run_id))

    async def list_runs(self, **wanted: Unpack[ListOptions]) -> Sequence[RunRecord]:
        return await self._read(partial(self._inner.list_runs, **wanted))

    async def read_steps(self, run_id: str) -> Sequence[StepRecord]:
        return await self._read(partial(self._inner.read_steps, run_id))

    async def load_event(self, run_id: str, key: str) -> EventRecord | None:
        return await self._read(partial(self._inner.load_event, run_id, key))

    async def read_frames(
        self, run_id: str, *, after: int = -1, limit: int = 1_000
    ) -> Sequence[Frame]:
        return await self._read(partial(self._inner.read_frames, run_id, after=after, limit=limit))

    async def read_details(self, run_id: str) -> RunDetails:
        return await self._read(partial(self._inner.read_details, run_id))

    async def delete(self, run_id: str, *, frames_only: bool = False) -> bool:
        call = partial(self._inner.delete, run_id, frames_only=frames_only)
        return await self._write("delete", call)

    async def wait_for_change(self, run_id: str | None, *, timeout_ms: int) -> None:
        await self._read(partial(self._inner.wait_for_change, run_id, timeout_ms=timeout_ms))

    async def close(self) -> None:
        await self._read(self._inner.close)
