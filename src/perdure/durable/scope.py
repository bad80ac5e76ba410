"""What is known inside the body of a step, and what the body may say of itself."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Final, NamedTuple, Protocol, TypeVar, cast, get_args

from perdure.core import billing, identity, observing
from perdure.core.changes import BeginStep, CompleteStep, FailStep, SettleUsage
from perdure.core.lengths import check_length as check_length
from perdure.core.observing import StepSeen, Watch
from perdure.core.pricing import PriceTable
from perdure.core.records import Effect, JsonValue, Retry, StepCall, StepKind
from perdure.durable.used import Told, used_together
from perdure.errors import NotSerializableError, StepTimeoutError, UsageError

logger = logging.getLogger("perdure.steps")

T = TypeVar("T")

INTENT_CHARS_MAX: Final = 1_000
_AWAITED_KINDS: Final = frozenset({"llm", "tool"})
_PLAIN: Final = frozenset({type(None), bool, int, float, str, list, dict})
"""What is known to be no awaitable without a closer look."""
_KINDS: Final = get_args(StepKind)
_EFFECTS: Final = get_args(Effect)
_NOT_IN_INTENTS: Final = re.compile(r"[\x00\ud800-\udfff]")


class StepSpec(NamedTuple):
    """What a task asks for at one position."""

    position: int
    intent: str
    kind: str = "logic"
    input_hash: str = ""
    effect: Effect = "idempotent"
    retry: Retry | None = None
    timeout_ms: int | None = None

    @property
    def begins_awaited(self) -> bool:
        """Whether its begin is committed before the body runs: a crash must not hide it."""
        return self.kind in _AWAITED_KINDS or self.effect == "at_most_once"

    def may_retry(self, error: BaseException) -> bool:
        """A result that cannot be stored will not become storable by trying again."""
        if self.retry is None or isinstance(error, NotSerializableError):
            return False
        return isinstance(error, self.retry.retry_on)

    def backoff_ms(self, failures: int) -> int:
        """Return how long to wait behind so many failed tries of an attempt."""
        retry = self.retry
        if retry is None:
            return 0
        doubled: int = retry.backoff_ms * 2 ** min(failures - 1, 30)
        return min(doubled, retry.backoff_max_ms)


def step_spec(
    take: Callable[[], int],
    intent: str,
    *,
    kind: StepKind,
    fingerprint: JsonValue,
    retry: Retry | None,
    timeout_ms: int | None,
    effect: Effect,
) -> StepSpec:
    """Return a spec at the position that `take` gives. Raises UsageError, NotSerializableError.

    A step that is refused takes no position. A misspelt effect or kind must not pass for the
    harmless one.
    """
    check_intent(intent)
    if kind not in _KINDS:
        raise UsageError(f"kind must be one of {', '.join(_KINDS)}, it is {kind!r:.40}")
    if effect not in _EFFECTS:
        raise UsageError(f"effect must be one of {', '.join(_EFFECTS)}, it is {effect!r:.40}")
    if timeout_ms is not None:
        check_length(timeout_ms, name="timeout_ms", least=1)
    input_hash = "" if fingerprint is None else identity.canonical_hash(fingerprint)
    return StepSpec(take(), intent, kind, input_hash, effect, retry, timeout_ms)


def check_intent(intent: object) -> None:
    """Raise UsageError unless `intent` can stand beside a step in every store."""
    if type(intent) is not str or not 0 < len(intent) <= INTENT_CHARS_MAX:
        raise UsageError(
            f"intent must be a str of 1 to {INTENT_CHARS_MAX} characters, not {intent!r:.60}"
        )
    if not intent.isprintable() and _NOT_IN_INTENTS.search(intent):
        raise UsageError(f"intent {intent!r:.60} must not contain NUL or lone surrogates")


class StepOwner(Protocol):
    """Who hands out the positions of a run."""

    @property
    def stored_id(self) -> str: ...

    @property
    def prices(self) -> PriceTable | None:
        """By what the costs of its calls are recorded, where more than a store has to know it."""
        ...


class StepScope:
    """What is known inside the body of a step; `holds_steps`: it may begin steps of its own."""

    __slots__ = (
        "asked_for",
        "began_at",
        "holds_steps",
        "is_begun",
        "owner",
        "spec",
        "told",
        "tries",
        "upstream",
        "usage",
        "usage_call",
        "watch",
    )

    def __init__(self, owner: StepOwner, spec: StepSpec, *, holds_steps: bool = False) -> None:
        self.owner = owner
        self.spec = spec
        self.holds_steps = holds_steps
        self.tries = 0
        self.upstream: JsonValue = None
        """The handle of the answer that the body asked for in an attempt that was lost."""
        self.is_begun = False
        """A record of it is in the store, or on its way there."""
        self.began_at: str | None = None
        """When its execution began, on the store's clock."""
        self.usage_call: int | None = None
        self.usage: SettleUsage | None = None
        self.asked_for: set[tuple[str, str | None]] | None = None
        """The providers and models that backends were asked for within it."""
        self.told: dict[int, list[Told | None]] = {}
        """By call, what the backends that were asked within it said of their use, in order."""
        self.watch: Watch | None = None
        """Who watches the body of a stream, which is entered again for each of its frames."""

    def call(self) -> StepCall:
        key = identity.idempotency_key(self.owner.stored_id, self.spec.position)
        return StepCall(idempotency_key=key, tries=self.tries)

    def begun(self) -> BeginStep:
        """Return the record that the body is about to run, which is written now."""
        self.is_begun = True
        spec = self.spec
        return BeginStep(
            spec.position, spec.intent, spec.kind, spec.input_hash, self.tries, spec.effect
        )

    def asked(self) -> Callable[[Told], None]:
        """Note that a backend is asked; return what takes the usage that it tells."""
        call = self.usage_call
        assert call is not None
        told = self.told.setdefault(call, [])
        number = len(told)

        def count(used: Told | None) -> None:
            told[number:] = [used, *told[number + 1 :]]
            if call == self.usage_call and any(told):
                self.usage = used_together(call, told, self.owner.prices)

        count(None)
        return count

    def completed(self, result_text: str, *, frames_to: int | None = None) -> CompleteStep:
        """Return the record of the body's result."""
        spec = self.spec
        return CompleteStep(
            spec.position,
            spec.intent,
            result_text,
            spec.kind,
            spec.input_hash,
            self.tries,
            spec.effect,
            self.began_at,
            frames_to,
            self.is_begun,
        )

    def failed(self, error_text: str) -> FailStep:
        """Return the record of what went wrong instead of a result."""
        spec = self.spec
        return FailStep(
            spec.position,
            spec.intent,
            error_text,
            kind=spec.kind,
            input_hash=spec.input_hash,
            tries=self.tries,
            effect=spec.effect,
            started_at=self.began_at,
        )

    def ask(self, provider: str, model: str | None) -> None:
        """Note whom a backend asks now, for the case that nothing else is heard of the call."""
        self.asked_for = {*(self.asked_for or ()), (provider, model)}

    def settled_usage(self) -> tuple[SettleUsage, ...]:
        """Return what is recorded of the model call of this step, if it makes one."""
        if self.usage_call is None:
            return ()
        return (self.usage or self.lost_usage(self.usage_call),)

    def late_usage(self) -> SettleUsage | None:
        """Return what is recorded of the call though nothing else is; None: nothing is known."""
        if self.usage is None and self.usage_call is not None and self.asked_for:
            return self.lost_usage(self.usage_call)
        return self.usage

    def lost_usage(self, call: int) -> SettleUsage:
        """Return what is recorded of a call that nobody will hear of: whom it asked.

        Of several who were asked nobody is named, so that none is taken for another.
        """
        providers = {provider for provider, _ in self.asked_for or ()}
        models = {model for _, model in self.asked_for or ()}
        return SettleUsage(
            call,
            state="unknown",
            provider=providers.pop() if len(providers) == 1 else None,
            model=models.pop() if len(models) == 1 else None,
        )


current_scope: Final[ContextVar[StepScope | None]] = ContextVar("perdure_step", default=None)


def _counter(provider: str, model: str | None) -> billing.Asked | None:
    scope = current_scope.get()
    if scope is None:
        return None
    scope.ask(provider, model)
    return None if scope.usage_call is None else scope.asked


billing.counter = _counter


@contextmanager
def inside(scope: StepScope) -> Generator[None, None, None]:
    """Make `scope` the step whose body is running."""
    mark = current_scope.set(scope)
    try:
        if scope.watch is None:
            yield
        else:
            with scope.watch.active():
                yield
    finally:
        current_scope.reset(mark)


@contextmanager
def watching(scope: StepScope) -> Generator[Watch | None, None, None]:
    """Have the body of the step, which runs inside, watched if somebody watches."""
    observer = observing.observer
    if observer is None:
        yield None
        return
    spec = scope.spec
    try:
        watch = observer.step(StepSeen(spec.position, spec.intent, spec.kind, scope.tries))
    except Exception:
        logger.exception("the step %r cannot be watched", spec.intent)
        yield None
        return
    try:
        yield watch
    except BaseException as error:
        watch.end(error=error, usage=scope.usage)
        raise
    watch.end(usage=scope.usage)


def may_begin_steps() -> bool:
    """Return whether whoever asks may begin steps: not within the body of another one."""
    scope = current_scope.get()
    return scope is None or scope.holds_steps


def current_step() -> StepCall:
    """Return the idempotency key and the number of tries of the step whose body is running.

    The key is the same in every attempt: hand it to the outside world, so that an effect whose
    record was lost in a crash is not made twice. Raises UsageError outside a step's body.
    """
    scope = current_scope.get()
    if scope is None:
        raise UsageError("current_step() works only inside the body of a step")
    return scope.call()


def joinable_answer() -> JsonValue:
    """Return the handle of the answer that this step has asked for in an attempt that was lost.

    It goes on upstream, and can be joined in place of asking again. None: there is none.
    """
    scope = current_scope.get()
    return None if scope is None else scope.upstream


def report_usage(
    *,
    provider: str | None = None,
    model: str | None = None,
    tokens_in: int | None = None,
    tokens_out: int | None = None,
    tokens_cached: int | None = None,
    tokens_reasoning: int | None = None,
    request_id: str | None = None,
    tokens_cache_written: int | None = None,
) -> None:
    """Say, inside the body of a step of kind `llm`, what its model call used.

    The backends of Perdure say it by themselves; this counts instead of what they said.

    `tokens_cached` (read from the provider's cache) and `tokens_cache_written` are part of
    `tokens_in`, `tokens_reasoning` of `tokens_out`. It is recorded with the step; None stays
    unknown, and the last report counts. Raises
    UsageError outside such a step, and for a count that is no integer from 0 on.
    """
    scope = current_scope.get()
    if scope is None or scope.usage_call is None:
        raise UsageError("report_usage() works only inside the body of a step of kind 'llm'")
    counts = {
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "tokens_cached": tokens_cached,
        "tokens_reasoning": tokens_reasoning,
        "tokens_cache_written": tokens_cache_written,
    }
    for name, count in counts.items():
        if count is not None:
            identity.check_index(count, name=name)
    scope.usage = SettleUsage(
        scope.usage_call,
        provider=provider,
        model=model,
        request_id=request_id,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        tokens_cached=tokens_cached,
        tokens_reasoning=tokens_reasoning,
        tokens_cache_written=tokens_cache_written,
    )


async def call_body(scope: StepScope, body: Callable[[], Awaitable[T] | T]) -> T:
    """Run the body with its scope set, within its time-out."""
    if observing.observer is None:
        return await _call_body(scope, body)
    with watching(scope) as watch, nullcontext() if watch is None else watch.active():
        return await _call_body(scope, body)


async def _call_body(scope: StepScope, body: Callable[[], Awaitable[T] | T]) -> T:
    mark = current_scope.set(scope)
    try:
        answer = body()
        if type(answer) in _PLAIN or not inspect.isawaitable(answer):
            return cast(T, answer)
        if scope.spec.timeout_ms is None:
            return await answer
        return await _within(answer, scope.spec)
    finally:
        current_scope.reset(mark)


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
