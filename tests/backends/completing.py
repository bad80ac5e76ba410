"""Reading chat completions: what a reader makes of the records of an answer."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.backends.completion import CompletionReader
from perdure.core.frames import Frame
from perdure.errors import BackendTransportError
from tests.backends.model_server import chunk, sse


def read(*chunks: bytes) -> list[Frame]:
    reader = CompletionReader("openai")
    frames = [frame for each in chunks for frame in reader.feed(each)]
    return [*frames, *reader.close()]


def failure_of(*records: Any) -> BackendTransportError:
    with pytest.raises(BackendTransportError) as caught:
        read(sse(*records))
    return caught.value


def calls(*fragments: dict[str, Any]) -> dict[str, Any]:
    return chunk(tool_calls=list(fragments))


def fragment(arguments: str | None = None, **fields: Any) -> dict[str, Any]:
    name = fields.pop("name", None)
    return {**fields, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool_frames(*records: Any) -> list[Frame]:
    frames = read(sse(*records, chunk("tool_calls")))
    return [frame for frame in frames if frame.kind == "tool_call"]
