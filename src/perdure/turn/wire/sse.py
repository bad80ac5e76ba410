"""Server-sent events: the same events, with the cursor as `id:`, so browsers reconnect by it."""

from __future__ import annotations

import json
from typing import Final

from perdure.turn.wire.events import Event

CONTENT_TYPE: Final = "text/event-stream"

_dumps = json.JSONEncoder(separators=(",", ":")).encode


class SSE:
    """`data:` is the NDJSON line. There is no `event:`, so browsers hand all to `onmessage`."""

    @property
    def content_type(self) -> str:
        return CONTENT_TYPE

    def encode(self, event: Event, cursor: str | None) -> bytes:
        """Return one event. JSON in ASCII has no line ends, and a cursor is made by us."""
        if cursor is None:
            return f"data: {_dumps(event)}\n\n".encode()
        return f"id: {cursor}\ndata: {_dumps(event)}\n\n".encode()

    def heartbeat(self) -> bytes:
        """Return a comment."""
        return b": hb\n\n"
