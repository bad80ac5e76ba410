"""NDJSON: one event a line, ASCII, so that no character of a model can break a line."""

from __future__ import annotations

from typing import Final

from perdure.core.jsonvalue import dumps
from perdure.turn.wire.events import Event

CONTENT_TYPE: Final = "application/x-ndjson"


class NDJSON:
    """The reference's wire: bare events. It has no cursors and no heartbeat."""

    @property
    def content_type(self) -> str:
        return CONTENT_TYPE

    @property
    def has_cursors(self) -> bool:
        return False

    def encode(self, event: Event, cursor: str | None) -> bytes:
        """Return one line."""
        return self.frame(dumps(event), cursor).encode()

    def frame(self, event_text: str, cursor: str | None) -> str:
        """Return the line of an event that is JSON already."""
        return f"{event_text}\n"

    def heartbeat(self) -> bytes:
        """Return nothing: an old client may not know what to do with an empty line."""
        return b""


class Envelope:
    """Each line is `{"id": cursor, "chunk": event}`; a heartbeat has neither.

    `id` is null where a reader could not go on behind the line: it keeps the last one it got.
    """

    @property
    def content_type(self) -> str:
        return CONTENT_TYPE

    @property
    def has_cursors(self) -> bool:
        return True

    def encode(self, event: Event, cursor: str | None) -> bytes:
        """Return one line."""
        return self.frame(dumps(event), cursor).encode()

    def frame(self, event_text: str, cursor: str | None) -> str:
        """Return the line of an event that is JSON already; a cursor needs no escapes."""
        told = "null" if cursor is None else f'"{cursor}"'
        return f'{{"id":{told},"chunk":{event_text}}}\n'

    def heartbeat(self) -> bytes:
        """Return a line that says only that the connection lives."""
        return b'{"id":null,"chunk":null}\n'
