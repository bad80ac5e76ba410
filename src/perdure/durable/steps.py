"""Executing a step once and replaying it ever after: the rules for one position of a run."""

from __future__ import annotations

import asyncio
import inspect
import logging
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar, cast

from perdure.core import effects
from perdure.core.changes import BeginStep, Change, CompleteStep, FailStep, IntendUsage, SettleUsage
from perdure.core.jsonvalue import encode_value
from perdure.core.records import JsonValue, StepRecord, Written
from perdure.durable.attempt import Attempt, started_at
from perdure.durable.failures import (
    failure_of,
    failure_text,
    is_settled,
    is_unfinished,
    unfinished,
    was_retried,
)
from perdure.durable.scope import StepScope as StepScope
from perdure.durable.scope import StepSpec as StepSpec
from perdure.durable.scope import call_body, current_scope
from perdure.durable.scope import current_step as current_step
from perdure.durable.scope import inside as inside
from perdure.durable.scope import report_usage as report_usage
from perdure.errors import (
    DivergenceError,
    LeaseLostError,
    NotSerializableError,
    PerdureError,
    StepFailedError,
    StepInputMismatchError,
    StoreError,
    UsageError,
)

logger = logging.getLogger("perdure.steps")

T = TypeVar("T")

AWAITED_KINDS = frozenset({"llm", "tool"})
"""Kinds whose begin is committed before the body runs: it must be visible after a crash."""
_SHOWN_MAX = 20
"""How many positions of both histories a divergence shows."""


class Steps:
    """The positions of one run, taken in the order in which the task asks for them.

    With an `attempt`, unknown steps are executed and recorded; without one (a finished run) they
    only replay.
    """

    def __init__(
        self,
        stored_id: str,
        attempt: Attempt | None,
        history: Mapping[int, StepRecord],
        *,
        first_position: int = 0,
    ) -> None:
        self.stored_id = stored_id
        self.attempt = attempt
        self.refusal: BaseException | None = None
        """Why this attempt may take no more steps; whoever swallowed it meets it again."""
        self.on_unwind: Callable[[], None] | None = None
        """Called when a wait has given the lease away for good: nothing else may go on."""
        self._history = history
        self._next_position = first_position
        self._asked: dict[int, str] = {}
        self._open: dict[int, weakref.ref[Coroutine[Any, Any, Any]] | None] = {}
        """By the position that it took, each call that has not returned."""
        self._working: dict[int, asyncio.Task[object] | None] = {}

    @property
    def history(self) -> Mapping[int, StepRecord]:
        return self._history if self.attempt is None else self.attempt.history

    def take(self) -> int:
        """Return the next position. Raises what ended this attempt, if something did."""
        if self.refusal is not None:
            raise self.refusal
        scope = current_scope.get()
        if scope is not None and scope.owner is self and not scope.holds_steps:
            raise UsageError(
                f"a step was begun inside the body of the step {scope.spec.intent!r}: "
                "call it from the task instead"
            )
        position = self._next_position
        self._next_position += 1
        self._open[position] = None
        return position

    @property
    def unanswered(self) -> int:
        """How many calls took a position and have not returned.

        While there are others, no wait may give the lease away. A call that was cancelled, or
        forgotten, before it began does not count: it never returns.
        """
        for position, call in list(self._open.items()):
            if call is not None and _is_dropped(call()):
                del self._open[position]
        return len(self._open)

    def watched(self, call: Coroutine[Any, Any, T], *positions: int) -> Coroutine[Any, Any, T]:
        """Return the call that answers for these positions, which may be dropped unbegun."""
        for position in positions:
            self._open[position] = weakref.ref(call)
        return call

    def run(self, spec: StepSpec, body: Callable[[], Awaitable[T] | T]) -> Coroutine[Any, Any, T]:
        """Return what the step at `spec.position` recorded, or execute `body` and record it."""
        return self.watched(self._run(spec, body), spec.position)

    async def _run(self, spec: StepSpec, body: Callable[[], Awaitable[T] | T]) -> T:
        try:
            known = self.history.get(spec.position)
            if known is not None and self.replays(known, spec):
                return cast(T, known.result)
            attempt = await self.working(spec, known)
            tries = 0 if known is None else known.attempts
            return await self._execute(attempt, spec, body, tries)
        finally:
            self.answered(spec)

    def refuse(self, reason: BaseException) -> None:
        """Take no more steps: what the task thinks happened is not what is recorded."""
        self.refusal = self.refusal or reason

    def unwind(self) -> None:
        """Interrupt what the task does beside a wait that ended the attempt."""
        waiting = asyncio.current_task()
        if waiting is not None:
            # If nobody awaits the wait any more, its end is no news.
            waiting.add_done_callback(_seen)
        if self.on_unwind is not None:
            self.on_unwind()

    def answered(self, spec: StepSpec) -> None:
        """Note that the call which took this position returns."""
        self._open.pop(spec.position, None)
        self._working.pop(spec.position, None)

    async def close(self) -> None:
        """Cancel what the task left running in asyncio tasks of its own, and wait for it."""
        stragglers = {task for task in self._working.values() if task is not None}
        stragglers.discard(cast("asyncio.Task[object]", asyncio.current_task()))
        for task in stragglers:
            task.cancel()
        if stragglers:
            await asyncio.wait(stragglers)

    # Replaying.

    def replays(self, known: StepRecord, spec: StepSpec) -> bool:
        """Return whether the recorded step is completed. Raises DivergenceError for another."""
        if known.intent != spec.intent:
            raise self.diverged(
                spec,
                f"the task asks for the step {spec.intent!r} at position {spec.position}, "
                f"where {known.intent!r} is recorded",
            )
        if spec.input_hash and known.input_hash and spec.input_hash != known.input_hash:
            self.refusal = StepInputMismatchError(
                f"the step {spec.intent!r} at position {spec.position} was recorded with "
                "another fingerprint"
            )
            raise self.refusal
        self._asked[spec.position] = spec.intent
        return known.status == "completed"

    def diverged(self, spec: StepSpec, message: str) -> DivergenceError:
        """Return the error, with both histories, after which this attempt takes no more steps."""
        asked = {**self._asked, spec.position: spec.intent}
        lines = [f"{'':>6}  recorded | asked for"]
        for position in sorted(asked)[-_SHOWN_MAX:]:
            known = self.history.get(position)
            recorded = "-" if known is None else known.intent
            lines.append(f"{position:>6}  {recorded} | {asked[position]}")
        error = DivergenceError(message)
        error.add_note("\n".join(lines))
        self.refusal = error
        return error

    async def working(self, spec: StepSpec, known: StepRecord | None) -> Attempt:
        """Return the attempt under which the step may be executed.

        Raises what a step recorded that may not be executed again, and DivergenceError in a
        finished run.
        """
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
        self._working[spec.position] = asyncio.current_task()
        interrupted = known is not None and known.status == "running"
        if known is not None and interrupted and (known.effect or spec.effect) == "at_most_once":
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
        if not is_unfinished(known):
            return False
        try:
            details = await self.attempt.store.read_details(self.attempt.run.run_id)
        except StoreError as error:
            self.refuse(error)
            raise
        return not was_retried(known, details.attempts)

    async def _give_up(self, attempt: Attempt, known: StepRecord) -> StepFailedError:
        failed = FailStep(
            known.step_index,
            known.intent,
            failure_text(unfinished(known), taken=self._next_position),
            kind=known.kind,
            tries=known.attempts,
            effect=known.effect,
        )
        return await self.write_failure(attempt, failed)

    # Executing.

    async def _execute(
        self, attempt: Attempt, spec: StepSpec, body: Callable[[], Awaitable[T] | T], tries: int
    ) -> T:
        scope = StepScope(self, spec)
        scope.tries = tries
        last_try = tries + (1 if spec.retry is None else spec.retry.tries_max)
        began_at = started_at(attempt)
        while True:
            scope.tries += 1
            if spec.kind in AWAITED_KINDS or spec.effect == "at_most_once":
                await self._begin(attempt, scope)
            else:
                attempt.begin_lazily(_begin_of(scope))
            try:
                value = await call_body(scope, body)
                text = encode_value(value, name=f"the result of step {spec.intent!r}")
            except asyncio.CancelledError:
                await attempt.settle_late(scope.usage)
                raise
            except Exception as error:
                if self.refusal is not None:
                    # The body made something else of the interruption.
                    raise self.refusal from error
                if scope.tries < last_try and _may_retry(spec, error):
                    await self._pause(attempt, scope, error, scope.tries - tries)
                    continue
                raise await self._record_failure(attempt, scope, error, began_at) from error
            if self.refusal is not None:
                # The body made a result of the interruption: half of it is none.
                await attempt.settle_late(scope.usage)
                raise self.refusal
            return cast(T, await self._record(attempt, scope, text, began_at))

    async def _begin(self, attempt: Attempt, scope: StepScope) -> None:
        """Record the begin, and that a call may be billed, before the body runs."""
        begin = _begin_of(scope)
        if scope.spec.kind == "llm":
            scope.usage_call, scope.usage = attempt.usage_calls, None
            attempt.usage_calls += 1
            intend = IntendUsage(scope.usage_call, step_index=scope.spec.position)
            await self.write(attempt, begin, intend)
        else:
            await self.write(attempt, begin)

    async def _pause(
        self, attempt: Attempt, scope: StepScope, error: Exception, failures: int
    ) -> None:
        spec, retry = scope.spec, scope.spec.retry
        assert retry is not None
        wait_ms = min(retry.backoff_ms * 2 ** min(failures - 1, 30), retry.backoff_max_ms)
        logger.info("step %r failed, trying again: %r", spec.intent, error)
        usage = scope.settled_usage()
        if usage:
            await self.write(attempt, *usage)
        await asyncio.sleep(effects.jittered(wait_ms, 0.25) / 1_000)
        attempt.check()

    async def _record(
        self, attempt: Attempt, scope: StepScope, text: str, began_at: str
    ) -> JsonValue:
        spec = scope.spec
        done = CompleteStep(
            spec.position,
            spec.intent,
            text,
            spec.kind,
            spec.input_hash,
            scope.tries,
            spec.effect,
            began_at,
        )
        try:
            written = await self.commit(attempt, done, *scope.settled_usage())
        except (LeaseLostError, StoreError, DivergenceError) as error:
            self.refuse(error)
            await attempt.settle_late(scope.usage)
            raise
        return written.steps[0].result

    async def commit(self, attempt: Attempt, done: CompleteStep, *usage: SettleUsage) -> Written:
        """Write a completed step; a turn writes its frames along with it."""
        return await attempt.write(done, *usage)

    async def _record_failure(
        self, attempt: Attempt, scope: StepScope, error: Exception, began_at: str
    ) -> StepFailedError:
        spec = scope.spec
        failed = FailStep(
            spec.position,
            spec.intent,
            failure_text(error, taken=self._next_position),
            kind=spec.kind,
            input_hash=spec.input_hash,
            tries=scope.tries,
            effect=spec.effect,
            started_at=began_at,
        )
        return await self.write_failure(attempt, failed, *scope.settled_usage(), scope=scope)

    async def write_failure(
        self,
        attempt: Attempt,
        failed: FailStep,
        *others: Change,
        scope: StepScope | None = None,
    ) -> StepFailedError:
        """Record a failure; return the error that it raises now and at every replay."""
        written = await self.write(attempt, failed, *others, scope=scope)
        return failure_of(written.steps[0])

    async def write(
        self, attempt: Attempt, *changes: Change, scope: StepScope | None = None
    ) -> Written:
        """Write, so that nobody outlives a write that did not happen."""
        try:
            return await attempt.write(*changes)
        except (LeaseLostError, StoreError, DivergenceError) as error:
            self.refuse(error)
            if scope is not None:
                await attempt.settle_late(scope.usage)
            raise


def _is_dropped(call: Coroutine[Any, Any, Any] | None) -> bool:
    return call is None or inspect.getcoroutinestate(call) == inspect.CORO_CLOSED


def _seen(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


def _begin_of(scope: StepScope) -> BeginStep:
    spec = scope.spec
    return BeginStep(
        spec.position, spec.intent, spec.kind, spec.input_hash, scope.tries, spec.effect
    )


def _may_retry(spec: StepSpec, error: Exception) -> bool:
    """A result that cannot be stored will not become storable by trying again."""
    if spec.retry is None or isinstance(error, NotSerializableError):
        return False
    return isinstance(error, spec.retry.retry_on)
