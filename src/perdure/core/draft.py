"""One fenced write, staged beside the run until all of its changes turned out legal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from perdure.core import transitions
from perdure.core.changes import (
    AddDelivery,
    AppendFrames,
    BeginStep,
    Change,
    CompleteStep,
    EndRun,
    FailStep,
    IntendUsage,
    Release,
    Restart,
    SaveHandle,
    SettleUsage,
    Suspend,
)
from perdure.core.effects import epoch_ms, iso_time
from perdure.core.jsonvalue import decode_value
from perdure.core.recordjson import step_error_from_json
from perdure.core.records import DeliveryRecord, Lease, StepRecord, StepStatus, UsageRecord, Written
from perdure.core.rundata import FrameRow, RunData
from perdure.errors import DivergenceError, LeaseLostError, StoreCorruptError

_SECOND: Final = len("2026-01-01T00:00:00")
LEAVING: Final = (Suspend, Release, EndRun)
"""The changes that give the lease back."""


def write(data: RunData, lease: Lease, changes: Sequence[Change], now: str) -> Written:
    """Apply `changes` to `data`, all or nothing; `RunStore.write` is the contract.

    The run that is told behind an end is filled in by the store, which knows its owner.
    """
    if _ended_by(data, lease) and ends(changes):
        return Written(steps=_stored_steps(data, changes))
    draft = Draft(data, lease, now)
    # What takes the lease away stands last, whatever the order of the changes.
    for change in sorted(changes, key=_leaves) if len(changes) > 1 else changes:
        draft.apply(change)
    if changes and all(type(change) is AppendFrames for change in changes):
        draft.note_second()
    draft.commit()
    run = data.run
    return Written(
        steps=[data.step(position) for position in draft.written],
        stop_requested=run.stop_requested_at is not None,
        wake_at=run.wake_at if draft.suspends else None,
    )


def _leaves(change: Change) -> bool:
    return isinstance(change, LEAVING)


def ends(changes: Sequence[Change]) -> bool:
    """Return whether a write ends its run."""
    return EndRun in map(type, changes)


def _ended_by(data: RunData, lease: Lease) -> bool:
    """Return whether this very attempt ended the run: then a repeated end is a lost reply."""
    run = data.run
    ended = run.state in transitions.ENDED_STATES
    return ended and run.epoch == lease.epoch and data.token == lease.token


def _stored_steps(data: RunData, changes: Sequence[Change]) -> list[StepRecord]:
    return [
        data.step(change.position)
        for change in changes
        if isinstance(change, CompleteStep | FailStep) and change.position in data.steps
    ]


def fence_holds(data: RunData | None, lease: Lease) -> bool:
    """Return whether a write under `lease` may happen: epoch, token, holder and status."""
    return (
        data is not None
        and data.run.status == "running"
        and data.run.epoch == lease.epoch
        and data.token == lease.token
        and data.run.lease_holder_id == lease.worker_id
    )


class Draft:
    """The changes of one write, staged beside the run until all of them turned out legal."""

    def __init__(self, data: RunData, lease: Lease, now: str) -> None:
        if not fence_holds(data, lease):
            raise LeaseLostError(f"the lease on run {lease.run_id!r} is lost")
        self.data = data
        self.lease = lease
        self.now = now
        self.run = data.run
        self._changed: dict[str, Any] = {"updated_at": now}
        """What of the run is another at last; a record of so many fields is not copied for each."""
        self.written: list[int] = []
        self.suspends = False
        self._steps: dict[int, tuple[StepRecord, str | None]] = {}
        self._rows: list[FrameRow] = []
        self._deliveries: dict[int, tuple[DeliveryRecord, str]] = {}
        self._usage: list[IntendUsage | SettleUsage] = []
        self._outcome_text = data.outcome_text
        self._upstream_text = data.upstream_text
        self._attempt = data.attempts[lease.epoch]

    def apply(self, change: Change) -> None:
        """Stage one change. Raises DivergenceError or StoreCorruptError; nothing is stored yet."""
        match change:
            case BeginStep():
                self._begin(change)
            case CompleteStep() | FailStep():
                self._settle_step(change)
            case AppendFrames() | Restart():
                self._append(change)
            case AddDelivery():
                self._add_delivery(change)
            case SaveHandle():
                self._upstream_text = change.handle_text
            case IntendUsage() | SettleUsage():
                self._usage.append(change)
            case Suspend() | Release() | EndRun():
                self._leave(change)

    def note_second(self) -> None:
        """Let the moment of the run be where it is, if that is in this very second."""
        if self.run.updated_at[:_SECOND] == self.now[:_SECOND]:
            del self._changed["updated_at"]

    def commit(self) -> None:
        """Make the staged changes those of the run."""
        data = self.data
        data.run = self.run._replace(**self._changed)
        data.outcome_text = self._outcome_text
        data.upstream_text = self._upstream_text
        for position, (step, text) in self._steps.items():
            data.steps[position] = step
            if text is None:
                data.step_texts.pop(position, None)
            else:
                data.step_texts[position] = text
        data.rows.extend(self._rows)
        for position, (delivery, payload_text) in self._deliveries.items():
            data.deliveries[position] = delivery
            data.delivery_texts[position] = payload_text
        data.attempts[self.lease.epoch] = self._attempt
        for change in self._usage:
            if isinstance(change, IntendUsage):
                self._intend(change)
            else:
                data.settle(self.lease, change, self.now)

    def _known_step(self, position: int) -> StepRecord | None:
        staged = self._steps.get(position)
        return staged[0] if staged else self.data.steps.get(position)

    def _step_for(self, change: BeginStep | CompleteStep | FailStep) -> StepRecord | None:
        known = self._known_step(change.position)
        if known is not None and known.intent != change.intent:
            raise DivergenceError(
                f"step {change.position} of run {self.run.run_id!r} is recorded as "
                f"{known.intent!r}, not as {change.intent!r}"
            )
        if change.position >= self._changed.get("step_count", self.run.step_count):
            self._changed["step_count"] = change.position + 1
        return known

    def _begin(self, change: BeginStep) -> None:
        known = self._step_for(change)
        if known is not None and known.status == "completed":
            return
        if known is None:
            begun = self._fresh_step(change)
        else:
            begun = known._replace(
                status="running",
                attempts=change.tries,
                started_at=self.now,
                completed_at=None,
                error=None,
                epoch=self.lease.epoch,
            )
        self._steps[change.position] = (begun, None)

    def _settle_step(self, change: CompleteStep | FailStep) -> None:
        known = self._step_for(change)
        self.written.append(change.position)
        if isinstance(change, CompleteStep):
            self._changed["strikes"] = 0
        if known is not None and known.status == "completed":
            if isinstance(change, FailStep) and change.beside_result:
                self._keep_beside_result(known, change)
            return
        fresh = known or self._fresh_step(change)
        status: StepStatus = "failed"
        frames_to = fresh.frames_to
        if isinstance(change, CompleteStep):
            status, text, frames_to = "completed", change.result_text, change.frames_to
        else:
            text = change.error_text
        settled = fresh._replace(
            status=status,
            attempts=change.tries,
            completed_at=self.now,
            epoch=self.lease.epoch,
            frames_to=frames_to,
        )
        self._steps[change.position] = (settled, text)

    def _keep_beside_result(self, known: StepRecord, change: FailStep) -> None:
        error = step_error_from_json(decode_value(change.error_text))
        staged = self._steps.get(change.position)
        text = staged[1] if staged else self.data.step_texts.get(change.position)
        self._steps[change.position] = (known._replace(error=error), text)

    def _fresh_step(self, change: BeginStep | CompleteStep | FailStep) -> StepRecord:
        started_at = self.now if isinstance(change, BeginStep) else change.started_at
        return StepRecord(
            run_id=self.run.run_id,
            step_index=change.position,
            intent=change.intent,
            kind=change.kind,
            status="running",
            attempts=change.tries,
            input_hash=change.input_hash,
            started_at=started_at,
            epoch=self.lease.epoch,
            effect=change.effect,
        )

    def _append(self, change: AppendFrames | Restart) -> None:
        last = self._rows[-1].last_seq if self._rows else self.data.next_seq - 1
        row = FrameRow(change.first_seq, change.last_seq, self.lease.epoch, change.body)
        if change.first_seq == last + 1 and change.last_seq >= change.first_seq:
            self._rows.append(row)
        elif row not in self.data.rows:
            raise StoreCorruptError(
                f"frames from seq {change.first_seq} do not follow the last stored seq {last} "
                f"of run {self.run.run_id!r}"
            )
        if isinstance(change, Restart):
            self._changed["live_from"] = change.first_seq

    def _add_delivery(self, change: AddDelivery) -> None:
        if change.position in self.data.deliveries or change.position in self._deliveries:
            return
        delivery = DeliveryRecord(
            run_id=self.lease.run_id,
            tenant=self.run.tenant,
            position=change.position,
            topic=change.topic,
            handler=change.handler,
            key=change.key,
            payload=None,
            due_at=self.now,
            created_at=self.now,
        )
        self._deliveries[change.position] = (delivery, change.payload_text)

    def _intend(self, change: IntendUsage) -> None:
        key = (self.lease.epoch, change.call)
        if key in self.data.usage:
            return
        self.data.usage_tokens[key] = self.lease.token
        self.data.usage[key] = UsageRecord(
            epoch=self.lease.epoch,
            call=change.call,
            state="intended",
            step_index=change.step_index,
            provider=change.provider,
            model=change.model,
            intended_at=self.now,
        )

    def _leave(self, change: Suspend | Release | EndRun) -> None:
        run, now = self.run, self.now
        error_text: str | None = None
        if isinstance(change, Release):
            self.run, how = transitions.released(run, now), change.reason
        elif isinstance(change, EndRun):
            self.run = transitions.ended(run, change.state, now=now, reason=change.reason)
            self._outcome_text = change.outcome_text
            how, error_text = change.state, change.error_text
        else:
            self.suspends = True
            self.run = transitions.suspended(
                run,
                change.state,
                now=now,
                wake_at=self._wake_at(change),
                wake_key=change.wake_key,
                reason=change.reason,
            )
            how, error_text = change.state, change.error_text
        error = None if error_text is None else step_error_from_json(decode_value(error_text))
        self._attempt = self._attempt._replace(ended_at=now, ended=how, error=error)

    def _wake_at(self, change: Suspend) -> str | None:
        if change.wake_key is not None and change.wake_key in self.data.events:
            return self.now
        if self.run.stop_requested_at is not None and change.state != "parked":
            return self.now  # Else a stop that came just before would sleep with the run.
        if change.wake_in_ms is not None:
            return iso_time(epoch_ms(self.now) + change.wake_in_ms)
        return change.wake_at
