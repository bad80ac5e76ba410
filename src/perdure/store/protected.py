"""A store whose values are redacted and sealed before they reach the store beneath."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from perdure.core.changes import Change
from perdure.core.frames import Frame
from perdure.core.records import (
    Claim,
    DeliveryRecord,
    EventRecord,
    JsonValue,
    Lease,
    RunDetails,
    RunManifest,
    RunRecord,
    StepRecord,
    Written,
)
from perdure.errors import UsageError
from perdure.store.erasure import Erasure, erasure_of
from perdure.store.forwarding import ClaimOptions, ForwardingStore, ListOptions, QueueOptions
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


class ProtectedStore(ForwardingStore):
    """A whole RunStore over another one; `protect` makes it."""

    def __init__(self, inner: RunStore, guard: ValueGuard) -> None:
        super().__init__(inner)
        self._guard = guard

    async def start_or_resume(
        self, run_id: str, manifest: RunManifest, **options: Unpack[ClaimOptions]
    ) -> Claim:
        kept = await self._guard.manifest(manifest, self.tenant, run_id)
        return await self._guard.claim(await super().start_or_resume(run_id, kept, **options))

    async def enqueue(
        self, run_id: str, manifest: RunManifest, **options: Unpack[QueueOptions]
    ) -> RunRecord:
        kept = await self._guard.manifest(manifest, self.tenant, run_id)
        return await self._guard.run(await super().enqueue(run_id, kept, **options))

    async def write(self, lease: Lease, *changes: Change) -> Written:
        written = await super().write(lease, *await self._guard.changes(lease, changes))
        return await self._guard.written(lease, written)

    async def claim_due(
        self, handlers: Sequence[str], *, worker_id: str, lease_ms: int, limit: int
    ) -> Sequence[Claim]:
        claims = await super().claim_due(
            handlers, worker_id=worker_id, lease_ms=lease_ms, limit=limit
        )
        return [await self._guard.claim(claim) for claim in claims]

    async def emit_event(
        self, run_id: str, key: str, payload: JsonValue
    ) -> tuple[bool, EventRecord]:
        place = ValuePlace(self.tenant, run_id, "event", key)
        kept = await self._guard.payload(payload, place)
        won, event = await super().emit_event(run_id, key, kept)
        return won, await self._guard.event(event, self.tenant)

    async def request_stop(self, run_id: str) -> RunRecord:
        return await self._guard.run(await super().request_stop(run_id))

    async def claim_deliveries(
        self, handlers: Sequence[str], *, limit: int, run_id: str | None = None
    ) -> Sequence[DeliveryRecord]:
        claimed = await super().claim_deliveries(handlers, limit=limit, run_id=run_id)
        return [await self._guard.delivery(delivery) for delivery in claimed]

    async def read_run(self, run_id: str) -> RunRecord | None:
        run = await super().read_run(run_id)
        return None if run is None else await self._guard.run(run)

    async def list_runs(self, **wanted: Unpack[ListOptions]) -> Sequence[RunRecord]:
        return [await self._guard.run(run) for run in await super().list_runs(**wanted)]

    async def read_steps(self, run_id: str) -> Sequence[StepRecord]:
        return await self._guard.steps(await super().read_steps(run_id), self.tenant)

    async def load_event(self, run_id: str, key: str) -> EventRecord | None:
        event = await super().load_event(run_id, key)
        return None if event is None else await self._guard.event(event, self.tenant)

    async def read_frames(
        self, run_id: str, *, after: int = -1, limit: int = 1_000
    ) -> Sequence[Frame]:
        frames = await super().read_frames(run_id, after=after, limit=limit)
        return await self._guard.frames(frames, self.tenant, run_id, after=after)

    async def read_details(self, run_id: str) -> RunDetails:
        details = await super().read_details(run_id)
        return await self._guard.details(details, self.tenant, run_id)

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


class _ThreadedProtectedStore(ProtectedStore):
    """A protected store over one that renews leases from a thread."""

    def open_renewer(self) -> Renewer:
        """Return the renewer of the store beneath: a renewal carries no values."""
        return self._open_inner_renewer()
