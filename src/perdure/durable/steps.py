"""Executing a step once and replaying it ever after: the rules for one position of a run."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TypeVar, cast

from perdure.core import effects, identity
from perdure.core.changes import BeginStep, CompleteStep, FailStep, IntendUsage, SettleUsage
from perdure.core.jsonvalue import encode_value
from perdure.core.recordjson import step_error_of
from perdure.core.records import Effect, JsonValue, Retry, StepCall, StepRecord, Written
from perdure.durable.attempt import Attempt, error_text, started_at
from perdure.errors import (
    AwaitEventTimeoutError,
    DivergenceError,
    NotSerializableError,
    StepFailedError,
    StepInputMismatchError,
    StepTimeoutError,
    UnfinishedStepError,
    UsageError,
)

logger = logging.getLogger("perdure.steps")

T = TypeVar("T")

AWAITED_KINDS = frozenset({"llm", "tool"})
"""Kinds whose begin is committed before the body runs: it must be visible after a crash."""


class StepSpec(NamedTuple):
    """What a task asks for at one position."""

    position: int
    intent: str
    kind: str = "logic"
    input_hash: str = ""
    effect: Effect = "idempotent"
    retry: Retry | None = None
    timeout_ms: int | None = None


class StepScope:
    """What is known inside the body of a step."""

    def __init__(self, owner: Steps, spec: StepSpec, *, holds_steps: bool = False) -> None:
        self.owner = owner
        self.spec = spec
        self.holds_steps = holds_steps
        self.tries = 0
        self.usage_call: int | None = None
        self.usage: SettleUsage | None = None

    def call(self) -> StepCall:
        key = identity.idempotency_key(self.owner.stored_id, self.spec.position)
        return StepCall(idempotency_key=key, tries=self.tries)


_scope: ContextVar[StepScope | None] = ContextVar("perdure_step", default=None)


@contextmanager
def inside(scope: StepScope) -> Generator[None, None, None]:
    """Make `scope` the step whose body is running."""
    mark = _scope.set(scope)
    try:
        yield
    finally:
        _scope.reset(mark)


def current_step() -> StepCall:
    """Return the idempotency key and the number of tries of the step whose body is running.

    The key is the same in every attempt: hand it to the outside world, so that an effect whose
    record was lost in a crash is not made twice. Raises UsageError outside a step's body.
    """
    scope = _scope.get()
    if scope is None:
        raise UsageError("current_step() works only inside the body of a step")
    return scope.call()


def report_usage(
    *,
    model: str | None = None,
    tokens_in: int | None = None,
    tokens_out: int | None = None,
    tokens_cached: int | None = None,
    tokens_reasoning: int | None = None,
    request_id: str | None = None,
) -> None:
    """Say, inside the body of a step of kind `llm`, what its model call used.

    It is recorded with the step; None stays unknown, and the last report counts. Raises
    UsageError outside such a step.
    """
    scope = _scope.get()
    if scope is None or scope.usage_call is None:
        raise UsageError("report_usage() works only inside the body of a step of kind 'llm'")
    scope.usage = SettleUsage(
        scope.usage_call,
        model=model,
        request_id=request_id,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        tokens_cached=tokens_cached,
        tokens_reasoning=tokens_reasoning,
    )


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
        self.unanswered = 0
        """Calls that took a position and have not returned: while there are some, no wait may
        give the lease away."""
        self.refusal: BaseException | None = None
        """Why this attempt may take no more steps; whoever swallowed it meets it again."""
        self._history = history
        self._next_position = first_position

    @property
    def history(self) -> Mapping[int, StepRecord]:
        return self._history if self.attempt is None else self.attempt.history

    def take(self) -> int:
        """Return the next position. Raises what ended this attempt, if something did."""
        if self.refusal is not None:
            raise self.refusal
        scope = _scope.get()
        if scope is not None and scope.owner is self and not scope.holds_steps:
            raise UsageError(
                f"a step was begun inside the body of the step {scope.spec.intent!r}: "
                "call it from the task instead"
            )
        position = self._next_position
        self._next_position += 1
        self.unanswered += 1
        return position

    async def run(self, spec: StepSpec, body: Callable[[], Awaitable[T] | T]) -> T:
        """Return what the step at `spec.position` recorded, or execute `body` and record it."""
        try:
            known = self.history.get(spec.position)
            tries = 0
            if known is not None:
                if self.replays(known, spec):
                    return cast(T, known.result)
                tries = known.attempts
            await self.working(spec, known)
            return await self._execute(spec, body, tries)
        finally:
            self.unanswered -= 1

    # Replaying.

    def replays(self, known: StepRecord, spec: StepSpec) -> bool:
        """Return whether the recorded step is completed. Raises DivergenceError for another."""
        if known.intent != spec.intent:
            raise self.diverged(
                f"the task asks for the step {spec.intent!r} at position {spec.position}, "
                f"where {known.intent!r} is recorded"
            )
        if spec.input_hash and known.input_hash and spec.input_hash != known.input_hash:
            error = StepInputMismatchError(
                f"the step {spec.intent!r} at position {spec.position} was recorded with "
                "another fingerprint"
            )
            self.refusal = error
            raise error
        return known.status == "completed"

    def diverged(self, message: str) -> DivergenceError:
        """Return the error after which this attempt takes no more steps."""
        recorded = [f"{p}: {step.intent}" for p, step in sorted(self.history.items())]
        error = DivergenceError(message)
        error.add_note("recorded: " + "; ".join(recorded[-20:]))
        self.refusal = error
        return error

    async def working(self, spec: StepSpec, known: StepRecord | None) -> Attempt:
        """Return the attempt under which the step may be executed.

        Raises what a step recorded that may not be executed again, and DivergenceError in a
        finished run.
        """
        if known is not None and known.status == "failed" and await self._is_final(known):
            raise failure_of(known)
        attempt = self._working(spec)
        interrupted = known is not None and known.status == "running"
        if known is not None and interrupted and (known.effect or spec.effect) == "at_most_once":
            raise await self._give_up(attempt, known)
        return attempt

    async def _is_final(self, known: StepRecord) -> bool:
        """A failure is final once the task went on behind it; a time-out of an event always.

        Only a retry that somebody asked for executes an interrupted at-most-once step.
        """
        if self.attempt is None or max(self.history) > known.step_index:
            return True
        code = known.error.code if known.error is not None else None
        if code == UnfinishedStepError.code:
            details = await self.attempt.store.read_details(self.attempt.run.run_id)
            earlier = [one.ended for one in details.attempts if one.epoch >= known.epoch]
            return not {"failed", "parked"}.intersection(earlier)
        return code == AwaitEventTimeoutError.code

    async def _give_up(self, attempt: Attempt, known: StepRecord) -> StepFailedError:
        error = UnfinishedStepError(
            f"the step {known.intent!r} was interrupted: whether it took effect is unknown",
            intent=known.intent,
        )
        text = error_text(step_error_of(error))
        await attempt.write(
            FailStep(known.step_index, known.intent, text, kind=known.kind, tries=known.attempts)
        )
        return error

    # Executing.

    def _working(self, spec: StepSpec) -> Attempt:
        if self.attempt is None:
            raise self.diverged(
                f"the run is finished, but the task asks for a step {spec.intent!r} at position "
                f"{spec.position}, which was never completed"
            )
        self.attempt.check()
        return self.attempt

    async def _execute(
        self, spec: StepSpec, body: Callable[[], Awaitable[T] | T], tries: int
    ) -> T:
        attempt = self._working(spec)
        scope = StepScope(self, spec)
        scope.tries = tries
        last_try = tries + (spec.retry.tries_max if spec.retry is not None else 1)
        began_at = started_at(attempt)
        while True:
            scope.tries += 1
            await self._begin(attempt, scope)
            try:
                value = await _call(scope, body)
                text = encode_value(value, name=f"the result of step {spec.intent!r}")
            except Exception as error:
                if scope.tries < last_try and _may_retry(spec, error):
                    await self._pause(attempt, scope, error, scope.tries - tries)
                    continue
                raise await self._record_failure(attempt, scope, error, began_at) from error
            finally:
                if attempt.is_over or attempt.held.lost:
                    attempt.forget_begin(spec.position)
            return cast(T, await self._record(attempt, scope, text, began_at))

    async def _begin(self, attempt: Attempt, scope: StepScope) -> None:
        spec = scope.spec
        begin = BeginStep(
            spec.position,
            spec.intent,
            kind=spec.kind,
            input_hash=spec.input_hash,
            tries=scope.tries,
            effect=spec.effect,
        )
        if spec.kind == "llm":
            scope.usage_call, scope.usage = attempt.usage_calls, None
            attempt.usage_calls += 1
            await attempt.write(begin, IntendUsage(scope.usage_call, step_index=spec.position))
        elif spec.kind in AWAITED_KINDS or spec.effect == "at_most_once":
            await attempt.write(begin)
        else:
            attempt.begin_lazily(begin)

    async def _pause(
        self, attempt: Attempt, scope: StepScope, error: Exception, failures: int
    ) -> None:
        spec, retry = scope.spec, scope.spec.retry
        assert retry is not None
        wait_ms = min(retry.backoff_ms * 2 ** (failures - 1), retry.backoff_max_ms)
        logger.info("step %r failed, trying again: %r", spec.intent, error)
        usage = _usage(scope)
        if usage:
            await attempt.write(*usage)
        await asyncio.sleep(effects.jittered(wait_ms, 0.25) / 1_000)

    async def _record(
        self, attempt: Attempt, scope: StepScope, text: str, began_at: str
    ) -> JsonValue:
        spec = scope.spec
        done = CompleteStep(
            spec.position,
            spec.intent,
            text,
            kind=spec.kind,
            input_hash=spec.input_hash,
            tries=scope.tries,
            effect=spec.effect,
            started_at=began_at,
        )
        written = await self.commit(attempt, done, *_usage(scope))
        return written.steps[0].result

    async def commit(
        self, attempt: Attempt, done: CompleteStep, *usage: SettleUsage
    ) -> Written:
        """Write a completed step; a turn writes its frames along with it."""
        return await attempt.write(done, *usage)

    async def _record_failure(
        self, attempt: Attempt, scope: StepScope, error: Exception, began_at: str
    ) -> StepFailedError:
        spec = scope.spec
        original = step_error_of(error)
        await attempt.write(
            FailStep(
                spec.position,
                spec.intent,
                error_text(original),
                kind=spec.kind,
                input_hash=spec.input_hash,
                tries=scope.tries,
                effect=spec.effect,
                started_at=began_at,
            ),
            *_usage(scope),
        )
        if isinstance(error, StepFailedError):
            return error
        return StepFailedError(
            f"the step {spec.intent!r} failed: {original.message}",
            intent=spec.intent,
            original_message=original.message,
            original_code=original.code,
            original_type=original.type,
        )


async def _call(scope: StepScope, body: Callable[[], Awaitable[T] | T]) -> T:
    """Run the body with its scope set, within its time-out."""
    with inside(scope):
        answer = body()
        if not inspect.isawaitable(answer):
            return answer
        if scope.spec.timeout_ms is None:
            return await answer
        return await _within(answer, scope.spec)


async def _within(answer: Awaitable[T], spec: StepSpec) -> T:
    assert spec.timeout_ms is not None
    limit = asyncio.timeout(spec.timeout_ms / 1_000)
    try:
        async with limit:
            return await answer
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise StepTimeoutError(
            f"the step {spec.intent!r} ran longer than {spec.timeout_ms} ms", intent=spec.intent
        ) from error


def _may_retry(spec: StepSpec, error: Exception) -> bool:
    """A result that cannot be stored will not become storable by trying again."""
    if spec.retry is None or isinstance(error, NotSerializableError):
        return False
    return isinstance(error, spec.retry.retry_on)


def _usage(scope: StepScope) -> tuple[SettleUsage, ...]:
    if scope.usage_call is None:
        return ()
    return (scope.usage or SettleUsage(scope.usage_call, state="unknown"),)


def failure_of(known: StepRecord) -> StepFailedError:
    """Return the error that a recorded failure raises, at every replay the same."""
    error = known.error
    message = "unknown error" if error is None else error.message
    code = None if error is None else error.code
    final = {kind.code: kind for kind in _RECORDED_AS_THEMSELVES}.get(code or "")
    if final is not None:
        return final(message, intent=known.intent, original_code=code)
    return StepFailedError(
        f"the step {known.intent!r} failed: {message}",
        intent=known.intent,
        original_message=message,
        original_code=code,
        original_type=None if error is None else error.type,
    )


_RECORDED_AS_THEMSELVES: tuple[type[StepFailedError], ...] = (
    StepTimeoutError,
    AwaitEventTimeoutError,
    UnfinishedStepError,
)
