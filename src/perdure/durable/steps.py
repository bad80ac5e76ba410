"""Executing a step once and replaying it ever after: the rules for one position of a run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, cast

from perdure.core import billing, effects
from perdure.core.changes import Change, CompleteStep, FailStep, IntendUsage, SettleUsage
from perdure.core.jsonvalue import encode_value
from perdure.core.records import JsonValue, StepRecord, Written
from perdure.durable.attempt import Attempt, started_at
from perdure.durable.calls import is_cancelled
from perdure.durable.failures import (
    abandoned_text,
    failure_of,
    failure_text,
    interrupted,
    is_abandoned,
    is_settled,
    is_unfinished,
    was_retried,
)
from perdure.durable.positions import Positions
from perdure.durable.scope import StepScope as StepScope
from perdure.durable.scope import StepSpec as StepSpec
from perdure.durable.scope import call_body, current_scope
from perdure.durable.scope import current_step as current_step
from perdure.durable.scope import inside as inside
from perdure.durable.scope import report_usage as report_usage
from perdure.durable.untorn import finish_regardless
from perdure.errors import (
    DivergenceError,
    LeaseLostError,
    PerdureError,
    StepFailedError,
    StoreError,
)

logger = logging.getLogger("perdure.steps")

T = TypeVar("T")

_CANCELLED = "the task cancelled this step"


class Steps(Positions):
    """Each position of one run, executed once and recorded, or replayed.

    With an `attempt`, unknown steps are executed and recorded; without one (a finished run) they
    only replay.
    """

    def run(self, spec: StepSpec, body: Callable[[], Awaitable[T] | T]) -> Coroutine[Any, Any, T]:
        """Return what the step at `spec.position` recorded, or execute `body` and record it."""
        call = self._run(spec, body)
        self._calls.watch(call, spec.position)
        return call

    async def _run(self, spec: StepSpec, body: Callable[[], Awaitable[T] | T]) -> T:
        try:
            attempt = self.attempt
            # Hardly anything else is done for each step of a long history.
            known = (self._history if attempt is None else attempt.history).get(spec.position)
            if known is not None and self.replays(known, spec):
                if known.error is not None:
                    await self._relive(known)
                return cast(T, known.result)
            scope = StepScope(self, spec)
            if known is not None:
                scope.tries, scope.is_begun = known.attempts, True
            try:
                attempt = await self.working(spec, known)
                return await self._execute(attempt, scope, body)
            except asyncio.CancelledError:
                recorded = await self.cancelled(spec, scope)
                if recorded is None:
                    raise
                return cast(T, recorded.result)
        finally:
            self.answered(spec)

    # Replaying.

    async def replayed(self, known: StepRecord, spec: StepSpec) -> bool:
        """Return whether the recorded step is completed, when its call may return.

        Raises DivergenceError for another step.
        """
        is_completed = self.replays(known, spec)
        if is_completed and known.error is not None:
            await self._relive(known)
        return is_completed

    async def _relive(self, known: StepRecord) -> None:
        """Wait for the cancellation that came while the result of this step was recorded, if any.

        Whoever was cancelled kept it back, as he does now; but it may be what the asyncio task
        that waits for several steps went by.
        """
        if not self._is_abandoned(known):
            return
        self._calls.works(known.step_index)
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            if self._is_interrupted():
                raise
            self._calls.owe_cancellation()

    async def working(self, spec: StepSpec, known: StepRecord | None) -> Attempt:
        """Return the attempt under which the step may be executed.

        Raises what a step recorded that may not be executed again, and DivergenceError in a
        finished run.
        """
        self._calls.works(spec.position)
        if known is not None and self._is_abandoned(known):
            logger.debug("%r waits to be cancelled as it was before", spec.intent)
            await asyncio.get_running_loop().create_future()
        if known is not None and known.status == "failed" and await self._is_final(known):
            raise failure_of(known)
        if self.attempt is None:
            raise self.diverged(
                spec,
                f"the run is finished, but the task asks for a step {spec.intent!r} at position "
                f"{spec.position}, which was never completed",
            )
        attempt = self.attempt
        if attempt.is_asleep:
            await self.awake(attempt)
        else:
            attempt.check()
        if known is not None and await self._is_in_doubt(attempt, known, spec):
            raise await self._give_up(attempt, known)
        return attempt

    async def awake(self, attempt: Attempt) -> Attempt:
        """Return the attempt with its lease, which a wait may have given back for a while."""
        if attempt.is_asleep:
            try:
                await attempt.wake()
            except PerdureError as error:
                self.refuse(error)
                raise
        attempt.check()
        return attempt

    async def _is_final(self, known: StepRecord) -> bool:
        if self.attempt is None or is_settled(known, last_position=max(self.history)):
            return True
        return is_unfinished(known) and not await self._was_retried(self.attempt, known)

    async def _is_in_doubt(self, attempt: Attempt, known: StepRecord, spec: StepSpec) -> bool:
        """Return whether the step may have taken its one effect, and nobody asked for a retry."""
        if (known.effect or spec.effect) != "at_most_once":
            return False
        if is_abandoned(known):
            return not await self._was_retried(attempt, known)
        return known.status == "running"

    async def _was_retried(self, attempt: Attempt, known: StepRecord) -> bool:
        try:
            details = await attempt.store.read_details(attempt.run.run_id)
        except StoreError as error:
            self.refuse(error)
            raise
        return was_retried(known, details.attempts)

    async def _give_up(self, attempt: Attempt, known: StepRecord) -> StepFailedError:
        failed = interrupted(known, taken=await self._taken())
        return failure_of(await self.write_failure(attempt, failed))

    # Being cancelled.

    async def cancelled(self, spec: StepSpec, scope: StepScope) -> StepRecord | None:
        """Record that the task itself cancelled the call at this position.

        Return the step if its result was recorded before: then that is its answer, since a replay
        gives the same. None: the cancellation goes on. Nothing is recorded of a step whose whole
        attempt is interrupted: the next one executes it again.
        """
        attempt, known = self.attempt, self.history.get(spec.position)
        if attempt is None or (known is not None and self._is_abandoned(known)):
            return None
        if self._is_interrupted() or not is_cancelled():
            await attempt.settle_late(scope.late_usage())
            return None
        try:
            known = await finish_regardless(self._record_cancelled(attempt, scope))
        except PerdureError as error:
            logger.debug("a cancelled step of %r is not recorded: %s", self.stored_id, error)
            return None
        if known.status != "completed" or self._is_interrupted():
            return None
        self._calls.owe_cancellation()
        return known

    async def _record_cancelled(self, attempt: Attempt, scope: StepScope) -> StepRecord:
        await self.awake(attempt)
        text = abandoned_text(_CANCELLED, taken=self._next_position)
        failed = scope.failed(text)._replace(beside_result=True)
        return await self.write_failure(attempt, failed, *scope.settled_usage(), scope=scope)

    def _is_interrupted(self) -> bool:
        """Return whether it is the attempt that is cut off: a stop, a drain, a lost lease."""
        attempt = self.attempt
        if self.refusal is not None or (attempt is not None and attempt.held.lost):
            return True
        if self.attendant is not None and self.attendant.cancelling():
            return True  # With all tasks of an event loop that shuts down.
        return attempt is not None and attempt.is_over and not attempt.is_asleep

    def _is_abandoned(self, known: StepRecord) -> bool:
        """Return whether the step was cancelled, and the task went on without it."""
        if known.status == "running" or not is_abandoned(known):
            return False
        return self.attempt is None or is_settled(known, last_position=max(self.history))

    # Executing.

    async def _execute(
        self, attempt: Attempt, scope: StepScope, body: Callable[[], Awaitable[T] | T]
    ) -> T:
        spec, tries = scope.spec, scope.tries
        last_try = tries + (1 if spec.retry is None else spec.retry.tries_max)
        scope.began_at = started_at(attempt)
        while True:
            scope.tries += 1
            if spec.begins_awaited:
                await self._begin(attempt, scope)
            else:
                attempt.begin_lazily(spec.position, scope.begun)
            try:
                value = await call_body(scope, body)
                text = encode_value(value, name=f"the result of step {spec.intent!r}")
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and is_cancelled():
                    raise
                if self.refusal is not None:
                    # The body made something else of the interruption.
                    raise self.refusal from error
                if scope.tries < last_try and spec.may_retry(error):
                    await self._pause(attempt, scope, error, scope.tries - tries)
                    continue
                raise await self._record_failure(attempt, scope, error) from error
            if self.refusal is not None:
                # The body made a result of the interruption: half of it is none.
                await attempt.settle_late(scope.late_usage())
                raise self.refusal
            return cast(T, await self._record(attempt, scope, text))

    async def _begin(self, attempt: Attempt, scope: StepScope) -> None:
        """Record the begin, and that a call may be billed, before the body runs."""
        begin = scope.begun()
        if scope.spec.kind == "llm":
            scope.usage_call, scope.usage = attempt.usage_calls, None
            scope.asked_for = None
            attempt.usage_calls += 1
            intend = IntendUsage(scope.usage_call, step_index=scope.spec.position)
            await self.write(attempt, begin, intend)
        else:
            await self.write(attempt, begin)

    async def _pause(
        self, attempt: Attempt, scope: StepScope, error: BaseException, failures: int
    ) -> None:
        spec = scope.spec
        logger.info("step %r failed, trying again: %r", spec.intent, error)
        usage = scope.settled_usage()
        if usage:
            await self.write(attempt, *usage)
        await asyncio.sleep(effects.jittered(spec.backoff_ms(failures), 0.25) / 1_000)
        attempt.check()

    async def _record(self, attempt: Attempt, scope: StepScope, text: str) -> JsonValue:
        try:
            done = scope.completed(text)
            written = await self.commit(attempt, done, *scope.settled_usage())
        except (LeaseLostError, StoreError, DivergenceError) as error:
            self.refuse(error)
            await attempt.settle_late(scope.late_usage())
            raise
        return written.steps[0].result

    async def commit(self, attempt: Attempt, done: CompleteStep, *usage: SettleUsage) -> Written:
        """Write a completed step; a turn writes its frames along with it."""
        return await attempt.write(done, *usage)

    async def doze(self, attempt: Attempt, *changes: Change) -> Written:
        """Give the lease back for the time of a wait; a turn writes its frames along with it."""
        return await attempt.doze(*changes)

    async def _record_failure(
        self, attempt: Attempt, scope: StepScope, error: BaseException
    ) -> StepFailedError:
        text = failure_text(error, taken=await self._taken())
        failed = scope.failed(text)
        known = await self.write_failure(attempt, failed, *scope.settled_usage(), scope=scope)
        return failure_of(known)

    async def _taken(self) -> int:
        """Return which position is next, once the asyncio tasks beside this one have asked too.

        A step that fails at once would else look like one that the task went on behind.
        """
        await asyncio.sleep(0)
        return self._next_position

    async def write_failure(
        self,
        attempt: Attempt,
        failed: FailStep,
        *others: Change,
        scope: StepScope | None = None,
    ) -> StepRecord:
        """Record a failure; return the step as it is recorded, now and for every replay."""
        written = await self.write(attempt, failed, *others, scope=scope)
        return written.steps[0]

    async def write(
        self, attempt: Attempt, *changes: Change, scope: StepScope | None = None
    ) -> Written:
        """Write, so that nobody outlives a write that did not happen."""
        try:
            return await attempt.write(*changes)
        except (LeaseLostError, StoreError, DivergenceError) as error:
            self.refuse(error)
            if scope is not None:
                await attempt.settle_late(scope.late_usage())
            raise

    async def record_lost(self, scope: StepScope, provider: str) -> None:
        """Record a request of this step that may be billed and has no answer, as a call of its own.

        The call that the step was begun with is the request that is made in its place.
        """
        attempt, spec = self.attempt, scope.spec
        if attempt is None or spec.kind != "llm":
            return
        call = attempt.usage_calls
        attempt.usage_calls += 1
        intend = IntendUsage(call, step_index=spec.position, provider=provider)
        await self.write(attempt, intend, scope.lost_usage(call))


async def _record_lost(provider: str) -> None:
    scope = current_scope.get()
    if scope is not None and isinstance(scope.owner, Steps):
        await scope.owner.record_lost(scope, provider)


billing.recorder = _record_lost
