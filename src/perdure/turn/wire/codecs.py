"""The wires by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from perdure.errors import UsageError
from perdure.turn.wire.events import Event
from perdure.turn.wire.ndjson import NDJSON, Envelope
from perdure.turn.wire.sse import SSE


class Codec(Protocol):
    """One wire: how an event, with the cursor behind it, becomes bytes."""

    @property
    def content_type(self) -> str: ...
    @property
    def has_cursors(self) -> bool:
        """Whether a cursor is written at all."""
        ...

    def encode(self, event: Event, cursor: str | None) -> bytes:
        """Return the event as it is sent."""
        ...

    def frame(self, event_text: str, cursor: str | None) -> str:
        """Return what is sent, in ASCII, of an event that is JSON already."""
        ...

    def heartbeat(self) -> bytes:
        """Return what says only that the connection lives; nothing where there is no such thing."""
        ...


WIRES: Final[Mapping[str, Callable[[], Codec]]] = {
    "ndjson": NDJSON,
    "envelope": Envelope,
    "sse": SSE,
}


def codec_for(wire: str) -> Codec:
    """Return the codec of a wire. Raises UsageError for a name that is none."""
    if wire not in WIRES:
        raise UsageError(f"there is no wire {wire!r} (known: {', '.join(WIRES)})")
    return WIRES[wire]()
