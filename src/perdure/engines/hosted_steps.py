"""The steps of a turn that another engine works on: its record decides, our journal follows it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from itertools import groupby
from typing import Any, TypeVar, cast

from perdure.core.frames import (
    DELTA_KINDS,
    KEPT_KINDS,
    Frame,
    part_element,
    part_frame,
    upstream_end,
)
from perdure.core.jsonvalue import decode_value, encode_value
from perdure.core.recordjson import step_error_from_json
from perdure.core.records import JsonValue
from perdure.durable.attempt import Attempt, started_at
from perdure.durable.calls import is_cancelled
from perdure.durable.failures import error_text, failure_text
from perdure.durable.journal import Journal
from perdure.durable.steps import StepScope, StepSpec
from perdure.engines.hosting import Told, TurnHost, error_told, failure_told, told_text
from perdure.errors import StepFailedError
from perdure.turn.recovery import last_kept_position
from perdure.turn.stepping import TurnSteps

T = TypeVar("T")


class HostedSteps(TurnSteps):
    """The steps of one attempt at a hosted turn.

    The host decides whether a step replays. The store hears of it afterwards, along with the
    frames before its end: so what the store knows as completed is recorded by the host in any
    case, and readers may keep those frames. A stream that the host knows and the store does not
    (the worker died in between) is shown again from the host's record.

    A step that is `at_most_once` is the other way round: only a fenced write before its body can
    tell an interrupted one, so the store has its record first.
    """

    def __init__(self, host: TurnHost, stored_id: str, attempt: Attempt, journal: Journal) -> None:
        super().__init__(stored_id, attempt, journal)
        self._host = host
        self._kept_to = last_kept_position(attempt.history)
        self._stored: set[int] = set()
        """Positions that this attempt has recorded in the store before the host heard of them."""
        self._poured: set[int] = set()
        """Positions of streams that this attempt has executed, so that readers have them."""
        self._causes: dict[int, BaseException | None] = {}
        self._answers: dict[int, Told] = {}
        """By position, what the host has answered: it is asked once, though a turn begins again."""

    async def _run(self, spec: StepSpec, body: Callable[[], Awaitable[T] | T]) -> T:
        try:
            scope = self._scope_of(spec)
            told = self._answers.get(spec.position)
            if told is None:
                text = await self._host.step(spec, partial(self._tell, scope, body))
                told = self._answers[spec.position] = decode_value(text)
            return cast(T, await self._heard(scope, told))
        finally:
            self.answered(spec)

    def arrival(self, spec: StepSpec, key: str, *, timeout_ms: int | None) -> Awaitable[JsonValue]:
        return self.watched(self._arrival(spec, key, timeout_ms), spec.position)

    async def _arrival(self, spec: StepSpec, key: str, timeout_ms: int | None) -> JsonValue:
        self.executing += 1
        try:
            scope = self._scope_of(spec)
            told = self._answers.get(spec.position)
            if told is None:
                told = self._answers[spec.position] = await self._event(spec, key, timeout_ms)
            return await self._heard(scope, told)
        finally:
            self.executing -= 1
            self.answered(spec)

    async def _event(self, spec: StepSpec, key: str, timeout_ms: int | None) -> Told:
        try:
            return {"value": await self._host.event(spec, key, timeout_ms=timeout_ms)}
        except StepFailedError as error:
            return {"error": error_told(error, taken=self._next_position)}

    def _scope_of(self, spec: StepSpec) -> StepScope:
        known = self.history.get(spec.position)
        if known is not None:
            self.replays(known, spec)
        scope = StepScope(self, spec)
        if known is not None:
            scope.tries, scope.is_begun = known.attempts, True
        self._calls.works(spec.position)
        return scope

    async def _heard(self, scope: StepScope, told: Told) -> JsonValue:
        """Note in the store what the host has recorded; return its value, or raise its failure."""
        attempt, spec = self.attempt, scope.spec
        assert attempt is not None
        known = self.history.get(spec.position)
        is_noted = spec.position in self._stored or (
            known is not None and known.status != "running"
        )
        if "error" in told:
            error = step_error_from_json(told["error"])
            if not is_noted:
                failed = scope.failed(error_text(error))
                await self.write_failure(attempt, failed, *scope.settled_usage(), scope=scope)
            raise failure_told(spec, error) from self._causes.pop(spec.position, None)
        value = told["value"]
        if not is_noted:
            text = encode_value(value, name=f"the result of step {spec.intent!r}")
            await super()._record(attempt, scope, text)
        return value

    # Inside the host's step.

    async def _tell(self, scope: StepScope, body: Callable[[], Any]) -> str:
        """Execute the step; return what the host is to record of it."""
        spec = scope.spec
        known = self.history.get(spec.position)
        if known is not None and known.status == "completed":
            return told_text({"value": known.result})

        async def value() -> Told:
            attempt = await self.working(spec, known)
            return {"value": await self._execute(attempt, scope, body)}

        return await self._told(spec, value)

    async def _told(self, spec: StepSpec, tell: Callable[[], Awaitable[Told]]) -> str:
        try:
            told = await tell()
        except StepFailedError as error:
            self._causes[spec.position] = error.__cause__
            told = {"error": error_told(error, taken=self._next_position)}
        return told_text(told)

    async def _record(self, attempt: Attempt, scope: StepScope, text: str) -> JsonValue:
        if scope.spec.effect != "at_most_once":
            return decode_value(text)
        self._stored.add(scope.spec.position)
        return await super()._record(attempt, scope, text)

    async def _record_failure(
        self, attempt: Attempt, scope: StepScope, error: BaseException
    ) -> StepFailedError:
        if scope.spec.effect != "at_most_once":
            recorded = decode_value(failure_text(error, taken=self._next_position))
            return failure_told(scope.spec, step_error_from_json(recorded))
        self._stored.add(scope.spec.position)
        return await super()._record_failure(attempt, scope, error)

    # Streams.

    async def stream(
        self,
        spec: StepSpec,
        open_stream: Callable[[], AsyncIterator[Frame]],
        summarize: Callable[[Sequence[Frame]], JsonValue],
        keep: Callable[[JsonValue], None],
    ) -> AsyncIterator[Frame]:
        self.streams += 1
        scope = self._scope_of(spec)
        passage: asyncio.Queue[Frame | None] = asyncio.Queue()
        pour = partial(self._pour, scope, open_stream, summarize, passage)
        call = asyncio.ensure_future(self._host.step(spec, partial(self._told, spec, pour)))
        call.add_done_callback(lambda _: passage.put_nowait(None))
        try:
            while (frame := await passage.get()) is not None:
                self._newest[spec.position] = frame
                yield frame
                passage.task_done()
            told = decode_value(await call)
            if spec.position not in self._poured and spec.position > self._kept_to:
                for frame in self._shown_again(spec, told):
                    yield frame
            self._open_streams.pop(spec.position, None)
            keep(await self._heard(scope, told))
        finally:
            call.cancel()
            self._open_streams.pop(spec.position, None)
            self.answered(spec)

    async def _pour(
        self,
        scope: StepScope,
        open_stream: Callable[[], AsyncIterator[Frame]],
        summarize: Callable[[Sequence[Frame]], JsonValue],
        passage: asyncio.Queue[Frame | None],
    ) -> Told:
        """Hand the frames of the stream to its consumer, one by one; return what it came to."""
        spec = scope.spec
        attempt = await self.working(spec, self.history.get(spec.position))
        scope.tries += 1
        scope.began_at = started_at(attempt)
        await self._begin(attempt, scope)
        self._poured.add(spec.position)
        self._open_streams[spec.position] = self._journal.last_seq
        frames: list[Frame] = []
        try:
            async with aclosing(self._seen(scope, open_stream, frames)) as seen:
                async for frame in seen:
                    passage.put_nowait(frame)
                    await passage.join()
            value = summarize(frames)
            encode_value(value, name=f"the result of step {spec.intent!r}")
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                await attempt.settle_late(scope.late_usage())
                raise
            if self.refusal is not None:
                raise self.refusal from error
            raise await self._record_failure(attempt, scope, error) from error
        if self.refusal is not None:
            await attempt.settle_late(scope.late_usage())
            raise self.refusal
        # What the host is going to know for good must not be missing in the journal.
        await self._journal.write()
        ends = [frame.data["finish"] for frame in frames if frame.kind == "upstream_end"]
        return {"value": value, "parts": _parts_of(frames), "finish": ends[-1] if ends else None}

    def _shown_again(self, spec: StepSpec, told: Told) -> Sequence[Frame]:
        """Return the frames of a stream of which the store does not know that it was completed."""
        if told.get("finish") is not None:
            self._note_end(spec.position, upstream_end(told["finish"]))
        return [part_frame(part) for part in told.get("parts", ())]


def _parts_of(frames: Sequence[Frame]) -> list[dict[str, JsonValue]]:
    """Return what readers keep of `frames`, in order, neighbouring deltas of one part joined."""
    parts: list[dict[str, JsonValue]] = []
    shown = (frame for frame in frames if frame.kind in KEPT_KINDS)
    for (kind, part), group in groupby(shown, lambda frame: (frame.kind, frame.data.get("part"))):
        if kind in DELTA_KINDS:
            delta = "".join(frame.data["delta"] for frame in group)
            parts.append({"k": kind, "part": part, "d": delta})
        else:
            parts.extend(part_element(frame) for frame in group)
    return parts
