"""Asking the Anthropic backend: a model server answers with the events of one message."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perdure.backends.anthropic import AnthropicBackend
from perdure.backends.protocol import Prompt
from perdure.core.frames import Frame, text, upstream_end, usage
from perdure.errors import BackendTransportError
from tests.backends.asking import KEY, PROMPT, QUICK
from tests.backends.model_server import ModelServer

COUNTED = {
    "input_tokens": 9,
    "cache_read_input_tokens": 4,
    "cache_creation_input_tokens": 2,
    "output_tokens": 1,
}
USED = usage(
    provider="anthropic",
    model="claude-1-0613",
    request_id="msg_1",
    tokens_in=15,
    tokens_out=7,
    tokens_cached=4,
    tokens_cache_written=2,
    tokens_reasoning=3,
)


def wire(*records: dict[str, Any]) -> bytes:
    """Return records as the provider sends them: each with its type as the event's name."""
    return "".join(f"event: {r['type']}\ndata: {json.dumps(r)}\n\n" for r in records).encode()


def begun(**fields: Any) -> dict[str, Any]:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
    named = {"model": "claude-1-0613", "usage": COUNTED}
    return {"type": "message_start", "message": {**message, **named, **fields}}


def block(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    described = {"type": kind, **fields}
    return {"type": "content_block_start", "index": index, "content_block": described}


def delta(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def end(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def changed(reason: str, **counted: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": counted}


def refused(kind: str, message: str = "no") -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


PING = {"type": "ping"}
STOP = {"type": "message_stop"}
ENDING = [
    changed("end_turn", output_tokens=7, output_tokens_details={"thinking_tokens": 3}),
    STOP,
]
HELLO = [
    begun(),
    block(0, "text", text=""),
    PING,
    delta(0, "text_delta", text="Hel"),
    delta(0, "text_delta", text="lo"),
    end(0),
    *ENDING,
]
HELLO_FRAMES = [text("Hel"), text("lo"), USED, upstream_end("stop")]


def backend_of(server: ModelServer, **options: Any) -> AnthropicBackend:
    given = {"base_url": server.base_url, "model": "claude-1", "retry": QUICK, **options}
    return AnthropicBackend(KEY, **given)


async def ask(backend: AnthropicBackend, prompt: Prompt = PROMPT) -> list[Frame]:
    """Return the whole answer; the backend is closed afterwards, its connections with it."""
    try:
        return [frame async for frame in backend.stream(prompt)]
    finally:
        await backend.aclose()


async def ask_in_vain(
    backend: AnthropicBackend, prompt: Prompt = PROMPT
) -> tuple[list[Frame], BackendTransportError]:
    """Return what came before the failure, and the failure."""
    frames: list[Frame] = []
    try:
        async for frame in backend.stream(prompt):
            frames.append(frame)  # noqa: PERF401 - what came before the failure counts
    except BackendTransportError as failure:
        return frames, failure
    finally:
        await backend.aclose()
    pytest.fail(f"no failure after {frames}")
