"""The parser of server-sent events, after the rules of the HTML standard (WHATWG, section 9.2)."""

from __future__ import annotations

import codecs
from typing import Final, NamedTuple

from perdure.errors import ValueTooLargeError

EVENT_CHARS_MAX: Final = 16 * 1024 * 1024
"""The size of one event: its data, and the line that is being read.

The end of a response repeats all of it, its images too.
"""
RETRY_DIGITS_MAX: Final = 15

_decoder = codecs.getincrementaldecoder("utf-8-sig")


class SSEEvent(NamedTuple):
    """One event of a stream. `id` is the last event id that was seen, here or earlier."""

    data: str
    event: str = "message"
    id: str = ""


class SSEParser:
    """Bytes in, events out; how the bytes are cut into chunks makes no difference.

    `last_event_id` (of the events that were completed) and `retry_ms` (the reconnection time,
    None if never given) are what the stream has said so far. After an error the parser is of no
    further use.
    """

    def __init__(self, *, event_chars_max: int = EVENT_CHARS_MAX) -> None:
        self.last_event_id = ""
        self.retry_ms: int | None = None
        self._event_chars_max = event_chars_max
        self._decode = _decoder(errors="replace").decode
        self._after_cr = False
        self._line: list[str] = []
        self._line_chars = 0
        self._data: list[str] = []
        self._data_chars = 0
        self._event = ""
        self._id = ""

    def feed(self, chunk: bytes) -> list[SSEEvent]:
        """Return the events that `chunk` completes.

        Raises ValueTooLargeError when an event is over `event_chars_max`.
        """
        return self._read(self._decode(chunk))

    def close(self) -> SSEEvent | None:
        """End the stream; return the event whose blank line never came, None if there is none.

        The standard says to drop it, as it may be cut off in its middle; it does not count for
        `last_event_id`. A caller who can tell a whole one may use it.
        """
        last_event_id = self.last_event_id
        events = self._read(self._decode(b"", True) + "\n\n")
        self.last_event_id = last_event_id
        return events[0] if events else None

    def _read(self, text: str) -> list[SSEEvent]:
        if not text:
            return []
        if self._after_cr and text[0] == "\n":
            text = text[1:]
        self._after_cr = text.endswith("\r")
        *lines, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        events: list[SSEEvent] = []
        for piece in lines:
            self._extend_line(piece)
            line = "".join(self._line)
            self._line.clear()
            self._line_chars = 0
            if line:
                self._field(line)
            elif (event := self._dispatch()) is not None:
                events.append(event)
        self._extend_line(rest)
        return events

    def _extend_line(self, piece: str) -> None:
        self._line.append(piece)
        self._line_chars += len(piece)
        if self._line_chars + self._data_chars > self._event_chars_max:
            raise ValueTooLargeError(
                f"a server-sent event is longer than {self._event_chars_max} characters"
            )

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
                self._data_chars += len(value) + 1
            case "event":
                self._event = value
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit() and len(value) <= RETRY_DIGITS_MAX:
                self.retry_ms = int(value)
            case _:
                pass

    def _dispatch(self) -> SSEEvent | None:
        self.last_event_id = self._id
        event = None
        if self._data:
            event = SSEEvent("\n".join(self._data), self._event or "message", self._id)
        self._data.clear()
        self._data_chars = 0
        self._event = ""
        return event
