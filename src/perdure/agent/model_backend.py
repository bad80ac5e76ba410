"""Models as execution backends: whatever answers prompts with frames, told as events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

from perdure.agent.backend import AgentBackendContext, AgentBackendInput
from perdure.agent.calls import GRACE_MS
from perdure.agent.sandbox_backend import event_of_raw
from perdure.agent.stream_events import (
    BackendStreamEvent,
    LlmCallEvent,
    ReasoningDeltaEvent,
    TextDeltaEvent,
    ToolCallEvent,
    ToolResultEvent,
)
from perdure.backends.protocol import AttachableBackend, Backend, Prompt
from perdure.backends.retry import BackendRetry
from perdure.core.effects import monotonic_ms
from perdure.core.frames import Frame
from perdure.core.records import JsonValue
from perdure.errors import UsageError

logger = logging.getLogger("perdure.agent")

CANCEL_MS: Final = GRACE_MS - 200
"""How long the provider may take to confirm that it ends an answer: less than we have to leave."""
KIND = "tcloud"
"""The kind of an OpenAI-compatible backend that is given no other."""

BackendRetryPolicy = BackendRetry


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """How a model is to answer: tools it may call (which nobody here runs), form and length.

    `extra_body` is merged into the request, for what has no name here: how long to think, say.
    """

    tools: tuple[Mapping[str, JsonValue], ...] = ()
    tool_choice: str | Mapping[str, JsonValue] | None = None
    response_format: Mapping[str, JsonValue] | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    instructions: str | None = None
    extra_body: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])


class ModelBackend:
    """Streams a task by one call of a model (`perdure.backends`): a prompt in, events out.

    The model gets `options.instructions` as the system message and the input's conversation. Each
    call ends with at most one `llm_call`, also one that failed, and none if the provider counted
    nothing. `cost_usd` makes the cost of such an event where it is known; without it a cost is
    unknown.

    An AttachableBackend's answer goes on upstream when nobody listens any more, if somebody keeps
    its handle (`input.upstream`) and may join it; otherwise it is ended.
    """

    def __init__(
        self,
        model: Backend,
        *,
        kind: str | None = None,
        options: ModelOptions | None = None,
        cost_usd: Callable[[LlmCallEvent], float | None] | None = None,
    ) -> None:
        self.kind = kind or model.name
        self.cancel: Callable[[JsonValue], Awaitable[None]] | None = (
            model.cancel if isinstance(model, AttachableBackend) else None
        )
        self._model = model
        self._options = options or ModelOptions()
        self._cost_usd = cost_usd

    async def stream(
        self, input: AgentBackendInput, context: AgentBackendContext, /
    ) -> AsyncIterator[BackendStreamEvent]:
        begun_ms = monotonic_ms()
        meter: dict[str, JsonValue] = {}
        names: dict[str, str] = {}
        told: list[str] = []
        failure: Exception | None = None
        try:
            async with aclosing(self._frames(input)) as frames:
                async for frame in frames:
                    if frame.kind in ("usage", "upstream_end"):
                        meter.update(frame.data)
                    elif (event := _event_of(frame, names, told)) is not None:
                        yield event
        except Exception as error:
            failure = error
        # What a failed answer used is billed as well.
        if "in" in meter or "out" in meter:
            yield self._call(meter, monotonic_ms() - begun_ms)
        if failure is not None:
            raise failure

    async def aclose(self) -> None:
        """Give back the connections of the model."""
        await self._model.aclose()

    async def _frames(self, input: AgentBackendInput) -> AsyncGenerator[Frame, None]:
        """Yield the answer; its handle is with whoever keeps it before any of it is told."""
        upstream, unkept = input.upstream, None
        is_whole = False
        try:
            async with aclosing(cast("AsyncGenerator[Frame, None]", self._begin(input))) as frames:
                async for frame in frames:
                    if frame.kind != "upstream_begin":
                        is_whole = is_whole or frame.kind == "upstream_end"
                        yield frame
                    elif upstream is not None:
                        await upstream.save(frame.data["handle"])
                    else:
                        unkept = frame.data["handle"]
        finally:
            if unkept is not None and not is_whole:
                await self._end(unkept)

    def _begin(self, input: AgentBackendInput) -> AsyncIterator[Frame]:
        handle = None if input.upstream is None else input.upstream.handle
        if handle is None:
            return self._model.stream(self._prompt(input))
        if not isinstance(self._model, AttachableBackend):
            raise UsageError(f"no answer of the backend {self.kind!r} can be joined")
        return self._model.attach(handle)

    async def _end(self, handle: JsonValue) -> None:
        """End an answer that nobody will join; that it cannot be ended hides nothing else."""
        assert self.cancel is not None
        try:
            async with asyncio.timeout(CANCEL_MS / 1_000):
                await self.cancel(handle)
        except Exception as error:
            logger.warning("an answer of %s could not be ended upstream: %s", self.kind, error)

    def _prompt(self, input: AgentBackendInput) -> Prompt:
        options = self._options
        messages: list[Mapping[str, JsonValue]] = list(input.conversation)
        if options.instructions is not None:
            messages.insert(0, {"role": "system", "content": options.instructions})
        return Prompt(
            messages,
            idempotency_key=input.idempotency_key,
            tools=options.tools,
            tool_choice=options.tool_choice,
            response_format=options.response_format,
            temperature=options.temperature,
            max_tokens=options.max_tokens,
            extra_body=options.extra_body,
        )

    def _call(self, meter: Mapping[str, JsonValue], latency_ms: float) -> LlmCallEvent:
        call = LlmCallEvent(
            model=meter.get("model") or self._model.model or self._model.name,
            tokens_in=meter.get("in"),
            tokens_out=meter.get("out"),
            latency_ms=round(latency_ms, 3),
            finish_reason=meter.get("finish"),
            tokens_cached=meter.get("cached"),
            tokens_reasoning=meter.get("reasoning"),
            provider=meter.get("provider"),
            request_id=meter.get("request"),
            tokens_cache_written=meter.get("cache_written"),
        )
        return call if self._cost_usd is None else replace(call, cost_usd=self._cost_usd(call))


def _event_of(frame: Frame, names: dict[str, str], told: list[str]) -> BackendStreamEvent | None:
    """Return the event that a frame is; one that is an event already is mapped by default.

    `told` has the pieces of text so far, and gets that of the event.
    """
    if frame.kind == "event":
        event = event_of_raw(frame.data["event"], told=told)
    else:
        event = event_of_frame(frame, names)
    if isinstance(event, TextDeltaEvent):
        told.append(event.text)
    return event


def event_of_frame(frame: Frame, names: dict[str, str]) -> BackendStreamEvent | None:
    """Return the event that a frame is, if it is one alone; `names` has the tool of each call."""
    data = frame.data
    match frame.kind:
        case "text":
            return TextDeltaEvent(text=data["delta"])
        case "reasoning":
            return ReasoningDeltaEvent(text=data["delta"])
        case "tool_call":
            names[data["call"]] = data["name"]
            return ToolCallEvent(
                tool_name=data["name"], tool_call_id=data["call"], args=data["args"]
            )
        case "tool_result":
            result: Any = {"error": data["error"]} if "error" in data else data["result"]
            name = names.get(data["call"], "tool")
            return ToolResultEvent(tool_name=name, tool_call_id=data["call"], result=result)
        case _:
            return None


def create_openai_compatible_backend(
    *,
    api_key: str | None,
    base_url: str,
    model: str,
    kind: str = KIND,
    retry: BackendRetryPolicy | None = None,
    options: ModelOptions | None = None,
    cost_usd: Callable[[LlmCallEvent], float | None] | None = None,
    client: Any = None,
) -> ModelBackend:
    """Return a backend for any endpoint that speaks OpenAI's chat completions.

    `client`, an `httpx2.AsyncClient`, replaces the HTTP client. Close the backend with `aclose`.
    Needs `pip install 'perdure[openai]'`; raises UsageError for a value that cannot be used.
    """
    from perdure.backends.openai import OpenAIBackend

    asked = OpenAIBackend(
        api_key, base_url=base_url, model=model, name=kind, retry=retry, client=client
    )
    return ModelBackend(asked, kind=kind, options=options, cost_usd=cost_usd)
