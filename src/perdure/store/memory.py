"""The store that lives in this process: the reference implementation of the contract."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Mapping, Sequence

from perdure.core import draft, effects, identity, transitions
from perdure.core.changes import Change, SettleUsage
from perdure.core.effects import Clock, iso_time
from perdure.core.frames import Frame, decode_row
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
from perdure.core.rundata import RunData
from perdure.errors import LeaseLostError, RunNotFoundError, UsageError
from perdure.store.closing import bring_to_rest
from perdure.store.entry import Opening, check_claim, check_lease, opening_for, payload_text
from perdure.store.listing import Wanted, check_wanted
from perdure.store.memorydata import Grant, HandleState, MemoryData, MemoryRenewer
from perdure.store.memoryerasure import MemoryErasure
from perdure.store.memoryschedules import MemorySchedules
from perdure.store.memoryupkeep import MemoryUpkeep


class MemoryStore:
    """A RunStore without a database: nothing survives the process.

    Several handles may share one `data`; each is a worker of its own. A handle belongs to the
    event loop that uses it first.
    """

    def __init__(
        self,
        data: MemoryData | None = None,
        *,
        clock: Clock = effects.system_clock,
        code_version: str | None = None,
    ) -> None:
        self._data = MemoryData() if data is None else data
        self._clock = clock
        self._code_version = code_version
        self._tenant = ""
        self._handle: Hashable = object()
        self._state = HandleState()

    @property
    def tenant(self) -> str:
        return self._tenant

    @property
    def handle(self) -> Hashable:
        return self._handle

    # Opening.

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
        check_claim(self._handle, lease_ms)
        opening = self._opening(run_id, manifest, handler, session)
        with self._data.lock:
            now = self._now()
            data = self._data.check_same(opening)
            self._data.check_owner(opening)
            run = None if data is None else data.run
            command: transitions.Command = "claim_retry" if retry else "claim"
            if data is not None and transitions.judge(run, command, now) == "read":
                return self._read_claim(data)
            return self._claim(
                opening, data, worker_id=worker_id, lease_ms=lease_ms, token=token, now=now
            )

    async def enqueue(
        self,
        run_id: str,
        manifest: RunManifest,
        *,
        handler: str,
        session: SessionKey | None = None,
        retry: bool = False,
    ) -> RunRecord:
        opening = self._opening(run_id, manifest, handler, session)
        with self._data.lock:
            now = self._now()
            data = self._data.check_same(opening)
            self._data.check_owner(opening)
            command: transitions.Command = "enqueue_retry" if retry else "enqueue"
            if data is None:
                self._data.touch_session(opening, now)
                data = self._data.create(opening, now)
            elif transitions.judge(data.run, command, now) == "queue":
                data.run = transitions.queued_again(data.run, handler=handler, now=now)
                self._data.note_turn(opening.stored_id, data.run)
            self._data.changed(opening.stored_id)
            return self._data.record(data)

    async def claim_due(
        self, handlers: Sequence[str], *, worker_id: str, lease_ms: int, limit: int
    ) -> Sequence[Claim]:
        check_claim(self._handle, lease_ms)
        claims: list[Claim] = []
        with self._data.lock:
            self._state.check()
            for stored_id in self._data.due(frozenset(handlers), self._now()):
                if len(claims) == limit:
                    break
                data = self._data.runs[stored_id]
                if not self._data.session_is_free(data.run, stored_id):
                    continue  # An earlier claim of this sweep took the session's place.
                opening = self._data.opening_of(stored_id, data)
                claim = self._claim(
                    opening, data, worker_id=worker_id, lease_ms=lease_ms, now=self._now()
                )
                claims.append(claim)
        return claims

    # Writing under a lease.

    async def write(self, lease: Lease, *changes: Change) -> Written:
        with self._data.lock:
            self._state.check()
            data = self._data.runs.get(lease.run_id)
            if data is None:
                raise LeaseLostError(f"the run {lease.run_id!r} is gone")
            written = draft.write(data, lease, changes, self._now())
            self._data.changed(lease.run_id)
            if draft.ends(changes):
                return written._replace(run=self._data.record(data))
            return written

    async def renew(self, leases: Sequence[Lease], lease_ms: int) -> Mapping[Lease, bool]:
        self._state.check()
        return self._renew(leases, lease_ms)

    def open_renewer(self) -> MemoryRenewer:
        """Return a renewer for a heartbeat thread."""
        return MemoryRenewer(self._renew)

    async def settle_usage(self, lease: Lease, usage: SettleUsage) -> None:
        with self._data.lock:
            self._state.check()
            data = self._data.runs.get(lease.run_id)
            if data is not None:
                data.settle(lease, usage, self._now())

    # Writing from outside.

    async def emit_event(
        self, run_id: str, key: str, payload: JsonValue
    ) -> tuple[bool, EventRecord]:
        identity.check_id(key, name="event key")
        text = payload_text(payload)
        with self._data.lock:
            data = self._known(run_id)
            if key in data.events:
                return False, data.event(key)
            data.add_event(key, text, self._now())
            self._data.changed(self._stored(run_id))
            return True, data.event(key)

    async def request_stop(self, run_id: str) -> RunRecord:
        with self._data.lock:
            data = self._known(run_id)
            now = self._now()
            if transitions.judge(data.run, "stop", now) == "mark":
                data.run = transitions.stop_marked(data.run, now)
                self._data.changed(self._stored(run_id))
            return self._data.record(data)

    async def claim_deliveries(
        self, handlers: Sequence[str], *, limit: int, run_id: str | None = None
    ) -> Sequence[DeliveryRecord]:
        claimed: list[DeliveryRecord] = []
        with self._data.lock:
            self._state.check()
            now = self._now()
            ids = self._data.runs if run_id is None else (run_id,)
            for stored_id in ids:
                data = self._data.runs.get(stored_id)
                if data is None or data.run.state not in transitions.ENDED_STATES:
                    continue
                if len(claimed) < limit:
                    if data.bury_lost(frozenset(handlers), now):
                        self._data.changed(stored_id)
                    claimed.extend(data.claim_delivery(frozenset(handlers), now))
        return claimed

    async def settle_delivery(self, delivery: DeliveryRecord, *, error: str | None = None) -> None:
        with self._data.lock:
            self._state.check()
            data = self._data.runs.get(delivery.run_id)
            if data is not None and data.settle_delivery(delivery, self._now(), error):
                self._data.changed(delivery.run_id)

    async def delete(self, run_id: str, *, frames_only: bool = False) -> bool:
        with self._data.lock:
            self._state.check()
            stored_id = self._stored(run_id)
            data = self._data.runs.get(stored_id)
            if data is None:
                return False
            command: transitions.Command = "delete_frames" if frames_only else "delete"
            if transitions.judge(data.run, command, self._now()) == "refuse":
                raise UsageError(
                    f"the run {run_id!r} is {data.run.state}: it cannot be deleted before it ends"
                )
            if frames_only:
                had_frames = bool(data.rows)
                data.rows = []
                data.run = data.run._replace(frames_expired_at=self._now())
                return had_frames
            del self._data.runs[stored_id]
            self._data.forget_turn(stored_id, data.run)
            self._data.changed(stored_id)
            return True

    # Reading.

    async def read_run(self, run_id: str) -> RunRecord | None:
        with self._data.lock:
            data = self._find(run_id)
            return None if data is None else self._data.record(data)

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
        with self._data.lock:
            self._state.check()
            return self._data.listed(check_wanted(wanted))

    async def read_steps(self, run_id: str) -> Sequence[StepRecord]:
        with self._data.lock:
            data = self._find(run_id)
            return [] if data is None else data.all_steps()

    async def load_event(self, run_id: str, key: str) -> EventRecord | None:
        with self._data.lock:
            data = self._find(run_id)
            return data.event(key) if data is not None and key in data.events else None

    async def read_frames(
        self, run_id: str, *, after: int = -1, limit: int = 1_000
    ) -> Sequence[Frame]:
        found: list[Frame] = []
        with self._data.lock:
            data = self._find(run_id)
            for row in () if data is None else data.rows:
                if row.last_seq <= after:
                    continue
                if len(found) >= limit:
                    break
                row_frames = decode_row(row.first_seq, row.epoch, row.body)
                found.extend(frame for frame in row_frames if frame.seq > after)
        return found

    async def read_details(self, run_id: str) -> RunDetails:
        with self._data.lock:
            data = self._known(run_id)
            return data.details()

    async def wait_for_change(self, run_id: str | None, *, timeout_ms: int) -> None:
        self._state.check()
        stored_id = None if run_id is None else self._stored(run_id)
        with self._data.waiting(stored_id) as woken:
            try:
                async with asyncio.timeout(timeout_ms / 1_000):
                    await woken.wait()
            except TimeoutError:
                return  # Only a hint: the caller looks anyway.

    # Handles.

    def upkeep(self) -> MemoryUpkeep:
        return MemoryUpkeep(self._data, self._state, self._now)

    def erasure(self) -> MemoryErasure:
        return MemoryErasure(self._data, self._state, self._tenant)

    def schedules(self) -> MemorySchedules:
        return MemorySchedules(self._data, self._state, self._tenant, self._now)

    def for_tenant(self, tenant: str) -> MemoryStore:
        view = MemoryStore(self._data, clock=self._clock, code_version=self._code_version)
        view._tenant = identity.check_tenant(tenant)
        view._handle = self._handle
        view._state = self._state
        return view

    async def close(self) -> None:
        await bring_to_rest(self._handle)
        self._state.closed = True

    # Parts of the above; called under the lock.

    def _now(self) -> str:
        return iso_time(self._clock())

    def _stored(self, run_id: str) -> str:
        return identity.stored_id(self._tenant, identity.check_run_id(run_id))

    def _find(self, run_id: str) -> RunData | None:
        self._state.check()
        return self._data.runs.get(self._stored(run_id))

    def _known(self, run_id: str) -> RunData:
        data = self._find(run_id)
        if data is None:
            raise RunNotFoundError(f"there is no run {run_id!r}")
        return data

    def _opening(
        self,
        run_id: str,
        manifest: RunManifest,
        handler: str | None,
        session: SessionKey | None,
    ) -> Opening:
        self._state.check()
        return opening_for(self._tenant, run_id, manifest, handler=handler, session=session)

    def _read_claim(self, data: RunData) -> Claim:
        return Claim(None, self._data.record(data), data.all_steps(), data.next_seq)

    def _claim(
        self,
        opening: Opening,
        data: RunData | None,
        *,
        worker_id: str,
        lease_ms: int,
        now: str,
        token: str | None = None,
    ) -> Claim:
        lease_token = effects.new_token() if token is None else token
        if data is not None:
            self._data.check_free(data, worker_id=worker_id, token=lease_token, now=now)
        self._data.enter_session(opening, now)
        if data is None:
            data = self._data.create(opening, now)
        grant = Grant(
            *(worker_id, lease_ms, lease_token, opening.handler, self._code_version),
            parent_run_id=self._data.parent_for(data.run, out_of_line=opening.session is None),
        )
        self._data.grant(data, grant, now)
        self._data.changed(opening.stored_id)
        lease = Lease(opening.stored_id, data.run.epoch, lease_token, worker_id)
        return Claim(lease, self._data.record(data), data.all_steps(), data.next_seq)

    def _renew(self, leases: Sequence[Lease], lease_ms: int) -> Mapping[Lease, bool]:
        check_lease(lease_ms)
        held: dict[Lease, bool] = {}
        with self._data.lock:
            expires_at = iso_time(self._clock() + lease_ms)
            for lease in leases:
                data = self._data.runs.get(lease.run_id)
                if data is not None and draft.fence_holds(data, lease):
                    data.run = data.run._replace(lease_expires_at=expires_at)
                    held[lease] = data.run.stop_requested_at is not None
        return held
