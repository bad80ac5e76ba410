"""Asking the backend that is under test: the model server of a test answers."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.backends.openai import OpenAIBackend
from perdure.backends.protocol import Prompt
from perdure.backends.retry import BackendRetry
from perdure.core.frames import Frame, text, upstream_end
from perdure.errors import BackendTransportError
from tests.backends.model_server import ModelServer, chunk, sse

KEY = "sk-canary-0123456789"
PROMPT = Prompt([{"role": "user", "content": "Hi"}])
HELLO = sse(chunk(content="Hel"), chunk(content="lo"), chunk("stop"), "[DONE]")
HELLO_FRAMES = [text("Hel"), text("lo"), upstream_end("stop")]
QUICK = BackendRetry(tries_max=3, backoff_ms=1, backoff_max_ms=2)


def backend_of(server: ModelServer, **options: Any) -> OpenAIBackend:
    given = {"base_url": server.base_url, "model": "model-1", "retry": QUICK, **options}
    return OpenAIBackend(KEY, **given)


async def ask(backend: OpenAIBackend, prompt: Prompt = PROMPT) -> list[Frame]:
    """Return the whole answer; the backend is closed afterwards, its connections with it."""
    try:
        return [frame async for frame in backend.stream(prompt)]
    finally:
        await backend.aclose()


async def ask_in_vain(
    backend: OpenAIBackend, prompt: Prompt = PROMPT
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
