"""Waiting without holding a worker: how a run sleeps, or waits for an event."""

from __future__ import annotations

from typing import Final

from perdure.core.changes import BeginStep, CompleteStep, FailStep, Suspend
from perdure.core.effects import epoch_ms, iso_time
from perdure.core.jsonvalue import encode_value
from perdure.core.recordjson import step_error_of
from perdure.core.records import Claim, EventRecord, JsonValue, StepRecord
from perdure.durable.attempt import Attempt, error_text
from perdure.durable.steps import Steps, StepSpec
from perdure.errors import (
    AwaitEventTimeoutError,
    LeaseHeldError,
    LeaseLostError,
    RunParkedError,
    RunStoppedError,
)

POLL_MS: Final = 1_000
"""Hints may be lost, so whoever waits looks by himself at least this often."""
_TOO_SHORT_MS: Final = 50
"""Giving the lease back for less than this costs more than it frees."""


class Suspended(BaseException):
    """The run is asleep and this worker is done with it: let it pass, do not catch it.

    Not an Exception, so that `except Exception` in a task does not swallow it. After `wait_ms`
    it becomes due by itself; None: never.
    """

    def __init__(self, message: str, wait_ms: int | None) -> None:
        super().__init__(message)
        self.wait_ms = wait_ms


class Wait:
    """One wait at one position of a run: for a moment, for an event, or for the first of both."""

    def __init__(
        self,
        steps: Steps,
        spec: StepSpec,
        *,
        key: str | None,
        length_ms: int | None,
        unwinds: bool,
    ) -> None:
        self._steps = steps
        self._spec = spec
        self._key = key
        self._length_ms = length_ms
        self._unwinds = unwinds
        self._begun_ms: int | None = None

    async def run(self) -> JsonValue:
        """Return the payload of the event, or None when the time is over.

        Raises AwaitEventTimeoutError, which is final, when the event did not come in time, and
        Suspended where a worker should go on with other work.
        """
        try:
            known = self._steps.history.get(self._spec.position)
            if known is not None and self._steps.replays(known, self._spec):
                return known.result
            await self._resume(known)
            return await self._finish()
        finally:
            self._steps.unanswered -= 1

    async def _resume(self, known: StepRecord | None) -> None:
        """Come back to a wait that has begun, or begin it; it is never begun twice."""
        attempt = await self._steps.working(self._spec, known)
        if known is not None and known.started_at is not None:
            self._begun_ms = epoch_ms(known.started_at)
        while not await self._is_over(attempt):
            if self._may_give_the_lease_back(attempt):
                await self._suspend(attempt)
            else:
                await self._begin(attempt)
                await self._watch(attempt)

    # What is waited for.

    @property
    def _deadline_ms(self) -> int | None:
        if self._length_ms is None or self._begun_ms is None:
            return None
        return self._begun_ms + self._length_ms

    def _remaining_ms(self, attempt: Attempt) -> int | None:
        if self._length_ms is None:
            return None
        if self._deadline_ms is None:
            return self._length_ms
        return self._deadline_ms - attempt.store_now_ms

    async def _event(self, attempt: Attempt) -> EventRecord | None:
        if self._key is None:
            return None
        return await attempt.store.load_event(attempt.run.run_id, self._key)

    async def _is_over(self, attempt: Attempt) -> bool:
        """The event is looked for before the clock: one that is there wins over any time-out."""
        if await self._event(attempt) is not None:
            return True
        remaining_ms = self._remaining_ms(attempt)
        return remaining_ms is not None and remaining_ms <= 0

    async def _finish(self) -> JsonValue:
        spec = self._spec
        attempt = await self._steps.working(spec, None)
        event = await self._event(attempt)
        if self._key is not None and event is None:
            error = AwaitEventTimeoutError(
                f"no event {self._key!r} arrived within {self._length_ms} ms", intent=spec.intent
            )
            text = error_text(step_error_of(error))
            await attempt.write(FailStep(spec.position, spec.intent, text, kind=spec.kind))
            raise error
        payload = None if event is None else event.payload
        text = encode_value(payload, name="payload")
        begun_at = None if self._begun_ms is None else iso_time(self._begun_ms)
        done = CompleteStep(
            spec.position, spec.intent, text, kind=spec.kind, started_at=begun_at
        )
        written = await attempt.write(done)
        return written.steps[0].result

    # How the time is spent.

    def _may_give_the_lease_back(self, attempt: Attempt) -> bool:
        """Only if this is all that the run is doing, and if it takes long enough."""
        remaining_ms = self._remaining_ms(attempt)
        long_enough = remaining_ms is None or remaining_ms > _TOO_SHORT_MS
        return self._steps.unanswered == 1 and long_enough

    def _begin_change(self) -> tuple[BeginStep, ...]:
        if self._begun_ms is not None:
            return ()
        spec = self._spec
        return (BeginStep(spec.position, spec.intent, kind=spec.kind),)

    async def _begin(self, attempt: Attempt) -> None:
        begin = self._begin_change()
        if begin:
            await attempt.write(*begin)
            self._begun_ms = attempt.store_now_ms

    async def _watch(self, attempt: Attempt) -> None:
        """Keep the lease and look again after a while."""
        attempt.check()
        remaining_ms = self._remaining_ms(attempt)
        pause_ms = POLL_MS if remaining_ms is None else max(1, min(POLL_MS, remaining_ms))
        await attempt.store.wait_for_change(attempt.run.run_id, timeout_ms=pause_ms)

    async def _suspend(self, attempt: Attempt) -> None:
        """Give the lease back, in the commit that records the wait."""
        begin, deadline_ms = self._begin_change(), self._deadline_ms
        suspend = Suspend(
            "sleeping" if self._key is None else "waiting",
            wake_at=None if deadline_ms is None else iso_time(deadline_ms),
            wake_in_ms=self._length_ms if deadline_ms is None else None,
            wake_key=self._key,
        )
        if begin:
            self._begun_ms = attempt.store_now_ms
        written = await attempt.leave(*begin, suspend)
        if self._unwinds:
            message = f"the run {attempt.run.run_id!r} is asleep"
            self._steps.refusal = Suspended(message, _until(attempt, written.wake_at))
            raise self._steps.refusal
        await self._wait_unleased(attempt)
        await self._claim_again(attempt)

    async def _wait_unleased(self, attempt: Attempt) -> None:
        store, run_id = attempt.store, attempt.run.run_id
        while not await self._is_over(attempt):
            run = await store.read_run(run_id)
            asleep = run is not None and run.state in ("sleeping", "waiting")
            if not asleep or run is None or run.stop_requested_at is not None:
                return
            remaining_ms = self._remaining_ms(attempt)
            pause_ms = POLL_MS if remaining_ms is None else max(1, min(POLL_MS, remaining_ms))
            await store.wait_for_change(run_id, timeout_ms=pause_ms)

    async def _claim_again(self, attempt: Attempt) -> None:
        run = attempt.run
        assert run.manifest is not None
        try:
            claim = await attempt.store.start_or_resume(
                run.run_id,
                run.manifest,
                worker_id=attempt.lease.worker_id,
                lease_ms=attempt.lease_ms,
            )
        except LeaseHeldError as error:
            raise LeaseLostError(
                f"another worker went on with run {run.run_id!r} while it was asleep"
            ) from error
        if claim.lease is None:
            raise gone(claim)
        attempt.readopt(claim)
        known = attempt.history.get(self._spec.position)
        if known is not None and known.started_at is not None:
            self._begun_ms = epoch_ms(known.started_at)


def _until(attempt: Attempt, wake_at: str | None) -> int | None:
    return None if wake_at is None else max(0, epoch_ms(wake_at) - attempt.store_now_ms)


def gone(claim: Claim) -> Exception:
    """Return what the owner of a run is told who finds that it ended without him."""
    run = claim.run
    if run.state == "stopped":
        return RunStoppedError(f"the run {run.run_id!r} was stopped")
    if run.state == "parked":
        return RunParkedError(f"the run {run.run_id!r} is parked: {run.reason}")
    return LeaseLostError(f"the run {run.run_id!r} was ended by another worker")
