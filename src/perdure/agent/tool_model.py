"""One call of the model in a tool loop: asked within its time, summed up for its record."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, Protocol

from perdure.agent.model_backend import CANCEL_MS
from perdure.agent.tool_limits import CostUsd, ModelUsage
from perdure.backends.joining import join
from perdure.backends.protocol import AttachableBackend, Backend, Prompt
from perdure.backends.replay import REPLAY
from perdure.core import frames
from perdure.core.effects import monotonic_ms
from perdure.core.finite import is_finite
from perdure.core.frames import Frame
from perdure.core.jsonvalue import encode_value
from perdure.core.records import JsonValue, Retry
from perdure.durable.context import DurableContext
from perdure.durable.scope import current_step, joinable_answer, report_usage
from perdure.errors import BackendTransportError, NotSerializableError, UsageError

logger = logging.getLogger("perdure.agent")

Tell = Callable[[Frame], Awaitable[None]]

REPLAY_BYTES_MAX: Final = 512 * 1024
"""What a provider wants back is kept up to so many bytes of JSON."""

_OF_THE_CALL: Final = frozenset({"usage", "upstream_begin", "upstream_end"})
"""What says something of the call, not of the answer."""


class Answer(Protocol):
    """An answer of the model: its frames, and once they are exhausted what is recorded of it."""

    @property
    def result(self) -> Any: ...
    def __aiter__(self) -> AsyncIterator[Frame]: ...


class ModelCall:
    """Asks `backend` once, for at most `limit_ms`; `open` and `summary` make a step of it."""

    def __init__(
        self,
        backend: Backend,
        prompt: Prompt,
        *,
        limit_ms: float | None,
        cost_usd: CostUsd | None,
    ) -> None:
        self._backend = backend
        self._prompt = prompt
        self._limit_ms = limit_ms
        self._cost_usd = cost_usd
        self._begun_ms: float | None = None
        self._was_cut = False
        self._handle: JsonValue = None
        self._is_kept = False

    def open_kept(self) -> AsyncIterator[Frame]:
        """Ask as `open` does, where the step keeps the handle of an answer that goes on upstream.

        If this process is lost the next one joins that answer; what ends it is the turn's business.
        """
        self._is_kept = True
        return self.open()

    async def open(self) -> AsyncIterator[Frame]:
        """Ask, and yield what comes; a call that takes too long, lost tries included, just ends."""
        if self._begun_ms is None:
            self._begun_ms = monotonic_ms()
        stream = self._answer()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._leave)
            stack.push_async_callback(stream.aclose)
            while (frame := await self._next(stream)) is not None:
                if frame.kind == "upstream_begin":
                    self._handle = frame.data["handle"]
                elif frame.kind == "upstream_end":
                    self._handle = None
                yield frame

    def summary(self, answered: Sequence[Frame]) -> dict[str, JsonValue]:
        """Return what is recorded of the answer."""
        run_upstream = {f.data["call"] for f in answered if f.kind == "tool_result"}
        said: dict[str, JsonValue] = {
            "text": "".join(f.data["delta"] for f in answered if f.kind == "text"),
            "calls": [
                {
                    "id": str(f.data["call"]),
                    "name": str(f.data["name"]),
                    "arguments": _storable(f.data["args"]),
                }
                for f in answered
                if f.kind == "tool_call" and f.data["call"] not in run_upstream
            ],
            "finish": next((f.data["finish"] for f in answered if f.kind == "upstream_end"), None),
            "costUsd": self._cost(answered),
            "durationMs": round(self._taken_ms, 3),
        }
        if said["calls"] and (replay := _replay_in(answered)) is not None:
            said[REPLAY] = replay
        return {**said, "cut": True} if self._was_cut else said

    @property
    def _taken_ms(self) -> float:
        return 0.0 if self._begun_ms is None else monotonic_ms() - self._begun_ms

    async def _answer(self) -> AsyncGenerator[Frame, None]:
        """Yield the answer that is asked for, or was by an attempt that was lost."""
        handle = joinable_answer()
        stream = await self._joined(handle)
        if stream is None:
            key = current_step().idempotency_key
            stream = self._backend.stream(self._prompt._replace(idempotency_key=key))
        else:
            yield frames.upstream_begin(handle)
        async with AsyncExitStack() as stack:
            # The call upstream must end with this one, not when the garbage is collected.
            close = getattr(stream, "aclose", None)
            if close is not None:
                stack.push_async_callback(close)
            async for frame in stream:
                yield frame

    async def _joined(self, handle: JsonValue) -> AsyncIterator[Frame] | None:
        """Return the answer that goes on upstream, from its beginning; None: it cannot be joined.

        That one is ended, as nobody will read it.
        """
        if handle is None or not isinstance(self._backend, AttachableBackend):
            return None
        try:
            joined = await join(self._backend.attach(handle), ())
        except (BackendTransportError, UsageError) as error:
            logger.info("an answer cannot be joined again: %s", error)
            joined = None
        if joined is None:
            await self._end(handle)
        return joined

    async def _next(self, stream: AsyncIterator[Frame]) -> Frame | None:
        if self._limit_ms is None:
            return await anext(stream, None)
        left_ms = self._limit_ms - self._taken_ms
        limit = asyncio.timeout(max(0.0, left_ms) / 1_000)
        try:
            async with limit:
                return await anext(stream, None)
        except TimeoutError:
            if not limit.expired():
                raise
            self._was_cut = True
            return None

    async def _leave(self) -> None:
        """End an answer that goes on upstream although nobody waits for it, or will."""
        if self._handle is not None and (self._was_cut or not self._is_kept):
            await self._end(self._handle)

    async def _end(self, handle: JsonValue) -> None:
        if not isinstance(self._backend, AttachableBackend):
            return
        try:
            async with asyncio.timeout(CANCEL_MS / 1_000):
                await self._backend.cancel(handle)
        except Exception as error:
            logger.info("an answer upstream could not be cancelled: %s", error)

    def _cost(self, answered: Sequence[Frame]) -> float | None:
        found: dict[str, JsonValue] = {}
        for frame in answered:
            if frame.kind == "usage":
                found.update(frame.data)
        if self._cost_usd is None or not found:
            return None
        try:
            cost: object = self._cost_usd(_usage_of(found))
            if cost is not None and not (is_finite(cost) and cost >= 0):
                raise UsageError(f"cost_usd must return a number from 0, or None, not {cost!r:.40}")
        except Exception:
            # The answer is paid for: it must not be lost with its price.
            logger.exception("the cost of a model call could not be computed")
            return None
        return cost


class RecordedAnswer:
    """The answer of the model in a plain run: a step, whose frames `tell` gets while it runs.

    A replay yields the recorded text, so that each attempt tells all from the beginning.
    """

    def __init__(
        self,
        context: DurableContext,
        intent: str,
        call: ModelCall,
        *,
        tell: Tell,
        retry: Retry | None,
    ) -> None:
        self._context = context
        self._intent = intent
        self._call = call
        self._tell = tell
        self._retry = retry
        self._was_told = False
        self.result: Any = None

    async def __aiter__(self) -> AsyncIterator[Frame]:
        self.result = await self._context.step(
            self._intent, self._body, kind="llm", retry=self._retry
        )
        if not self._was_told and self.result["text"]:
            yield frames.text(self.result["text"])

    async def _body(self) -> JsonValue:
        self._was_told = True
        answered: list[Frame] = []
        shown = Shown()
        try:
            async for frame in self._call.open():
                answered.append(frame)
                if frame.kind == "usage":
                    used = _usage_of(frame.data)._asdict()
                    report_usage(**used, request_id=frame.data.get("request"))
                for each in shown.of(frame):
                    await self._tell(each)
        except BackendTransportError as error:
            if error.retryable:
                raise LostAnswerError(error) from error
            raise
        return self._call.summary(answered)


class LostAnswerError(BackendTransportError):
    """An answer did not arrive as a whole; the same call may succeed later."""

    def __init__(self, error: BackendTransportError) -> None:
        super().__init__(
            str(error),
            backend=error.backend,
            status=error.status,
            body=error.body,
            retryable=True,
        )


class Shown:
    """What readers see of an answer: not the calls of tools, which the loop tells itself.

    A call that the backend has carried out is shown along with its result.
    """

    def __init__(self) -> None:
        self._calls: dict[str, Frame] = {}

    def of(self, frame: Frame) -> list[Frame]:
        """Return what is to be shown now that `frame` came."""
        if frame.kind in _OF_THE_CALL:
            return []
        if frame.kind == "tool_call":
            self._calls[frame.data["call"]] = frame
            return []
        call = self._calls.pop(frame.data["call"], None) if frame.kind == "tool_result" else None
        return [frame] if call is None else [call, frame]


def passing_failures(tries_max: int = 3) -> Retry:
    """Return the policy by which a run asks a model again whose answer was lost."""
    return Retry(tries_max=tries_max, retry_on=(LostAnswerError,))


def _usage_of(found: Any) -> ModelUsage:
    return ModelUsage(
        provider=found.get("provider"),
        model=found.get("model"),
        tokens_in=found.get("in"),
        tokens_out=found.get("out"),
        tokens_cached=found.get("cached"),
        tokens_reasoning=found.get("reasoning"),
        tokens_cache_written=found.get("cache_written"),
    )


def _replay_in(answered: Sequence[Frame]) -> JsonValue:
    """Return what the provider wants back with the results of the calls, if it can be kept."""
    ends = (frame.data.get(REPLAY) for frame in answered if frame.kind == "upstream_end")
    replay = next((each for each in ends if each is not None), None)
    try:
        encode_value(replay, name=REPLAY, bytes_max=REPLAY_BYTES_MAX)
    except NotSerializableError as error:
        # The answer is paid for: it goes on without, which is what a provider accepts as well.
        logger.warning("an answer cannot be given back to the model as it was: %s", error)
        return None
    return replay


def _storable(arguments: JsonValue) -> JsonValue:
    """Return arguments as they can be recorded; what is nested too deep counts as malformed."""
    try:
        encode_value(arguments)
    except NotSerializableError as error:
        return f"the arguments cannot be used: {error}"
    return arguments
