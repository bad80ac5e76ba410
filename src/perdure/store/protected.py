"""A store whose values are redacted and sealed before they reach the store beneath."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

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
from perdure.errors import UsageError
from perdure.store.erasure import Erasure, erasure_of
from perdure.store.guarding import Redact, ValueGuard
from perdure.store.protectedschedules import ProtectedSchedules
from perdure.store.protocol import Renewer, RunStore, ThreadRenewal
from perdure.store.scheduling import schedules_of
from perdure.store.sealing import Sealer, ValuePlace
from perdure.store.upkeep import Upkeep, upkeep_of


def protect(
    store: RunStore, *, sealer: Sealer | None = None, redact: Redact | None = None
) -> RunStore:
    """Return `store` with its values protected; close the returned one in its stead.

    `redact` is given each value before it is stored (a manifest, a result, an error, an event, the
    parts of a row of frames, …) and returns what is stored instead: what was cut out is nowhere
    in the store, and everybody but the readers of the live stream sees the redacted value, the
    producer of a turn among them. `sealer` encrypts what is left. Ids, names of projects, tasks,
    steps and handlers, moments, sizes, token counts and the hashes of manifests and fingerprints
    stay in the open: put nothing secret into them.

    Values that were stored before are read as they are. Raises UsageError if there is nothing to
    protect with.
    """
    if sealer is None and redact is None:
        raise UsageError("protect needs a sealer, a redact function or both")
    return _protected(store, ValueGuard(sealer, redact))


def _protected(store: RunStore, guard: ValueGuard) -> ProtectedStore:
    if isinstance(store, ThreadRenewal):
        return _ThreadedProtectedStore(store, guard)
    return ProtectedStore(store, guard)


class ProtectedStore:
    """A whole RunStore over another one; `protect` makes it."""

    def __init__(self, inner: RunStore, guard: ValueGuard) -> None:
        self._inner = inner
        self._guard = guard

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
        claim = await self._inner.start_or_resume(
            run_id,
            await self._guard.manifest(manifest, self.tenant, run_id),
            worker_id=worker_id,
            lease_ms=lease_ms,
            handler=handler,
            session=session,
            retry=retry,
            token=token,
        )
        return await self._guard.claim(claim)

    async def enqueue(
        self,
        run_id: str,
        manifest: RunManifest,
        *,
        handler: str,
        session: SessionKey | None = None,
        retry: bool = False,
    ) -> RunRecord:
        kept = await self._guard.manifest(manifest, self.tenant, run_id)
        run = await self._inner.enqueue(run_id, kept, handler=handler, session=session, retry=retry)
        return await self._guard.run(run)

    async def write(self, lease: Lease, *changes: Change) -> Written:
        written = await self._inner.write(lease, *await self._guard.changes(lease, changes))
        return await self._guard.written(lease, written)

    async def renew(self, leases: Sequence[Lease], lease_ms: int) -> Mapping[Lease, bool]:
        return await self._inner.renew(leases, lease_ms)

    async def claim_due(
        self, handlers: Sequence[str], *, worker_id: str, lease_ms: int, limit: int
    ) -> Sequence[Claim]:
        claims = await self._inner.claim_due(
            handlers, worker_id=worker_id, lease_ms=lease_ms, limit=limit
        )
        return [await self._guard.claim(claim) for claim in claims]

    async def emit_event(
        self, run_id: str, key: str, payload: JsonValue
    ) -> tuple[bool, EventRecord]:
        place = ValuePlace(self.tenant, run_id, "event", key)
        kept = await self._guard.payload(payload, place)
        won, event = await self._inner.emit_event(run_id, key, kept)
        return won, await self._guard.event(event, self.tenant)

    async def request_stop(self, run_id: str) -> RunRecord:
        return await self._guard.run(await self._inner.request_stop(run_id))

    async def settle_usage(self, lease: Lease, usage: SettleUsage) -> None:
        await self._inner.settle_usage(lease, usage)

    async def claim_deliveries(
        self, handlers: Sequence[str], *, limit: int, run_id: str | None = None
    ) -> Sequence[DeliveryRecord]:
        claimed = await self._inner.claim_deliveries(handlers, limit=limit, run_id=run_id)
        return [await self._guard.delivery(delivery) for delivery in claimed]

    async def settle_delivery(self, delivery: DeliveryRecord, *, error: str | None = None) -> None:
        await self._inner.settle_delivery(delivery, error=error)

    async def read_run(self, run_id: str) -> RunRecord | None:
        run = await self._inner.read_run(run_id)
        return None if run is None else await self._guard.run(run)

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
        runs = await self._inner.list_runs(
            state=state,
            session_id=session_id,
            turn_index=turn_index,
            ancestors_of=ancestors_of,
            after=after,
            limit=limit,
            with_answer=with_answer,
        )
        return [await self._guard.run(run) for run in runs]

    async def read_steps(self, run_id: str) -> Sequence[StepRecord]:
        return await self._guard.steps(await self._inner.read_steps(run_id), self.tenant)

    async def load_event(self, run_id: str, key: str) -> EventRecord | None:
        event = await self._inner.load_event(run_id, key)
        return None if event is None else await self._guard.event(event, self.tenant)

    async def read_frames(
        self, run_id: str, *, after: int = -1, limit: int = 1_000
    ) -> Sequence[Frame]:
        frames = await self._inner.read_frames(run_id, after=after, limit=limit)
        return await self._guard.frames(frames, self.tenant, run_id, after=after)

    async def read_details(self, run_id: str) -> RunDetails:
        details = await self._inner.read_details(run_id)
        return await self._guard.details(details, self.tenant, run_id)

    async def delete(self, run_id: str, *, frames_only: bool = False) -> bool:
        return await self._inner.delete(run_id, frames_only=frames_only)

    async def wait_for_change(self, run_id: str | None, *, timeout_ms: int) -> None:
        await self._inner.wait_for_change(run_id, timeout_ms=timeout_ms)

    def upkeep(self) -> Upkeep:
        """Return the upkeep of the store beneath: what it finds stays as it is stored."""
        return upkeep_of(self._inner)

    def erasure(self) -> Erasure:
        """Return the erasure of the store beneath: it looks at no values."""
        return erasure_of(self._inner)

    def schedules(self) -> ProtectedSchedules:
        return ProtectedSchedules(schedules_of(self._inner), self._guard, self.tenant)

    def for_tenant(self, tenant: str) -> ProtectedStore:
        """Return the view of another tenant, protected alike."""
        return _protected(self._inner.for_tenant(tenant), self._guard)

    async def close(self) -> None:
        await self._inner.close()


class _ThreadedProtectedStore(ProtectedStore):
    """A protected store over one that renews leases from a thread."""

    def open_renewer(self) -> Renewer:
        """Return the renewer of the store beneath: a renewal carries no values."""
        if not isinstance(self._inner, ThreadRenewal):
            raise TypeError("the store beneath does not renew from threads")
        return self._inner.open_renewer()
