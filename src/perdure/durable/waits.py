"""Waiting without holding a worker: how a run sleeps, or waits for an event."""

from __future__ import annotations

import asyncio
import logging
from typing import Final, NoReturn

from perdure.core.changes import BeginStep, Change, CompleteStep, FailStep, Suspend
from perdure.core.effects import epoch_ms, iso_time
from perdure.core.jsonvalue import encode_value
from perdure.core.records import EventRecord, JsonValue, RunRecord, Written
from perdure.durable.attempt import Attempt, patiently
from perdure.durable.failures import failure_of, failure_text
from perdure.durable.steps import Steps, StepScope, StepSpec
from perdure.durable.untorn import finish_even_if_cancelled
from perdure.errors import (
    AwaitEventTimeoutError,
    DivergenceError,
    LeaseLostError,
    StoreError,
)

logger = logging.getLogger("perdure.waits")

POLL_MS: Final = 1_000
"""Hints may be lost, so whoever waits looks by himself at least this often."""
_TOO_SHORT_MS: Final = 50
"""Giving the lease back for less than this costs more than it frees."""


class Suspended(BaseException):
    """The run is asleep and this worker is done with it: let it pass, do not catch it.

    Not an Exception, so that `except Exception` in a task does not swallow it. After `wait_ms`
    it becomes due by itself; None: never.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.wait_ms: int | None = None


class Wait:
    """One wait at one position of a run: for a moment, for an event, or for the first of both.

    `unwinds`: a wait that gives the lease back ends the attempt, since a worker has other work.
    Otherwise it waits in place and claims the run again; so does any step that begins meanwhile.
    """

    def __init__(
        self,
        steps: Steps,
        spec: StepSpec,
        *,
        key: str | None,
        length_ms: int | None,
        unwinds: bool,
    ) -> None:
        self.position = spec.position
        self._steps = steps
        self._spec = spec
        self._key = key
        self._length_ms = length_ms
        self._unwinds = unwinds
        self._begun_ms: int | None = None
        """When the wait was first begun, on the store's clock: its deadline counts from there."""

    async def run(self) -> JsonValue:
        """Return the payload of the event, or None when the time is over.

        Raises AwaitEventTimeoutError, which is final, when the event did not come in time, and
        Suspended where a worker should go on with other work.
        """
        try:
            known = self._steps.history.get(self._spec.position)
            if known is not None and await self._steps.replayed(known, self._spec):
                return known.result
            attempt = await self._steps.working(self._spec, known)
            if known is not None and known.started_at is not None:
                self._begun_ms = epoch_ms(known.started_at)
            await self._pass(attempt)
            return await self._finish(attempt)
        except asyncio.CancelledError:
            recorded = await self._steps.cancelled(self._spec, StepScope(self._steps, self._spec))
            if recorded is None:
                raise
            return recorded.result
        except StoreError as error:
            self._steps.refuse(error)
            raise
        finally:
            self._steps.answered(self._spec)

    async def _pass(self, attempt: Attempt) -> None:
        """Return when the wait is over, whoever has the lease until then."""
        while not await self._is_over(attempt):
            if attempt.is_asleep:
                await self._look_while_asleep(attempt)
            elif self._may_give_the_lease_back(attempt):
                await self._suspend(attempt)
            else:
                await self._begin(attempt)
                attempt.check()
                await self._pause(attempt)

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
        key = self._key
        if key is None:
            return None
        return await patiently(
            lambda: attempt.store.load_event(attempt.run.run_id, key), for_ms=attempt.lease_ms
        )

    async def _is_over(self, attempt: Attempt) -> bool:
        """The event is looked for before the clock: one that is there wins over any time-out."""
        if await self._event(attempt) is not None:
            return True
        remaining_ms = self._remaining_ms(attempt)
        return remaining_ms is not None and remaining_ms <= 0

    async def _finish(self, attempt: Attempt) -> JsonValue:
        spec = self._spec
        await self._steps.awake(attempt)
        event = await self._event(attempt)
        if self._key is not None and event is None:
            error = AwaitEventTimeoutError(
                f"no event {self._key!r} arrived within {self._length_ms} ms", intent=spec.intent
            )
            text = failure_text(error, taken=spec.position + 1)
            failed = FailStep(spec.position, spec.intent, text, kind=spec.kind)
            raise failure_of(await self._steps.write_failure(attempt, failed))
        text = encode_value(None if event is None else event.payload, name="payload")
        begun_at = None if self._begun_ms is None else iso_time(self._begun_ms)
        done = CompleteStep(
            spec.position,
            spec.intent,
            text,
            kind=spec.kind,
            started_at=begun_at,
            is_begun=begun_at is not None,
        )
        try:
            written = await self._steps.commit(attempt, done)
        except (LeaseLostError, StoreError, DivergenceError) as error:
            self._steps.refuse(error)
            raise
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
            await self._steps.write(attempt, *begin)
            self._begun_ms = attempt.store_now_ms

    async def _pause(self, attempt: Attempt) -> None:
        """Let some time pass, at most until there is something to see."""
        remaining_ms = self._remaining_ms(attempt)
        pause_ms = POLL_MS if remaining_ms is None else max(1, min(POLL_MS, remaining_ms))
        if self._key is not None:
            try:
                await attempt.store.wait_for_change(attempt.run.run_id, timeout_ms=pause_ms)
                return
            except StoreError as error:
                logger.info("run %r waits without hints: %s", attempt.run.run_id, error)
        await asyncio.sleep(pause_ms / 1_000)

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
        if self._unwinds:
            await self._unwind(attempt, *begin, suspend)
        else:
            await self._steps.doze(attempt, *begin, suspend)

    async def _unwind(self, attempt: Attempt, *changes: Change) -> NoReturn:
        suspended = Suspended(f"the run {attempt.run.run_id!r} is asleep")
        self._steps.refuse(suspended)
        written = await finish_even_if_cancelled(self._leave(attempt, *changes))
        if written.wake_at is not None:
            suspended.wait_ms = max(0, epoch_ms(written.wake_at) - attempt.store_now_ms)
        self._steps.unwind()
        raise suspended

    async def _leave(self, attempt: Attempt, *changes: Change) -> Written:
        try:
            return await attempt.leave(*changes)
        except Exception as error:
            self._steps.refusal = error
            raise

    async def _look_while_asleep(self, attempt: Attempt) -> None:
        """Wait a while; claim the run again if it does not just sleep any more."""
        await self._pause(attempt)
        run = await patiently(
            lambda: attempt.store.read_run(attempt.run.run_id), for_ms=attempt.lease_ms
        )
        if attempt.is_asleep and not _is_undisturbed(run, attempt.lease.epoch):
            await self._steps.awake(attempt)


def _is_undisturbed(run: RunRecord | None, epoch: int) -> bool:
    if run is None or run.state not in ("sleeping", "waiting"):
        return False
    return run.epoch == epoch and run.stop_requested_at is None
