"""A model whose calls are steps."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from agents import FunctionTool, Model, ModelResponse
from agents.items import TResponseStreamEvent
from agents.models.fake_id import FAKE_RESPONSES_ID
from agents.retry import ModelRetryAdvice, ModelRetryAdviceRequest
from agents.usage import Usage
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseReasoningSummaryTextDeltaEvent,
    ResponseReasoningTextDeltaEvent,
    ResponseTextDeltaEvent,
    ResponseUsage,
)

from perdure.core import frames
from perdure.core.frames import Frame
from perdure.core.records import JsonValue
from perdure.engines.openai_agents.recording import (
    Recorder,
    recorded_response,
    report,
    response_of,
)
from perdure.errors import DurableRunError
from perdure.turn.driving import closing


class RecordedModel(Model):
    """Asks another model, once for each call that is recorded."""

    def __init__(
        self,
        recorder: Recorder,
        agent: str,
        inner: Callable[[], Model],
        tools: Mapping[str, FunctionTool],
        *,
        model: str | None,
    ) -> None:
        self._recorder = recorder
        self._agent = agent
        self._inner = inner
        self._tools = tools
        self._model = model

    def get_retry_advice(self, request: ModelRetryAdviceRequest) -> ModelRetryAdvice | None:
        return self._inner().get_retry_advice(request)

    async def get_response(self, *asked: Any, **options: Any) -> ModelResponse:
        intent = await self._recorder.begin(self._agent)

        async def body() -> dict[str, JsonValue]:
            response = await self._inner().get_response(*asked, **options)
            report(response, self._model)
            return recorded_response(response)

        response = response_of(await self._recorder.run.step(intent, body, kind="llm"))
        await self._recorder.plan(response.output, self._tools)
        return response

    async def stream_response(
        self, *asked: Any, **options: Any
    ) -> AsyncIterator[TResponseStreamEvent]:
        recorder = self._recorder
        turn, showing = recorder.turn, recorder.showing
        if turn is None or showing is None:
            raise DurableRunError("a run shows nothing while it runs: agents stream in turns")
        intent = await recorder.begin(self._agent)
        passed: deque[TResponseStreamEvent] = deque()
        completed: list[ModelResponse] = []

        async def body() -> AsyncIterator[Frame]:
            async for event in self._inner().stream_response(*asked, **options):
                if isinstance(event, ResponseCompletedEvent):
                    completed.append(_response_in(event))
                    yield _usage_in(event)
                passed.append(event)
                frame = frame_of(event)
                if frame is not None:
                    yield frame

        def result(_: Sequence[Frame]) -> JsonValue:
            if not completed:
                raise DurableRunError("the model's stream ended without a completed response")
            return recorded_response(completed[0])

        stream = turn.stream(intent, body, result=result)
        items = aiter(stream)
        async with closing(items):
            async for frame in items:
                while passed:
                    event = passed.popleft()
                    if not isinstance(event, ResponseCompletedEvent):
                        yield event
                await showing.show(frame)
        response = response_of(stream.result)
        await recorder.plan(response.output, self._tools)
        yield _completed(response, self._model)


def frame_of(event: TResponseStreamEvent) -> Frame | None:
    """Return the frame that an event of a model's stream is to readers."""
    if isinstance(event, ResponseTextDeltaEvent):
        return frames.text(event.delta)
    if isinstance(event, ResponseReasoningTextDeltaEvent | ResponseReasoningSummaryTextDeltaEvent):
        return frames.reasoning(event.delta)
    return None


def _usage_in(event: ResponseCompletedEvent) -> Frame:
    used = event.response.usage
    if used is None:
        return frames.usage(model=event.response.model)
    return frames.usage(
        model=event.response.model,
        tokens_in=used.input_tokens,
        tokens_out=used.output_tokens,
        # The SDK has 0 where a provider tells none of it.
        tokens_cached=used.input_tokens_details.cached_tokens or None,
        tokens_reasoning=used.output_tokens_details.reasoning_tokens or None,
    )


def _response_in(event: ResponseCompletedEvent) -> ModelResponse:
    used = event.response.usage
    usage = Usage()
    if used is not None:
        usage = Usage(
            requests=1,
            input_tokens=used.input_tokens,
            output_tokens=used.output_tokens,
            total_tokens=used.total_tokens,
            input_tokens_details=used.input_tokens_details,
            output_tokens_details=used.output_tokens_details,
        )
    return ModelResponse(output=event.response.output, usage=usage, response_id=event.response.id)


def _completed(response: ModelResponse, model: str | None) -> ResponseCompletedEvent:
    """Return the event that ends a stream with this response, made now or recorded."""
    used = response.usage
    return ResponseCompletedEvent(
        type="response.completed",
        sequence_number=0,
        response=Response(
            id=response.response_id or FAKE_RESPONSES_ID,
            created_at=0,
            model=model or "",
            object="response",
            output=response.output,
            tool_choice="auto",
            tools=[],
            parallel_tool_calls=True,
            usage=ResponseUsage(
                input_tokens=used.input_tokens,
                output_tokens=used.output_tokens,
                total_tokens=used.total_tokens,
                input_tokens_details=used.input_tokens_details,
                output_tokens_details=used.output_tokens_details,
            ),
        ),
    )
