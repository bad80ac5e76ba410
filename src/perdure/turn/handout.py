"""What a producer is handed: one turn, rebuilt from the store, so that any process can go on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, cast, overload

from perdure.core import identity
from perdure.core.changes import CompleteStep, SaveHandle, SettleUsage
from perdure.core.frames import Frame
from perdure.core.jsonvalue import encode_value
from perdure.core.records import Effect, JsonValue, Retry, StepKind, Written
from perdure.durable.attempt import Attempt, started_at
from perdure.durable.journal import Journal
from perdure.durable.steps import Steps, StepScope, StepSpec
from perdure.errors import UsageError
from perdure.turn.identity import ChatTurnIdentity
from perdure.turn.recovery import Partial

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

    `history` holds the messages of the parent turns, fixed when the turn was submitted;
    `partial` what readers have seen and keep; `attempt` counts from 1.
    """

    @property
    def identity(self) -> ChatTurnIdentity: ...
    @property
    def user_message(self) -> str: ...
    @property
    def model(self) -> str | None: ...
    @property
    def history(self) -> Sequence[Mapping[str, JsonValue]]: ...
    @property
    def attempt(self) -> int: ...
    @property
    def partial(self) -> Partial: ...
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
        interrupted in it fails instead of running the tool again.
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
        """Stream something once: a step whose frames readers see while it runs."""
        ...

    def save_handle(self, handle: JsonValue) -> Awaitable[None]:
        """Keep a handle by which the provider's answer could be joined again; None forgets it."""
        ...


class TurnSteps(Steps):
    """The steps inside a turn: a completed one is written with the frames that belong to it."""

    def __init__(self, stored_id: str, attempt: Attempt, journal: Journal) -> None:
        super().__init__(stored_id, attempt, {}, first_position=1)
        self._journal = journal
        self.answered_position = 0
        """The highest position that has answered: what is yielded behind it is new."""
        self.streams = 0
        self.streamed_frames = 0

    async def commit(self, attempt: Attempt, done: CompleteStep, *usage: SettleUsage) -> Written:
        done = done._replace(frames_to=self._journal.last_seq)
        return await self._journal.write(done, *usage)

    async def run(self, spec: StepSpec, body: Callable[[], Awaitable[T] | T]) -> T:
        try:
            return await super().run(spec, body)
        finally:
            self._answered(spec)

    def _answered(self, spec: StepSpec) -> None:
        self.answered_position = max(self.answered_position, spec.position)

    async def stream(
        self,
        spec: StepSpec,
        open_stream: Callable[[], AsyncIterator[Frame]],
        summarize: Callable[[Sequence[Frame]], JsonValue],
        keep: Callable[[JsonValue], None],
    ) -> AsyncIterator[Frame]:
        """Execute or replay a step that yields frames; `keep` gets its recorded result."""
        self.streams += 1
        try:
            known = self.history.get(spec.position)
            if known is not None and self.replays(known, spec):
                keep(known.result)
                return
            attempt = await self.working(spec, known)
            scope = StepScope(self, spec)
            scope.tries = 1 if known is None else known.attempts + 1
            began_at = started_at(attempt)
            await self._begin(attempt, scope)
            frames: list[Frame] = []
            try:
                async for frame in open_stream():
                    frames.append(frame)
                    if frame.kind == "usage" and scope.usage_call is not None:
                        scope.usage = usage_of(frame, scope.usage_call)
                    elif frame.kind != "upstream_end":
                        self.streamed_frames += 1
                        yield frame
                text = encode_value(summarize(frames), name=f"the result of step {spec.intent!r}")
            except Exception as error:
                raise await self._record_failure(attempt, scope, error, began_at) from error
            keep(await self._record(attempt, scope, text, began_at))
        finally:
            self.unanswered -= 1
            self._answered(spec)


def usage_of(frame: Frame, call: int) -> SettleUsage:
    """Return what a usage frame says of a call; what it does not say stays unknown."""
    known = frame.data
    return SettleUsage(
        call,
        model=known.get("model"),
        request_id=known.get("request"),
        tokens_in=known.get("in"),
        tokens_out=known.get("out"),
        tokens_cached=known.get("cached"),
        tokens_reasoning=known.get("reasoning"),
    )


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
    ) -> None:
        manifest = attempt.run.manifest
        assert manifest is not None
        self.identity = turn
        self.user_message: str = manifest.input["userMessage"]
        self.model: str | None = manifest.input.get("model")
        self.history = history
        self.attempt = attempt.lease.epoch
        self.partial = partial
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

    async def save_handle(self, handle: JsonValue) -> None:
        text = None if handle is None else encode_value(handle, name="handle")
        await self._attempt.write(SaveHandle(text))

    def _spec(
        self, intent: str, kind: StepKind, fingerprint: JsonValue, effect: Effect | None
    ) -> StepSpec:
        return StepSpec(
            position=self._steps.take(),
            intent=intent,
            kind=kind,
            input_hash="" if fingerprint is None else identity.canonical_hash(fingerprint),
            effect=effect or ("at_most_once" if kind == "tool" else "idempotent"),
        )
