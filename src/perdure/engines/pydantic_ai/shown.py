"""What readers of a turn see of an agent's events, as frames."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from pydantic import TypeAdapter
from pydantic_ai import FunctionToolCallEvent, FunctionToolResultEvent, RunContext
from pydantic_ai.agent import EventStreamHandler
from pydantic_ai.messages import (
    AgentStreamEvent,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolReturnPart,
)

from perdure.core import frames
from perdure.core.frames import Frame
from perdure.core.jsonvalue import decode_value, encode_value
from perdure.core.records import JsonValue
from perdure.engines.showing import Showing
from perdure.errors import NotSerializableError

_ANY: TypeAdapter[Any] = TypeAdapter(Any)


def said_in(event: AgentStreamEvent) -> Frame | None:
    """Return the frame that an event of a model's stream is to readers, None if it is none."""
    match event:
        case PartStartEvent(part=TextPart(content=delta)):
            said = frames.text(delta)
        case PartDeltaEvent(delta=TextPartDelta(content_delta=delta)):
            said = frames.text(delta)
        case PartStartEvent(part=ThinkingPart(content=delta)):
            said = frames.reasoning(delta)
        case PartDeltaEvent(delta=ThinkingPartDelta(content_delta=str(delta))):
            said = frames.reasoning(delta)
        case _:
            return None
    return said if said.data["delta"] else None


def done_in(event: AgentStreamEvent) -> Frame | None:
    """Return the frame that an event of a tool call is to readers, None if it is none."""
    match event:
        case FunctionToolCallEvent(part=call):
            arguments = plain(call.args_as_dict(raise_if_invalid=False))
            # The step says whether the call may be made again; a frame that did would fail a turn
            # that was interrupted before the tool began.
            return frames.tool_call(
                call.tool_call_id, call.tool_name, arguments, effect="idempotent"
            )
        case FunctionToolResultEvent(part=part):
            return _result(part)
        case _:
            return None


def plain(value: Any) -> JsonValue:
    """Return a value as JSON, or as its text where it is none."""
    try:
        return decode_value(encode_value(_ANY.dump_python(value, mode="json", fallback=str)))
    except NotSerializableError:
        return str(value)


def tapped(showing: Showing, handler: EventStreamHandler[Any] | None) -> EventStreamHandler[Any]:
    """Return a handler that shows a model's stream while `handler`, if any, consumes it."""

    async def handle(context: RunContext[Any], stream: AsyncIterable[AgentStreamEvent]) -> None:
        async def seen() -> AsyncIterator[AgentStreamEvent]:
            async for event in stream:
                frame = said_in(event)
                if frame is not None:
                    await showing.show(frame)
                yield event

        events = seen()
        if handler is not None:
            await handler(context, events)
        async for _ in events:
            pass  # What the handler has left, readers see all the same.

    return handle


def _result(part: ToolReturnPart) -> Frame:
    if part.outcome == "success":
        return frames.tool_result(part.tool_call_id, plain(part.content))
    told = part.content if isinstance(part.content, str) else str(part.content)
    return frames.tool_result(part.tool_call_id, error={"code": part.outcome, "message": told})
