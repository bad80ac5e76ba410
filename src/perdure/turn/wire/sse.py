"""Server-sent events: the same events, with the cursor as `id:`, so browsers reconnect by it."""

from __future__ import annotations

from typing import Final

from perdure.core.jsonvalue import dumps
from perdure.turn.wire.events import Event

CONTENT_TYPE: Final = "text/event-stream"


class SSE:
    """`data:` is the NDJSON line. There is no `event:`, so browsers hand all to `onmessage`."""

    @property
    def content_type(self) -> str:
        return CONTENT_TYPE

    @property
    def has_cursors(self) -> bool:
        return True

    def encode(self, event: Event, cursor: str | None) -> bytes:
        """Return one event."""
        return self.frame(dumps(event), cursor).encode()

    def frame(self, event_text: str, cursor: str | None) -> str:
        """Return one event. JSON in ASCII has no line ends, and a cursor is made by us."""
        if cursor is None:
            return f"data: {event_text}\n\n"
        return f"id: {cursor}\ndata: {event_text}\n\n"

    def heartbeat(self) -> bytes:
        """Return a comment."""
        return b": hb\n\n"
