"""What a sandbox streams in a chat turn: bytes to events, and a whole turn's events summed up."""

from __future__ import annotations

import codecs
import logging
from collections.abc import AsyncIterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, cast

from perdure.agent.sandbox_backend import event_of_raw
from perdure.agent.stream_events import (
    FinalEvent,
    LlmCallEvent,
    RuntimeStreamEvent,
    TextDeltaEvent,
    ToolCallEvent,
    UnknownEvent,
    event_from_wire,
)
from perdure.backends.sse import EVENT_CHARS_MAX, SSEParser
from perdure.core.jsonvalue import parse_json
from perdure.core.records import JsonValue
from perdure.errors import UsageError, ValueTooLargeError

logger = logging.getLogger("perdure.agent")

DONE: Final = "[DONE]"
"""What some servers send behind their last event."""

MARK: Final = codecs.BOM_UTF8
"""What some servers send before their first byte."""

TERMINAL_TYPES: Final = ("final", "result", "done", "error")

ChatTurnEvent = RuntimeStreamEvent | UnknownEvent
"""A typed event where its type is known and its fields fit, else what was sent, as it came."""


class ChatTurnReader:
    """Bytes in, events out; how the bytes are cut into chunks makes no difference.

    The stream is server-sent events, or one JSON object on each line: its first character tells.
    What is no JSON object is skipped. Raises ValueTooLargeError for an event that is too large.
    """

    def __init__(self, *, event_chars_max: int = EVENT_CHARS_MAX) -> None:
        self._event_chars_max = event_chars_max
        self._sse: SSEParser | None = None
        self._head: bytes = b""
        self._is_lines = False

    def feed(self, chunk: bytes) -> Iterator[ChatTurnEvent]:
        """Yield the events that `chunk` completes."""
        if self._sse is not None:
            for event in self._sse.feed(chunk):
                yield from _events_of(event.data)
            return
        if not self._is_lines:
            chunk = (self._head + chunk).lstrip().removeprefix(MARK).lstrip()
            if MARK.startswith(chunk):
                # Nothing yet, or a mark that was cut in two.
                self._head = chunk
                return
            self._head = b""
            if not chunk.startswith(b"{"):
                self._sse = SSEParser(event_chars_max=self._event_chars_max)
                yield from self.feed(chunk)
                return
            self._is_lines = True
        yield from self._lines(chunk)

    def close(self) -> Iterator[ChatTurnEvent]:
        """Yield the last event, if it is whole although its end is not marked."""
        if self._sse is not None:
            event = self._sse.close()
            if event is not None:
                yield from _events_of(event.data)
        else:
            yield from _events_of(_data_of(self._head))

    def _lines(self, chunk: bytes) -> Iterator[ChatTurnEvent]:
        *lines, self._head = (self._head + chunk).split(b"\n")
        if len(self._head) > self._event_chars_max:
            raise ValueTooLargeError(f"a line is longer than {self._event_chars_max} characters")
        for line in lines:
            yield from _events_of(_data_of(line))


def _data_of(line: bytes) -> str:
    """Return what a line says; among lines of JSON some may be written as fields of events."""
    return line.decode("utf-8", "replace").strip().removeprefix("data:")


def _events_of(data: str) -> Iterator[ChatTurnEvent]:
    """Yield the event that `data` is; or one for each line, if only they are JSON."""
    found = _object(data)
    pieces = [found] if found is not None else map(_object, data.split("\n"))
    for piece in pieces:
        if piece is not None:
            yield event_of_wire(piece)
        elif data.strip() not in ("", DONE):
            logger.debug("a sandbox sent something that is no JSON object")


def _object(text: str) -> dict[str, JsonValue] | None:
    try:
        value = parse_json(text, name="an event", bytes_max=len(text))
    except UsageError:
        return None
    return cast("dict[str, JsonValue]", value) if isinstance(value, dict) else None


def event_of_wire(value: Mapping[str, JsonValue]) -> ChatTurnEvent:
    """Return the typed event if the type is known and its fields fit, else an UnknownEvent."""
    try:
        return event_from_wire(value, lenient=True)
    except UsageError:
        kind = value.get("type")
        return UnknownEvent(kind if isinstance(kind, str) else "", dict(value))


@dataclass(frozen=True, slots=True)
class ChatTurnResult:
    """What a chat turn came to.

    `text` is what the deltas add up to, and what a closing event has beyond them. `calls` are the
    model calls whose usage was told, `terminal` the event that ended the turn, None if it was cut
    off.
    """

    text: str
    tool_calls: tuple[ToolCallEvent, ...]
    calls: tuple[LlmCallEvent, ...]
    terminal: ChatTurnEvent | None
    event_count: int


async def collect_chat_turn(events: AsyncIterable[ChatTurnEvent]) -> ChatTurnResult:
    """Read a chat turn to its end, and return what it came to; raises what the turn raises."""
    texts: list[str] = []
    tools: list[ToolCallEvent] = []
    calls: list[LlmCallEvent] = []
    terminal: ChatTurnEvent | None = None
    count = 0
    async for event in events:
        count += 1
        known: ChatTurnEvent | None = event
        if isinstance(event, UnknownEvent):
            known = event_of_raw(event.data, told=texts)
        match known:
            case TextDeltaEvent(text=text):
                texts.append(text)
            case FinalEvent(text=str(whole)) if whole.startswith("".join(texts)):
                texts = [whole]
            case ToolCallEvent() as tool:
                tools.append(tool)
            case LlmCallEvent() as call:
                calls.append(call)
            case _:
                pass
        if event.type in TERMINAL_TYPES:
            terminal = event
    return ChatTurnResult("".join(texts), tuple(tools), tuple(calls), terminal, count)
