"""What a producer is handed: one turn, rebuilt from the store, so that any process can go on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, cast, overload

from perdure.core import identity
from perdure.core.changes import SaveHandle
from perdure.core.frames import Frame
from perdure.core.jsonvalue import encode_value
from perdure.core.lengths import check_length
from perdure.core.records import Effect, JsonValue, Retry, StepKind
from perdure.durable.attempt import Attempt
from perdure.durable.parallel import branches_of, check_concurrency, run_branches
from perdure.durable.scope import step_spec
from perdure.durable.steps import StepSpec
from perdure.errors import UsageError
from perdure.turn.attachments import Attachment, attachments_from_json
from perdure.turn.identity import ChatTurnIdentity
from perdure.turn.recovery import Partial, SavedHandle
from perdure.turn.stepping import TurnSteps

T = TypeVar("T")
ResultT = TypeVar("ResultT", covariant=True)


class TurnStream(Protocol[ResultT]):
    """A model call that streams inside a turn: iterate it, and yield what it yields.

    When it is exhausted it is recorded as one step, and `result` is what its `result` function
    made of all of its frames. In a later attempt it yields nothing, since readers have its frames
    already, and `result` is the recorded one.
    """

    @property
    def result(self) -> ResultT: ...
    def __aiter__(self) -> AsyncIterator[Frame]: ...


class Turn(Protocol):
    """One turn, as its producer gets it; everything in it comes from the store.

    `attachments` are the files that the message came with, by reference. `history` holds the
    messages of the parent turns, `{"role", "content"}` and, of a user's with files, `"attachments"`
    as they are stored, fixed when the turn was submitted;
    `partial` what readers have seen and keep; `attempt` counts from 1. `upstream` is the handle
    that was saved last, None if there is none: of the answer that an earlier attempt has begun, as
    long as this one can join it.
    """

    @property
    def identity(self) -> ChatTurnIdentity: ...
    @property
    def user_message(self) -> str: ...
    @property
    def model(self) -> str | None: ...
    @property
    def attachments(self) -> Sequence[Attachment]: ...
    @property
    def history(self) -> Sequence[Mapping[str, JsonValue]]: ...
    @property
    def attempt(self) -> int: ...
    @property
    def partial(self) -> Partial: ...
    @property
    def upstream(self) -> JsonValue: ...
    @property
    def idempotency_key(self) -> str: ...
    @property
    def stop_requested(self) -> bool: ...

    @overload
    def step(
        self,
        intent: str,
        fn: Callable[[], Awaitable[T]],
        *,
        kind: StepKind = "logic",
        fingerprint: JsonValue = None,
        retry: Retry | None = None,
        timeout_ms: int | None = None,
        effect: Effect | None = None,
    ) -> Awaitable[T]:
        """Do something once, as `DurableContext.step`.

        A step of kind "tool" is "at_most_once" unless `effect` says otherwise: a turn that was
        interrupted in it fails instead of running the tool again. The idle time-out of the engine
        is one of the model: it does not run while a step does whose kind is not "llm". Give a
        `timeout_ms` to whatever may hang.
        """
        ...

    @overload
    def step(
        self,
        intent: str,
        fn: Callable[[], T],
        *,
        kind: StepKind = "logic",
        fingerprint: JsonValue = None,
        retry: Retry | None = None,
        timeout_ms: int | None = None,
        effect: Effect | None = None,
    ) -> Awaitable[T]: ...

    def parallel(
        self,
        *steps: tuple[str, Callable[[], Any]],
        concurrency_max: int | None = None,
        kind: StepKind = "logic",
        retry: Retry | None = None,
        timeout_ms: int | None = None,
        effect: Effect | None = None,
    ) -> Awaitable[list[Any]]:
        """Do several things at once, as `DurableContext.parallel`; for tools see `step`."""
        ...

    def stream(
        self,
        intent: str,
        fn: Callable[[], AsyncIterator[Frame]],
        *,
        result: Callable[[Sequence[Frame]], T],
        kind: StepKind = "llm",
        fingerprint: JsonValue = None,
        effect: Effect | None = None,
    ) -> TurnStream[T]:
        """Stream something once: a step whose frames readers see while it runs.

        Iterate it to its end and yield each frame as it comes; `current_step()` in `fn`, and in
        what it returns, gives its idempotency key.
        """
        ...

    def await_event(self, key: str, *, timeout_ms: int | None = 60_000) -> Awaitable[JsonValue]:
        """Return the payload of an event of this turn's run, as `DurableContext.await_event`.

        Once this is all that the turn does for a while, nobody holds its lease: a death or a
        deploy costs no strike, and whoever sees the event first goes on, here in place. Its
        session stays busy and its readers wait, for the idle time-out does not run. The time-out
        counts from the first begin of the wait, and is final once it is over.
        """
        ...

    def save_handle(self, handle: JsonValue) -> Awaitable[None]:
        """Keep a handle by which the provider's answer can be joined again; None forgets it.

        The answer's frames are what is yielded from then on. A producer with a method `attach` is
        asked by another attempt to join it.
        """
        ...


class _StreamedStep(Generic[T]):
    def __init__(
        self,
        steps: TurnSteps,
        spec: StepSpec,
        fn: Callable[[], AsyncIterator[Frame]],
        result: Callable[[Sequence[Frame]], T],
    ) -> None:
        self._recorded: list[T] = []
        self._frames = steps.stream(
            spec, fn, result, lambda value: self._recorded.append(cast(T, value))
        )

    @property
    def result(self) -> T:
        """What the stream came to. Raises UsageError before it is exhausted."""
        if not self._recorded:
            raise UsageError("a stream has its result once it has been iterated to its end")
        return self._recorded[0]

    def __aiter__(self) -> AsyncIterator[Frame]:
        return self._frames


class AttemptedTurn:
    """The Turn of one attempt."""

    def __init__(
        self,
        turn: ChatTurnIdentity,
        attempt: Attempt,
        steps: TurnSteps,
        *,
        history: Sequence[Mapping[str, JsonValue]],
        partial: Partial,
        upstream: JsonValue = None,
    ) -> None:
        manifest = attempt.run.manifest
        assert manifest is not None
        self.identity = turn
        self.user_message: str = manifest.input["userMessage"]
        self.model: str | None = manifest.input.get("model")
        self.attachments = attachments_from_json(manifest.input.get("attachments"))
        self.history = history
        self.attempt = attempt.lease.epoch
        self.partial = partial
        self.upstream = upstream
        self.idempotency_key = identity.idempotency_key(attempt.lease.run_id, 0)
        self._attempt = attempt
        self._steps = steps

    @property
    def stop_requested(self) -> bool:
        return self._attempt.stop_requested

    def step(
        self,
        intent: str,
        fn: Callable[[], Any],
        *,
        kind: StepKind = "logic",
        fingerprint: JsonValue = None,
        retry: Retry | None = None,
        timeout_ms: int | None = None,
        effect: Effect | None = None,
    ) -> Awaitable[Any]:
        spec = self._spec(intent, kind, fingerprint, effect)
        return self._steps.run(spec._replace(retry=retry, timeout_ms=timeout_ms), fn)

    def parallel(
        self,
        *steps: tuple[str, Callable[[], Any]],
        concurrency_max: int | None = None,
        kind: StepKind = "logic",
        retry: Retry | None = None,
        timeout_ms: int | None = None,
        effect: Effect | None = None,
    ) -> Awaitable[list[Any]]:
        check_concurrency(concurrency_max)
        branches = branches_of(
            self._steps,
            steps,
            kind=kind,
            retry=retry,
            timeout_ms=timeout_ms,
            effect=_effect_of(kind, effect),
        )
        return run_branches(self._steps, branches, concurrency_max=concurrency_max)

    def stream(
        self,
        intent: str,
        fn: Callable[[], AsyncIterator[Frame]],
        *,
        result: Callable[[Sequence[Frame]], T],
        kind: StepKind = "llm",
        fingerprint: JsonValue = None,
        effect: Effect | None = None,
    ) -> TurnStream[T]:
        spec = self._spec(intent, kind, fingerprint, effect)
        return _StreamedStep(self._steps, spec, fn, result)

    def await_event(self, key: str, *, timeout_ms: int | None = 60_000) -> Awaitable[JsonValue]:
        identity.check_event_key(key)
        if timeout_ms is not None:
            check_length(timeout_ms, name="timeout_ms")
        spec = self._spec(f"event:{key}", "event", None, None)
        return self._steps.arrival(spec, key, timeout_ms=timeout_ms)

    async def save_handle(self, handle: JsonValue) -> None:
        text = None
        if handle is not None:
            saved = SavedHandle(handle, after=self._steps.last_seq)
            text = encode_value(saved._asdict(), name="handle")
        await self._steps.awake(self._attempt)
        await self._attempt.write(SaveHandle(text))
        self.upstream = handle

    def _spec(
        self, intent: str, kind: StepKind, fingerprint: JsonValue, effect: Effect | None
    ) -> StepSpec:
        return step_spec(
            self._steps.take,
            intent,
            kind=kind,
            fingerprint=fingerprint,
            retry=None,
            timeout_ms=None,
            effect=_effect_of(kind, effect),
        )


def _effect_of(kind: StepKind, effect: Effect | None) -> Effect:
    return effect or ("at_most_once" if kind == "tool" else "idempotent")
