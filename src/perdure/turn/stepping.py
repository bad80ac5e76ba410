"""The steps inside a turn: each is recorded along with the frames that belong to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Final, TypeVar

from perdure.core.changes import Change, CompleteStep, FailStep, SaveHandle, SettleUsage
from perdure.core.effects import monotonic_ms
from perdure.core.frames import Frame
from perdure.core.jsonvalue import decode_value, encode_value
from perdure.core.records import JsonValue, StepRecord, Written
from perdure.durable.attempt import Attempt, patiently, started_at
from perdure.durable.calls import is_cancelled
from perdure.durable.failures import given_up
from perdure.durable.journal import Journal
from perdure.durable.scope import watching
from perdure.durable.steps import Steps, StepScope, StepSpec, inside
from perdure.durable.waits import Wait
from perdure.errors import LeaseLostError
from perdure.turn.parts import frame_of, spoken_in
from perdure.turn.recovery import StepHandle, settled_prefix, step_handle

T = TypeVar("T")

_FIRST: Final = 1
"""The position of the producer's first step; step 0 is the turn itself."""


class TurnSteps(Steps):
    """The steps of one attempt at a turn, from position 1 on; step 0 is the turn itself.

    What a later attempt keeps of the stream is what stands before the end of the unbroken prefix
    of recorded steps, and a recorded stream yields nothing again. So a stream that ends before an
    earlier step does is recorded only once that one is: else its frames would be lost.
    """

    def __init__(self, stored_id: str, attempt: Attempt, journal: Journal) -> None:
        super().__init__(stored_id, attempt, {}, first_position=_FIRST)
        self.answered_position = 0
        """The highest position that answered or is waited in: what is yielded behind it is new."""
        self.executing = 0
        """Steps that run now under time limits of their own, while the model is not asked."""
        self.active_ms = monotonic_ms()
        """When a step last began or answered."""
        self.streams = 0
        self.spoken = 0
        """How much of what a model says came from streams."""
        self.finish_reason: str | None = None
        """Why the model's last answer ended, in a stream or of the producer itself."""
        self.repeatable: frozenset[int] = frozenset()
        """Positions whose interrupted step may be executed again, whatever its effect."""
        self.open_wait = 0
        """Where an earlier attempt waited: readers have all that is yielded before it."""
        self.upstream = _joinable(attempt)
        """The answer of a stream that goes on upstream; the next attempt may join it."""
        self._journal = journal
        self._settled_to = settled_prefix(attempt.history)
        self._settled: set[int] = set()
        running = (at for at, step in attempt.history.items() if step.status == "running")
        self._begun = {position for position in running if position > 0}
        """Positions of steps that an earlier attempt, or this one, has begun to execute."""
        self._held_back: dict[int, CompleteStep] = {}
        self._newest: dict[int, Frame] = {}
        self._open_streams: dict[int, int] = {}
        """By position, the last seq before the first frame of a stream that still runs."""

    @property
    def last_seq(self) -> int:
        """The seq of the last frame that was yielded before now."""
        return self._journal.last_seq

    async def run(self, spec: StepSpec, body: Callable[[], Awaitable[T] | T]) -> T:
        is_timed = spec.kind != "llm"
        self.active_ms = monotonic_ms()
        self.executing += is_timed
        try:
            return await super().run(spec, body)
        finally:
            self.executing -= is_timed

    def arrival(self, spec: StepSpec, key: str, *, timeout_ms: int | None) -> Awaitable[JsonValue]:
        """Return the payload of the event `key`, which the step `spec` waits for.

        The turn sleeps meanwhile: nobody holds it, so that no death and no deploy costs a strike.
        """
        return self.watched(self._arrival(spec, key, timeout_ms), spec.position)

    async def _arrival(self, spec: StepSpec, key: str, timeout_ms: int | None) -> JsonValue:
        self._mark_wait(spec.position)
        self.executing += 1
        try:
            return await Wait(self, spec, key=key, length_ms=timeout_ms, unwinds=False).run()
        finally:
            self.executing -= 1

    def _mark_wait(self, position: int) -> None:
        """Say in the stream what readers have by now: whoever waits on does not show it again.

        Not while a stream runs, of which nothing is kept before its end.
        """
        known = self.history.get(position)
        if position == self.open_wait:
            self.answered_position = max(self.answered_position, position)
        elif (known is None or known.status == "running") and not self._open_streams:
            self._journal.append(Frame(0, 0, "wait", {"step": position}))

    async def doze(self, attempt: Attempt, *changes: Change) -> Written:
        return await self._journal.doze(*changes)

    async def awake(self, attempt: Attempt) -> Attempt:
        try:
            await self._journal.awake()
        except LeaseLostError as error:
            self.refuse(error)
            raise
        attempt.check()
        return attempt

    async def begin_again(self) -> None:
        """Let the producer ask from its first step on, although somebody else has asked before.

        What was asked for replays, also what was executed meanwhile.
        """
        attempt = self.attempt
        if attempt is None or self._next_position == _FIRST:
            return
        steps = await patiently(
            lambda: attempt.store.read_steps(attempt.run.run_id), for_ms=attempt.held.remaining_ms
        )
        attempt.history = {step.step_index: step for step in steps}
        self._next_position, self.answered_position = _FIRST, 0

    def answered(self, spec: StepSpec) -> None:
        super().answered(spec)
        self.active_ms = monotonic_ms()
        self.answered_position = max(self.answered_position, spec.position)

    async def working(self, spec: StepSpec, known: StepRecord | None) -> Attempt:
        if known is not None and known.status == "running" and spec.position in self.repeatable:
            known = None
        attempt = await super().working(spec, known)
        self._begun.add(spec.position)
        return attempt

    async def commit(self, attempt: Attempt, done: CompleteStep, *usage: SettleUsage) -> Written:
        # A stream that still runs will be made again after a crash, so nothing of it is kept.
        others = [seq for at, seq in self._open_streams.items() if at != done.position]
        done = done._replace(frames_to=min([self._journal.last_seq, *others]))
        self._settle(done.position)
        return await self._journal.write(done, *self.take_held_back(), *usage)

    def take_held_back(self, *, all_of_them: bool = False) -> list[CompleteStep]:
        """Return the streams that may be recorded now, since all steps before them are."""
        ready: list[CompleteStep] = []
        if self._open_streams and not all_of_them:
            return ready
        for position in sorted(self._held_back):
            if all_of_them or position == self._settled_to + 1:
                ready.append(self._held_back.pop(position))
                self._settle(position)
        return ready

    def _settle(self, position: int) -> None:
        self._settled.add(position)
        while self._settled_to + 1 in self._settled:
            self._settled_to += 1

    async def write_failure(
        self,
        attempt: Attempt,
        failed: FailStep,
        *others: Change,
        scope: StepScope | None = None,
    ) -> StepRecord:
        # What is held back of a stream that is cancelled is not its answer any more.
        self._held_back.pop(failed.position, None)
        known = await super().write_failure(attempt, failed, *others, scope=scope)
        self._settle(failed.position)
        return known

    async def left_behind(self) -> list[FailStep]:
        """Return the failures of what was begun and will never be recorded, at the turn's end.

        A stream that its producer broke off, a step that nobody awaits: executed again by another
        attempt, but there is none after an answer.
        """
        if self._begun <= self._settled | self._held_back.keys():
            return []
        attempt = self.attempt
        assert attempt is not None
        self.refuse(asyncio.CancelledError("the turn is over"))
        await self._journal.write()
        steps = await patiently(
            lambda: attempt.store.read_steps(attempt.run.run_id), for_ms=attempt.held.remaining_ms
        )
        return [
            given_up(step, taken=self._next_position)
            for step in steps
            if step.step_index and step.status == "running"
        ]

    # Streams.

    async def stream(
        self,
        spec: StepSpec,
        open_stream: Callable[[], AsyncIterator[Frame]],
        summarize: Callable[[Sequence[Frame]], JsonValue],
        keep: Callable[[JsonValue], None],
    ) -> AsyncIterator[Frame]:
        """Execute or replay a step that yields frames; `keep` gets its recorded result."""
        self.streams += 1
        scope = StepScope(self, spec)
        try:
            known = self.history.get(spec.position)
            if known is not None and await self.replayed(known, spec):
                keep(known.result)
                return
            attempt = await self.working(spec, known)
            scope.tries = 1 if known is None else known.attempts + 1
            if self.upstream is not None and self.upstream.step == spec.position:
                scope.upstream = self.upstream.handle
            scope.began_at = started_at(attempt)
            await self._begin(attempt, scope)
            self._open_streams[spec.position] = self._journal.last_seq
            frames: list[Frame] = []
            try:
                async with aclosing(self._seen(scope, open_stream, frames)) as seen:
                    async for frame in seen:
                        yield frame
                text = encode_value(summarize(frames), name=f"the result of step {spec.intent!r}")
            except GeneratorExit:
                # Broken off by its consumer it is no record: what it said is half of it.
                await attempt.settle_late(scope.late_usage())
                raise
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and is_cancelled():
                    raise
                if self.refusal is not None:
                    raise self.refusal from error
                raise await self._record_failure(attempt, scope, error) from error
            if self.refusal is not None:
                # The body made an end of the interruption: half an answer is none.
                await attempt.settle_late(scope.late_usage())
                raise self.refusal
            self._open_streams.pop(spec.position, None)
            keep(await self._record_stream(attempt, scope, text))
        except asyncio.CancelledError:
            recorded = await self.cancelled(spec, scope)
            if recorded is None:
                raise
            keep(recorded.result)
        finally:
            self._open_streams.pop(spec.position, None)
            self.answered(spec)

    async def _seen(
        self,
        scope: StepScope,
        open_stream: Callable[[], AsyncIterator[Frame]],
        frames: list[Frame],
    ) -> AsyncGenerator[Frame, None]:
        """Collect what the body yields, and yield on what is for readers.

        What a call used, and that it ended, is the step's own business. Only while the body runs,
        it is inside its step: a generator shares its context with whoever drives it.
        """
        async with AsyncExitStack() as stack:
            scope.watch = stack.enter_context(watching(scope))
            with inside(scope):
                body = aiter(open_stream())
            close = getattr(body, "aclose", None)
            if close is not None:
                stack.push_async_callback(close)
            while True:
                with inside(scope):
                    frame = await anext(body, None)
                if frame is None:
                    return
                frames.append(frame)
                if frame.kind == "upstream_begin":
                    await self._keep(StepHandle(frame.data["handle"], scope.spec.position))
                    continue
                if frame.kind == "usage" and scope.usage_call is not None:
                    scope.usage = usage_of(frame, scope.usage_call)
                elif frame.kind == "upstream_end":
                    self._note_end(scope.spec.position, frame_of(frame))
                else:
                    self.spoken += spoken_in(frame)
                    self._newest[scope.spec.position] = frame
                    yield frame

    async def _keep(self, handle: StepHandle) -> None:
        """Store the handle of an answer before any of it is told, so that it can be joined."""
        if handle == self.upstream:
            return
        assert self.attempt is not None
        text = encode_value(handle._asdict(), name="handle")
        await self.attempt.write(SaveHandle(text))
        self.upstream = handle

    def _note_end(self, position: int, end: Frame) -> None:
        """Journal why a call ended, so that no crash forgets it: its step has no place for it."""
        if self.upstream is not None and self.upstream.step == position:
            self.upstream = None
        self.finish_reason = end.data["finish"]
        self._journal.append(end._replace(data={**end.data, "step": position}))

    def is_streamed(self, item: object) -> bool:
        """Return whether a stream that executes now has just yielded this very frame."""
        return any(item is frame for frame in self._newest.values())

    async def _record_stream(self, attempt: Attempt, scope: StepScope, text: str) -> JsonValue:
        spec = scope.spec
        before = range(self._settled_to + 1, spec.position)
        if not self._open_streams and all(at in self._held_back for at in before):
            return await self._record(attempt, scope, text)
        held_back = scope.completed(text, frames_to=self._journal.last_seq)
        self._held_back[spec.position] = held_back
        await self._journal.write(*scope.settled_usage())
        return decode_value(text)


def _joinable(attempt: Attempt) -> StepHandle | None:
    """Return the handle of the answer for which an earlier attempt has waited in a stream."""
    saved = step_handle(attempt.run.upstream)
    step = None if saved is None else attempt.history.get(saved.step)
    return saved if step is not None and step.status == "running" else None


def usage_of(frame: Frame, call: int) -> SettleUsage:
    """Return what a usage frame says of a call; what it does not say stays unknown."""
    known = frame.data
    return SettleUsage(
        call,
        provider=known.get("provider"),
        model=known.get("model"),
        request_id=known.get("request"),
        tokens_in=known.get("in"),
        tokens_out=known.get("out"),
        tokens_cached=known.get("cached"),
        tokens_reasoning=known.get("reasoning"),
        tokens_cache_written=known.get("cache_written"),
    )
