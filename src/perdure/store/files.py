"""FileStore: the RunStore in a folder of append-only logs."""

from __future__ import annotations

import copy
import os
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Literal

from perdure.core import identity
from perdure.core.changes import Change, SettleUsage
from perdure.core.draft import LEAVING
from perdure.core.effects import Clock, system_clock
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
from perdure.errors import StoreUnavailableError, UsageError
from perdure.store.closing import bring_to_rest
from perdure.store.entry import check_claim, check_lease, opening_for, payload_text
from perdure.store.erasure import Erasure
from perdure.store.listing import Wanted, check_wanted
from perdure.store.memorydata import MemoryRenewer
from perdure.store.scheduling import Schedules
from perdure.store.upkeep import Upkeep


class FileStore:
    """Runs in a folder on a local disk, one append-only log each, without a database.

    Any number of handles and processes of a POSIX system may share the folder, which is made
    where there is none. `durability="full"` flushes what is acknowledged to the disk; "normal"
    leaves that to the system, so a power cut may undo it (the end of the process never does).
    `code_version` is stored with every attempt, and `clock` is the store's time. A write waits
    `patience_ms` for the lock of another process, then StoreBusyError.

    Raises UsageError for a path that cannot be such a folder, or is on a network mount, and
    StoreUnavailableError where the system is not POSIX.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Literal["full", "normal"] = "full",
        clock: Clock = system_clock,
        code_version: str | None = None,
        patience_ms: float = 5_000,
    ) -> None:
        if os.name != "posix":
            raise StoreUnavailableError(
                "a store of files needs the locks of a POSIX system: use sqlite:PATH here"
            )
        if durability not in ("full", "normal"):
            raise UsageError(f"durability must be 'full' or 'normal', not {durability!r:.40}")
        from perdure.store.filehandle import FileHandle, check_folder
        from perdure.store.fileruns import FolderOptions

        options = FolderOptions(
            check_folder(path), durability == "full", clock, code_version, patience_ms
        )
        self._inside = FileHandle(options)
        self._tenant = ""
        self._handle: Hashable = object()

    @property
    def tenant(self) -> str:
        return self._tenant

    @property
    def handle(self) -> Hashable:
        return self._handle

    async def open(self) -> None:
        """Make the folder where there is none, and see that it is one of runs."""
        await self._inside.run(_nothing)

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
        from perdure.store.fileclaims import Wish

        check_claim(self._handle, lease_ms)
        opening = opening_for(self._tenant, run_id, manifest, handler=handler, session=session)
        wish = Wish(worker_id, lease_ms, token, retry)
        claim = await self._inside.run(partial(self._inside.claims.start, opening, wish))
        if claim.lease is not None:
            self._inside.waiting.changed(opening.stored_id, may_be_due=False)
        return claim

    async def enqueue(
        self,
        run_id: str,
        manifest: RunManifest,
        *,
        handler: str,
        session: SessionKey | None = None,
        retry: bool = False,
    ) -> RunRecord:
        opening = opening_for(self._tenant, run_id, manifest, handler=handler, session=session)
        claims = self._inside.claims
        run, changed = await self._inside.run(partial(claims.enqueue, opening, retry=retry))
        if changed:
            self._inside.waiting.changed(opening.stored_id, may_be_due=True)
        return run

    async def claim_due(
        self, handlers: Sequence[str], *, worker_id: str, lease_ms: int, limit: int
    ) -> Sequence[Claim]:
        from perdure.store.fileclaims import Wish

        check_claim(self._handle, lease_ms)
        wish = Wish(worker_id, lease_ms)
        call = partial(self._inside.claims.claim_due, frozenset(handlers), wish, limit)
        claims = await self._inside.run(call)
        for claim in claims:
            if claim.lease is not None:
                self._inside.waiting.changed(claim.lease.run_id, may_be_due=False)
        return claims

    async def write(self, lease: Lease, *changes: Change) -> Written:
        written = await self._inside.run(partial(self._inside.work.write, lease, changes))
        may_be_due = any(isinstance(change, LEAVING) for change in changes)
        self._inside.waiting.changed(lease.run_id, may_be_due=may_be_due)
        return written

    async def renew(self, leases: Sequence[Lease], lease_ms: int) -> Mapping[Lease, bool]:
        check_lease(lease_ms)
        return await self._inside.run(partial(self._inside.work.renew, leases, lease_ms))

    def open_renewer(self) -> MemoryRenewer:
        """Return a renewer for a heartbeat thread: its work is done by the thread of files."""
        return MemoryRenewer(self._inside.renew)

    async def settle_usage(self, lease: Lease, usage: SettleUsage) -> None:
        await self._inside.run(partial(self._inside.work.settle_usage, lease, usage))

    async def emit_event(
        self, run_id: str, key: str, payload: JsonValue
    ) -> tuple[bool, EventRecord]:
        identity.check_id(key, name="event key")
        text = payload_text(payload)
        stored_id = self._stored(run_id)
        call = partial(self._inside.work.emit, stored_id, run_id, key, text)
        won, event = await self._inside.run(call)
        if won:
            self._inside.waiting.changed(stored_id, may_be_due=True)
        return won, event

    async def request_stop(self, run_id: str) -> RunRecord:
        stored_id = self._stored(run_id)
        run = await self._inside.run(partial(self._inside.work.stop, stored_id, run_id))
        self._inside.waiting.changed(stored_id, may_be_due=True)
        return run

    async def claim_deliveries(
        self, handlers: Sequence[str], *, limit: int, run_id: str | None = None
    ) -> Sequence[DeliveryRecord]:
        work = self._inside.work
        return await self._inside.run(
            partial(work.claim_deliveries, frozenset(handlers), limit, run_id)
        )

    async def settle_delivery(self, delivery: DeliveryRecord, *, error: str | None = None) -> None:
        call = partial(self._inside.work.settle_delivery, delivery, error)
        if await self._inside.run(call):
            self._inside.waiting.changed(delivery.run_id, may_be_due=True)

    async def delete(self, run_id: str, *, frames_only: bool = False) -> bool:
        stored_id = self._stored(run_id)
        call = partial(self._inside.work.delete, stored_id, run_id, frames_only=frames_only)
        deleted = await self._inside.run(call)
        self._inside.waiting.changed(stored_id, may_be_due=True)
        return deleted

    async def read_run(self, run_id: str) -> RunRecord | None:
        return await self._inside.run(partial(self._inside.reads.run, self._stored(run_id)))

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
        wanted = Wanted(
            *(self._tenant, state, session_id, turn_index),
            *(ancestors_of, after, max(limit, 0), with_answer),
        )
        check_wanted(wanted)
        return await self._inside.run(partial(self._inside.reads.listed, wanted))

    async def read_steps(self, run_id: str) -> Sequence[StepRecord]:
        return await self._inside.run(partial(self._inside.reads.steps, self._stored(run_id)))

    async def load_event(self, run_id: str, key: str) -> EventRecord | None:
        stored_id = self._stored(run_id)
        return await self._inside.run(partial(self._inside.reads.event, stored_id, key))

    async def read_frames(
        self, run_id: str, *, after: int = -1, limit: int = 1_000
    ) -> Sequence[Frame]:
        stored_id = self._stored(run_id)
        call = partial(self._inside.reads.frames, stored_id, after, limit)
        return await self._inside.run(call)

    async def read_details(self, run_id: str) -> RunDetails:
        stored_id = self._stored(run_id)
        return await self._inside.run(partial(self._inside.reads.details, stored_id, run_id))

    async def wait_for_change(self, run_id: str | None, *, timeout_ms: int) -> None:
        self._inside.check()
        stored_id = None if run_id is None else self._stored(run_id)
        await self._inside.waiting.wait(stored_id, timeout_ms)

    def upkeep(self) -> Upkeep:
        from perdure.store.fileupkeep import FileUpkeep

        return FileUpkeep(self._inside)

    def erasure(self) -> Erasure:
        from perdure.store.fileerasure import FileErasure

        return FileErasure(self._inside, self._tenant)

    def schedules(self) -> Schedules:
        from perdure.store.fileschedules import FileSchedules

        return FileSchedules(self._inside, self._tenant)

    def for_tenant(self, tenant: str) -> FileStore:
        view = copy.copy(self)
        view._tenant = identity.check_tenant(tenant)
        return view

    async def close(self) -> None:
        await bring_to_rest(self._handle)
        await self._inside.close()

    def _stored(self, run_id: str) -> str:
        return identity.stored_id(self._tenant, identity.check_run_id(run_id))


def _nothing() -> None:
    """To open a folder, no more is to be done in its thread."""
