"""Faults planted in a store or in a worker, each of which the simulator must find."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from perdure.core import draft, transitions
from perdure.core.changes import AppendFrames, Change, CompleteStep, EndRun, Release, SettleUsage
from perdure.core.draft import LEAVING
from perdure.core.records import Claim, EventRecord, Lease, RunManifest, RunRecord, Written
from perdure.errors import LeaseLostError, StoreUnavailableError
from perdure.testing.simulator import Attempt, Cast, Worker, pause_between_statements
from perdure.testing.simulator.world import Call, Sleep
from tests.testing import broken_stores
from tests.testing.broken_stores import BrokenStore

GAP_MS = 300


class Planted(NamedTuple):
    """A fault, and who plays with it.

    `seed`: the first one that showed it when it was planted. It is tried before the others, as
    the way to the rarest is long; when the schedules change, another one is found in its place.
    """

    name: str
    cast: Cast
    seed: int = 0


# Faults of the store.


class FencesNoResults(BrokenStore):
    """A result is taken from whoever brings it."""

    async def write(self, lease: Lease, *changes: Change) -> Written:
        is_result = any(isinstance(change, CompleteStep) for change in changes)
        return await super().write(self.current(lease) if is_result else lease, *changes)


class FencesNoEnds(BrokenStore):
    async def write(self, lease: Lease, *changes: Change) -> Written:
        ends = any(isinstance(change, EndRun) for change in changes)
        return await super().write(self.current(lease) if ends else lease, *changes)


class FencesNoFrames(BrokenStore):
    async def write(self, lease: Lease, *changes: Change) -> Written:
        if changes and all(isinstance(change, AppendFrames) for change in changes):
            return await super().write(self.current(lease), *changes)
        return await super().write(lease, *changes)


class ReleasesWithoutAnEpoch(BrokenStore):
    async def write(self, lease: Lease, *changes: Change) -> Written:
        if any(isinstance(change, Release) for change in changes):
            lease = self.current(lease)
        return await super().write(lease, *changes)


class FencesByExpiryAlone(BrokenStore):
    """Whoever comes while some lease lives may write."""

    async def write(self, lease: Lease, *changes: Change) -> Written:
        data = self.known(lease.run_id)
        if data is None or not transitions.lease_is_live(data.run, self._now()):
            raise LeaseLostError("the lease has lapsed")
        return await super().write(self.current(lease), *changes)


class LooksBeforeItLocks(BrokenStore):
    """The fence is looked at in one statement, and relied on in the next."""

    locks_rows = False

    async def write(self, lease: Lease, *changes: Change) -> Written:
        if not draft.fence_holds(self.known(lease.run_id), lease):
            raise LeaseLostError("the lease is lost")
        await pause_between_statements(GAP_MS)
        return await super().write(self.current(lease), *changes)


class GuardsTheFirstChangeOnly(BrokenStore):
    """A batch is not one transaction, and only its first statement has the guard."""

    locks_rows = False

    async def write(self, lease: Lease, *changes: Change) -> Written:
        ordered = sorted(changes, key=lambda change: isinstance(change, LEAVING))
        written = await super().write(lease, *ordered[:1])
        for change in ordered[1:]:
            await pause_between_statements(GAP_MS)
            more = await super().write(self.current(lease), change)
            written = written._replace(steps=[*written.steps, *more.steps])
        return written


class StartsByLookingFirst(BrokenStore):
    """SELECT, then INSERT: two who find nothing both begin."""

    locks_rows = False

    async def start_or_resume(self, run_id: str, manifest: RunManifest, **options: Any) -> Claim:
        stored = self._stored(run_id)
        if self.known(stored) is None:
            await pause_between_statements(GAP_MS)
            self._data.runs.pop(stored, None)
        return await super().start_or_resume(run_id, manifest, **options)


class TakesByLookingFirst(BrokenStore):
    """A claim reads the lease, and then writes its own over whatever is there by now."""

    locks_rows = False

    async def start_or_resume(self, run_id: str, manifest: RunManifest, **options: Any) -> Claim:
        data = self.known(self._stored(run_id))
        free = data is not None and not transitions.lease_is_live(data.run, self._now())
        await pause_between_statements(GAP_MS)
        data = self.known(self._stored(run_id))
        if free and data is not None and data.run.state == "running":
            data.run = data.run._replace(lease_holder_id=None, lease_expires_at=None)
        return await super().start_or_resume(run_id, manifest, **options)


class EmitsByLookingFirst(BrokenStore):
    locks_rows = False

    async def emit_event(self, run_id: str, key: str, payload: Any) -> tuple[bool, EventRecord]:
        is_new = key not in self._known(run_id).events
        await pause_between_statements(GAP_MS)
        if is_new:
            self._known(run_id).events.pop(key, None)
        return await super().emit_event(run_id, key, payload)


class RenewsWhateverTheState(BrokenStore):
    """A late heartbeat gives a run that is over a lease."""

    async def renew(self, leases: Sequence[Lease], lease_ms: int) -> Mapping[Lease, bool]:
        for lease in leases:
            data = self.known(lease.run_id)
            if data is not None and data.token == lease.token:
                expires_at = transitions.lease_is_live(data.run, self._now())
                holder = data.run._replace(lease_holder_id=lease.worker_id)
                data.run = holder if not expires_at else data.run
        return await super().renew(leases, lease_ms)


class TakesWhatIsOver(BrokenStore):
    """The claim does not look at the state."""

    async def start_or_resume(self, run_id: str, manifest: RunManifest, **options: Any) -> Claim:
        data = self.known(self._stored(run_id))
        if data is not None and data.run.state == "completed":
            data.run = data.run._replace(state="running", status="running")
        return await super().start_or_resume(run_id, manifest, **options)


class KeepsFailedFailed(BrokenStore):
    """A retry says that it was heard, and nothing comes of it."""

    async def enqueue(self, run_id: str, manifest: RunManifest, **options: Any) -> RunRecord:
        return await super().enqueue(run_id, manifest, **{**options, "retry": False})


class DeletesLiveRuns(BrokenStore):
    async def delete(self, run_id: str, *, frames_only: bool = False) -> bool:
        return self._data.runs.pop(self._stored(run_id), None) is not None


class DeletesForStrangers(BrokenStore):
    """Who has no run of that name deletes one of another tenant."""

    async def delete(self, run_id: str, *, frames_only: bool = False) -> bool:
        if self.known(self._stored(run_id)) is not None:
            return await super().delete(run_id, frames_only=frames_only)
        theirs = next((one for one in self._data.runs if one.endswith(f"/{run_id}")), "")
        return self._data.runs.pop(theirs, None) is not None


class FindsNoLapsedLease(BrokenStore):
    """What a dead worker held is never due, and nobody may take it by its name."""

    async def claim_due(self, handlers: Sequence[str], **options: Any) -> Sequence[Claim]:
        claims = await super().claim_due(handlers, **options)
        return [claim for claim in claims if claim.run.strikes == 0]


class ForgetsToWake(BrokenStore):
    """A run that waits for an event goes to sleep though the event is there already."""

    async def emit_event(self, run_id: str, key: str, payload: Any) -> tuple[bool, EventRecord]:
        answer = await super().emit_event(run_id, key, payload)
        data = self._known(run_id)
        if data.run.state == "waiting":
            data.run = data.run._replace(wake_at=None)
        return answer


# Faults of the worker.


class RedoesWhatIsRecorded(Attempt):
    def run(self) -> Any:
        self.history = {}
        return super().run()


class MarksNoAttempt(Attempt):
    """A new attempt goes on in the output of the lost one."""

    def begin_again(self) -> Any:
        yield Sleep(0)


class TellsBeforeItEnds(Attempt):
    """The hook is called, and then the end is committed."""

    def end(self) -> Any:
        self.worker.checks.told(self.lease.run_id, f"{self.lease.run_id}:persist")
        yield from super().end()


class AddsDeliveriesLater(Attempt):
    """The outbox is filled behind the transaction that ends the run."""

    def end(self) -> Any:
        answer, _, end = self.ending()
        yield from self.worker.write(self.lease, self.say(), answer, end)


class EndsBeforeItAnswers(Attempt):
    """The answer and the end are two transactions, the end first."""

    def end(self) -> Any:
        row = self.say()
        answer, delivery, end = self.ending()
        yield from self.worker.write(self.lease, row, delivery, end)
        yield from self.worker.write(self.lease, answer)


class ForgetsWhatItSaid(Attempt):
    """What the answer is made of is not what readers were shown."""

    def begin_again(self) -> Any:
        yield from super().begin_again()
        self.text = "".join(str(result) for result in self.history)


class OutcomeWithoutResults(Attempt):
    def ending(self) -> tuple[Change, ...]:
        answer, delivery, _ = super().ending()
        outcome = json.dumps({"results": self.results[:-1]})
        return answer, delivery, EndRun("completed", outcome_text=outcome)


class SettlesNoCalls(Worker):
    """What a call has cost is lost: its intent is recorded, and nothing behind it."""

    def write(self, lease: Lease, *changes: Change) -> Any:
        kept = (change for change in changes if not isinstance(change, SettleUsage))
        return super().write(lease, *kept)


def playing(attempt_class: type[Attempt]) -> type[Worker]:
    """Return a worker whose attempts are of this class."""
    return type(f"Worker{attempt_class.__name__}", (Worker,), {"attempt": attempt_class})


class TakesLostAnswersForFailures(Worker):
    """A write whose answer is lost is done again as another one."""

    def write(self, lease: Lease, *changes: Change) -> Any:
        def observe(written: Written) -> None:
            self.checks.written(lease, written)

        try:
            return (yield Call(lease.run_id, lambda: self.store.write(lease, *changes), observe))
        except StoreUnavailableError:
            return (yield from super().write(lease, *(_renamed(change) for change in changes)))


def _renamed(change: Change) -> Change:
    if isinstance(change, AppendFrames):
        ahead = change.last_seq + 1 - change.first_seq
        return change._replace(first_seq=change.first_seq + ahead, last_seq=change.last_seq + ahead)
    return change


class CountsNobodysStrikes(Worker):
    """A run that kills its workers is begun again and again."""

    strikes_max = 1_000


class SettlesBeforeItTells(Worker):
    """A delivery is settled first, and the product is told if there is time."""

    def tell(self, delivery: Any) -> Any:
        yield from self.settle(delivery)
        yield Sleep(3_000)
        self.checks.told(delivery.run_id, delivery.key)


STORES = (
    broken_stores.IgnoresTheFence,
    broken_stores.FencesByTheNameOfTheWorker,
    broken_stores.FencesByTheEpochAlone,
    broken_stores.RenewsForStrangers,
    broken_stores.OverwritesCompletedSteps,
    broken_stores.CountsNoStrikes,
    broken_stores.GivesALiveLeaseToItsNamesake,
    broken_stores.WritesWhenItReplays,
    broken_stores.LetsTheLastEmitWin,
    broken_stores.WaitsForWhatIsThere,
    broken_stores.LetsTenantsIn,
    FencesNoResults,
    FencesNoEnds,
    FencesNoFrames,
    ReleasesWithoutAnEpoch,
    FencesByExpiryAlone,
    LooksBeforeItLocks,
    GuardsTheFirstChangeOnly,
    StartsByLookingFirst,
    TakesByLookingFirst,
    EmitsByLookingFirst,
    RenewsWhateverTheState,
    TakesWhatIsOver,
    KeepsFailedFailed,
    DeletesLiveRuns,
    DeletesForStrangers,
    FindsNoLapsedLease,
    ForgetsToWake,
)
ATTEMPTS = (
    RedoesWhatIsRecorded,
    MarksNoAttempt,
    TellsBeforeItEnds,
    AddsDeliveriesLater,
    EndsBeforeItAnswers,
    ForgetsWhatItSaid,
    OutcomeWithoutResults,
)
WORKERS = (
    TakesLostAnswersForFailures,
    CountsNobodysStrikes,
    SettlesBeforeItTells,
    SettlesNoCalls,
)
RARE: Mapping[type, int] = {
    broken_stores.FencesByTheEpochAlone: 6_814,
    broken_stores.CountsNoStrikes: 1_289,
    broken_stores.LetsTenantsIn: 2_421,
    ReleasesWithoutAnEpoch: 1_445,
    LooksBeforeItLocks: 1_082,
    TakesLostAnswersForFailures: 3_159,
    CountsNobodysStrikes: 1_289,
}

PLANTED = (
    *(Planted(one.__name__, Cast(store=one), RARE.get(one, 0)) for one in STORES),
    *(Planted(one.__name__, Cast(worker=playing(one))) for one in ATTEMPTS),
    *(Planted(one.__name__, Cast(worker=one), RARE.get(one, 0)) for one in WORKERS),
    Planted("AsksTheClockOfTheWorker", Cast(skews=True)),
)
