"""What a provider wants back, word for word, with the results of the tools that it called.

Models that think sign their thoughts, and providers refuse or lose the thread where these are not
given back along with the calls. A backend tells them with `upstream_end`, and whoever asks again
puts them into the assistant's message under `REPLAY`. Only the backend that told them reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast

from perdure.core.records import JsonValue

REPLAY: Final = "replay"
"""The field of `upstream_end`, and of an assistant's message."""

Message = Mapping[str, JsonValue]


def to_replay(backend: str, content: JsonValue) -> dict[str, JsonValue]:
    """Return what the backend of this name is to be given back."""
    return {"backend": backend, "content": content}


def replay_in(message: Message, backend: str) -> list[dict[str, JsonValue]]:
    """Return what the backend of this name once told with this message; nothing if it did not."""
    told = message.get(REPLAY)
    if not isinstance(told, dict):
        return []
    fields = cast("dict[str, JsonValue]", told)
    return fields["content"] if fields.get("backend") == backend else []


def without_replay(messages: Sequence[Message]) -> list[Message]:
    """Return the messages as every provider accepts them."""
    return [
        {name: value for name, value in message.items() if name != REPLAY}
        if REPLAY in message
        else message
        for message in messages
    ]
