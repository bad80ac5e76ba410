"""Agents in sandboxes as execution backends: their raw events, told as events of a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, Literal, cast

from perdure.agent.adapter import resolve
from perdure.agent.backend import AgentBackendContext, AgentBackendInput, AgentStartContext
from perdure.agent.sessions import RuntimeSession, new_session, touched
from perdure.agent.stream_events import (
    ArtifactEvent,
    BackendStreamEvent,
    ProposalCreatedEvent,
    ReasoningDeltaEvent,
    TextDeltaEvent,
    ToolCallEvent,
    ToolResultEvent,
)
from perdure.core.records import JsonValue

KIND: Final = "sandbox"

Raw = Mapping[str, JsonValue]
Dropped = Literal["drop"]
DROP: Final[Dropped] = "drop"
"""What a `map_event` returns for an event that nobody is to be told."""


class SandboxPromptBackend:
    """Prompts an agent in a box, and maps what it streams.

    `get_box(input, context)` gives the box, `stream_prompt(box, message, context)` what the agent
    says to a message, as an async iterator of raw events. `map_event(event, context)` makes an
    event of a raw one, `DROP` to suppress it, or None to leave it to the default mapping, which
    drops what it does not know. `get_session_id(box, input)` names the session after the box.
    All but the iterator may be plain or async.
    """

    def __init__(
        self,
        get_box: Callable[[AgentBackendInput, AgentStartContext], Any],
        stream_prompt: Callable[[Any, str, AgentBackendContext], Any],
        *,
        kind: str = KIND,
        map_event: Callable[[Any, AgentBackendContext], Any] | None = None,
        get_session_id: Callable[[Any, AgentBackendInput], Any] | None = None,
    ) -> None:
        self.kind = kind
        self._get_box = get_box
        self._stream_prompt = stream_prompt
        self._map_event = map_event
        self._get_session_id = get_session_id

    async def start(self, input: AgentBackendInput, context: AgentStartContext) -> RuntimeSession:
        box = await resolve(self._get_box(input, context))
        named = self._get_session_id and await resolve(self._get_session_id(box, input))
        session_id = named or context.requested_session_id
        return new_session(self.kind, session_id=session_id, metadata={"resumable": True})

    def resume(
        self, session: RuntimeSession, input: AgentBackendInput, context: AgentStartContext
    ) -> RuntimeSession:
        return touched(session, status="active")

    async def stream(
        self, input: AgentBackendInput, context: AgentBackendContext, /
    ) -> AsyncIterator[BackendStreamEvent]:
        box = await resolve(self._get_box(input, context))
        raw_events = await resolve(self._stream_prompt(box, input.last_message, context))
        told: list[str] = []
        async with AsyncExitStack() as stack:
            if hasattr(raw_events, "aclose"):
                # The box must be left with the stream, not when the garbage is collected.
                stack.push_async_callback(cast("AsyncGenerator[Any, None]", raw_events).aclose)
            async for raw in raw_events:
                event = await self._event_of(raw, context, told)
                if isinstance(event, TextDeltaEvent):
                    told.append(event.text)
                if event is not None:
                    yield event

    async def _event_of(
        self, raw: Any, context: AgentBackendContext, told: Sequence[str]
    ) -> BackendStreamEvent | None:
        mapped = self._map_event and await resolve(self._map_event(raw, context))
        if mapped is not None and mapped != DROP:
            return cast("BackendStreamEvent", mapped)
        return None if mapped == DROP else event_of_raw(raw, told=told)


create_sandbox_prompt_backend = SandboxPromptBackend


def event_of_raw(raw: object, *, told: Sequence[str] = ()) -> BackendStreamEvent | None:
    """Return the event that a raw one stands for by the default mapping; None drops it.

    `told` are the pieces of text so far: of a closing event that has all of it only the rest is
    told.
    """
    if not isinstance(raw, Mapping):
        return None
    event = cast("Raw", raw)
    make = _MAPPING.get(event.get("type")) if isinstance(event.get("type"), str) else None
    if make is None:
        return None
    data = event.get("data")
    return make(_object(data) if isinstance(data, Mapping) else event, event, told)


def _text(data: Raw, event: Raw, told: Sequence[str]) -> BackendStreamEvent | None:
    nested = _object(data.get("part"))
    of_part = nested.get("text") if nested.get("type") == "text" else None
    found = _first_text(data.get("text"), data.get("delta"), event.get("text"), of_part)
    return TextDeltaEvent(text=found) if found else None


def _reasoning(data: Raw, event: Raw, told: Sequence[str]) -> BackendStreamEvent | None:
    found = _first_text(data.get("text"), event.get("text"))
    return ReasoningDeltaEvent(text=found) if found else None


def _closing(data: Raw, event: Raw, told: Sequence[str]) -> BackendStreamEvent | None:
    found = _first_text(data.get("finalText"), data.get("text"), event.get("text"))
    so_far = "".join(told)
    if not found or not found.startswith(so_far):
        return None
    rest = found[len(so_far) :]
    return TextDeltaEvent(text=rest) if rest else None


def _tool_call(data: Raw, event: Raw, told: Sequence[str]) -> BackendStreamEvent:
    args = _first(data.get("args"), data.get("input"), event.get("args"))
    return ToolCallEvent(**_tool(data, event), args=args)


def _tool_result(data: Raw, event: Raw, told: Sequence[str]) -> BackendStreamEvent:
    result = _first(data.get("result"), data.get("output"), event.get("result"))
    return ToolResultEvent(**_tool(data, event), result=result)


def _tool(data: Raw, event: Raw) -> dict[str, Any]:
    return {
        "tool_name": _first_text(data.get("name"), event.get("toolName")) or "tool",
        "tool_call_id": _first_text(data.get("id"), event.get("toolCallId")),
    }


def _artifact(data: Raw, event: Raw, told: Sequence[str]) -> BackendStreamEvent | None:
    found = _first_text(data.get("artifactId"), data.get("id"), event.get("artifactId"))
    if not found:
        return None
    return ArtifactEvent(
        artifact_id=found,
        name=_first_text(data.get("name")),
        mime_type=_first_text(data.get("mimeType")),
        uri=_first_text(data.get("uri")),
        content=data.get("content"),
        metadata=_object(data.get("metadata")) or None,
    )


def _proposal(data: Raw, event: Raw, told: Sequence[str]) -> BackendStreamEvent | None:
    found = _first_text(data.get("proposalId"), data.get("id"), event.get("proposalId"))
    if not found:
        return None
    status = data.get("status")
    return ProposalCreatedEvent(
        proposal_id=found,
        title=_first_text(data.get("title")) or found,
        status=status if status in ("pending", "approved", "rejected") else None,
        content=data.get("content"),
    )


_Make = Callable[[Raw, Raw, Sequence[str]], BackendStreamEvent | None]
_MAPPING: Final[Mapping[JsonValue, _Make]] = {
    "message.part.updated": _text,
    "text_delta": _text,
    "delta": _text,
    "reasoning_delta": _reasoning,
    "tool_call": _tool_call,
    "tool_result": _tool_result,
    "result": _closing,
    "final": _closing,
    "artifact": _artifact,
    "proposal_created": _proposal,
    "proposal": _proposal,
    "filing": _proposal,
}


def _object(value: JsonValue) -> Raw:
    return cast("Raw", value) if isinstance(value, Mapping) else {}


def _first(*values: JsonValue) -> JsonValue:
    return next((value for value in values if value is not None), None)


def _first_text(*values: JsonValue) -> str | None:
    return next((value for value in values if isinstance(value, str) and value), None)
