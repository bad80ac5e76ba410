"""Memory stores with one planted fault each, and the case of the contract that must find it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perdure.core.changes import AppendFrames, Change, CompleteStep, SettleUsage, Suspend
from perdure.core.effects import iso_time
from perdure.core.limits import LEASE_MS
from perdure.core.records import (
    Claim,
    DeliveryRecord,
    EventRecord,
    JsonValue,
    Lease,
    RunManifest,
    RunRecord,
    Written,
)
from perdure.core.rundata import RunData
from perdure.errors import LeaseLostError, RunInputMismatchError, StoreCorruptError
from perdure.store.memory import MemoryStore


class BrokenStore(MemoryStore):
    """What the faults below have in common: they reach into the data behind the contract."""

    def known(self, stored_id: str) -> RunData | None:
        return self._data.runs.get(stored_id)

    def current(self, lease: Lease) -> Lease:
        data = self.known(lease.run_id)
        if data is None or data.token is None or data.run.lease_holder_id is None:
            return lease
        return Lease(lease.run_id, data.run.epoch, data.token, data.run.lease_holder_id)

    def for_tenant(self, tenant: str) -> BrokenStore:
        view = type(self)(self._data, clock=self._clock, code_version=self._code_version)
        view._tenant = super().for_tenant(tenant).tenant
        view._handle = self._handle
        view._state = self._state
        return view


class IgnoresTheFence(BrokenStore):
    async def write(self, lease: Lease, *changes: Change) -> Written:
        return await super().write(self.current(lease), *changes)


class FencesByTheNameOfTheWorker(BrokenStore):
    async def write(self, lease: Lease, *changes: Change) -> Written:
        current = self.current(lease)
        mine = current if current.worker_id == lease.worker_id else lease
        return await super().write(mine, *changes)


class FencesByTheEpochAlone(BrokenStore):
    async def write(self, lease: Lease, *changes: Change) -> Written:
        current = self.current(lease)
        mine = current if current.epoch == lease.epoch else lease
        return await super().write(mine, *changes)


class RefusesLateWrites(BrokenStore):
    async def write(self, lease: Lease, *changes: Change) -> Written:
        data = self.known(lease.run_id)
        if data is not None and (data.run.lease_expires_at or "z") <= iso_time(self._clock()):
            raise LeaseLostError("too late")
        return await super().write(lease, *changes)


class RenewsForStrangers(BrokenStore):
    async def renew(self, leases: Sequence[Lease], lease_ms: int) -> Mapping[Lease, bool]:
        known = {self.current(lease): lease for lease in leases}
        answer = await super().renew(list(known), lease_ms)
        return {known[lease]: stop for lease, stop in answer.items()}


class OverwritesCompletedSteps(BrokenStore):
    async def write(self, lease: Lease, *changes: Change) -> Written:
        data = self.known(lease.run_id)
        for change in changes:
            if data is not None and isinstance(change, CompleteStep):
                data.steps.pop(change.position, None)
        return await super().write(lease, *changes)


class WritesChangeByChange(BrokenStore):
    async def write(self, lease: Lease, *changes: Change) -> Written:
        answers = [await super(WritesChangeByChange, self).write(lease, c) for c in changes]
        steps = [step for answer in answers for step in answer.steps]
        return answers[-1]._replace(steps=steps) if answers else await super().write(lease)


class SwallowsFramesThatDoNotFollow(BrokenStore):
    async def write(self, lease: Lease, *changes: Change) -> Written:
        try:
            return await super().write(lease, *changes)
        except StoreCorruptError:
            rest = [change for change in changes if not isinstance(change, AppendFrames)]
            return await super().write(lease, *rest)


class CountsNoStrikes(BrokenStore):
    async def start_or_resume(self, run_id: str, manifest: RunManifest, **options: Any) -> Claim:
        claim = await super().start_or_resume(run_id, manifest, **options)
        data = self.known(self._stored(run_id))
        if data is not None:
            data.run = data.run._replace(strikes=0)
        return claim._replace(run=claim.run._replace(strikes=0))


class GivesALiveLeaseToItsNamesake(BrokenStore):
    async def start_or_resume(self, run_id: str, manifest: RunManifest, **options: Any) -> Claim:
        data = self.known(self._stored(run_id))
        if data is not None and data.run.lease_holder_id == options["worker_id"]:
            options["token"] = data.token
        return await super().start_or_resume(run_id, manifest, **options)


class WritesWhenItReplays(BrokenStore):
    async def start_or_resume(self, run_id: str, manifest: RunManifest, **options: Any) -> Claim:
        claim = await super().start_or_resume(run_id, manifest, **options)
        data = self.known(self._stored(run_id))
        if data is not None and claim.lease is None:
            data.run = data.run._replace(updated_at=iso_time(self._clock()))
        return claim


class ForgetsToCompareManifests(BrokenStore):
    async def start_or_resume(self, run_id: str, manifest: RunManifest, **options: Any) -> Claim:
        try:
            return await super().start_or_resume(run_id, manifest, **options)
        except RunInputMismatchError:
            run = await self.read_run(run_id)
            stored = run and run.manifest
            return await super().start_or_resume(run_id, stored or manifest, **options)


class LetsTheLastEmitWin(BrokenStore):
    async def emit_event(
        self, run_id: str, key: str, payload: JsonValue
    ) -> tuple[bool, EventRecord]:
        data = self.known(self._stored(run_id))
        if data is not None:
            data.events.pop(key, None)
        return await super().emit_event(run_id, key, payload)


class WakesNobody(BrokenStore):
    async def emit_event(
        self, run_id: str, key: str, payload: JsonValue
    ) -> tuple[bool, EventRecord]:
        data = self.known(self._stored(run_id))
        wake_at = None if data is None else data.run.wake_at
        answer = await super().emit_event(run_id, key, payload)
        if data is not None:
            data.run = data.run._replace(wake_at=wake_at)
        return answer


class WaitsForWhatIsThere(BrokenStore):
    async def write(self, lease: Lease, *changes: Change) -> Written:
        data = self.known(lease.run_id)
        if data is None or not any(isinstance(change, Suspend) for change in changes):
            return await super().write(lease, *changes)
        events, data.events = data.events, {}
        try:
            return await super().write(lease, *changes)
        finally:
            data.events = events


class SettlesDeliveriesWithAStaleToken(BrokenStore):
    async def settle_delivery(self, delivery: DeliveryRecord, *, error: str | None = None) -> None:
        data = self.known(delivery.run_id)
        if data is not None:
            delivery = data.deliveries[delivery.position]
        await super().settle_delivery(delivery, error=error)


class ChangesSettledUsage(BrokenStore):
    async def settle_usage(self, lease: Lease, usage: SettleUsage) -> None:
        data = self.known(lease.run_id)
        row = None if data is None else data.usage.get((lease.epoch, usage.call))
        if data is not None and row is not None:
            data.usage[lease.epoch, usage.call] = row._replace(state="intended")
        await super().settle_usage(lease, usage)


class ForgetsOwnersWhenItDeletes(BrokenStore):
    async def delete(self, run_id: str, *, frames_only: bool = False) -> bool:
        data = self.known(self._stored(run_id))
        deleted = await super().delete(run_id, frames_only=frames_only)
        if deleted and not frames_only and data is not None:
            self._data.sessions.clear()
        return deleted


class LetsTenantsIn(BrokenStore):
    def _stored(self, run_id: str) -> str:
        own = super()._stored(run_id)
        found = (stored for stored in self._data.runs if stored.endswith(f"/{run_id}"))
        return own if own in self._data.runs else next(found, own)


class ForgetsStops(BrokenStore):
    async def request_stop(self, run_id: str) -> RunRecord:
        run = await super().request_stop(run_id)
        data = self.known(self._stored(run_id))
        if data is not None:
            data.run = data.run._replace(stop_requested_at=None)
        return run


class TakesLeasesOfAnyLength(BrokenStore):
    async def renew(self, leases: Sequence[Lease], lease_ms: int) -> Mapping[Lease, bool]:
        return await super().renew(leases, LEASE_MS)


class ClosesUnderWhatWorksWithIt(BrokenStore):
    async def close(self) -> None:
        self._state.closed = True


class DeletesEverythingWhenItCloses(BrokenStore):
    async def close(self) -> None:
        self._data.runs.clear()
        await super().close()


class TakesTheClosedForDead(BrokenStore):
    async def close(self) -> None:
        await super().close()
        for data in self._data.runs.values():
            if data.run.lease_holder_id is not None:
                data.run = data.run._replace(lease_expires_at=iso_time(0))


FAULTS: Sequence[tuple[type[BrokenStore], str]] = (
    (IgnoresTheFence, "a_zombie_can_write_nothing_at_all"),
    (
        FencesByTheNameOfTheWorker,
        "a_zombie_is_shut_out_even_if_the_new_holder_has_its_name",
    ),
    (FencesByTheEpochAlone, "a_zombie_of_a_deleted_run_is_a_stranger_to_its_successor"),
    (RefusesLateWrites, "the_holder_may_write_late_while_nobody_has_claimed"),
    (RenewsForStrangers, "a_lost_lease_costs_no_other_its_renewal"),
    (OverwritesCompletedSteps, "the_first_result_of_a_step_is_final"),
    (WritesChangeByChange, "a_write_that_diverges_at_its_end_leaves_nothing_behind"),
    (SwallowsFramesThatDoNotFollow, "frames_that_leave_a_gap_or_overlap_are_refused"),
    (CountsNoStrikes, "every_crash_counts_a_strike"),
    (GivesALiveLeaseToItsNamesake, "a_worker_does_not_own_a_lease_by_its_name"),
    (
        WritesWhenItReplays,
        "a_finished_run_is_replayed_by_any_number_of_callers_without_a_write",
    ),
    (
        ForgetsToCompareManifests,
        "another_manifest_is_refused_first_of_all_for_a_completed_run",
    ),
    (LetsTheLastEmitWin, "the_first_emit_wins_and_the_loser_gets_the_winner"),
    (WakesNobody, "an_event_wakes_the_run_that_waits_for_it"),
    (WaitsForWhatIsThere, "a_wait_for_an_event_that_is_there_is_due_at_once"),
    (SettlesDeliveriesWithAStaleToken, "a_stale_token_settles_nothing"),
    (ChangesSettledUsage, "a_settled_row_is_never_changed"),
    (ForgetsOwnersWhenItDeletes, "deleting_a_turn_frees_its_session_and_leaves_its_owner"),
    (LetsTenantsIn, "to_a_tenant_the_runs_of_others_do_not_exist"),
    (ForgetsStops, "the_holder_hears_of_a_stop_with_every_write_and_renewal"),
    (TakesLeasesOfAnyLength, "a_lease_of_no_length_is_refused_by_every_call_that_takes_one"),
    (
        ClosesUnderWhatWorksWithIt,
        "a_handle_that_closes_waits_for_its_work_and_grants_no_more_claims",
    ),
    (TakesTheClosedForDead, "a_lease_outlives_the_handle_that_was_closed"),
    (
        DeletesEverythingWhenItCloses,
        "closing_a_handle_leaves_the_data_and_other_handles_alone",
    ),
)
