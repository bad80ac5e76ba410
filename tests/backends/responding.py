"""Asking the Responses backend: a model server answers with the events of one response."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.backends.protocol import Prompt
from perdure.backends.responses import OpenAIResponsesBackend
from perdure.core.frames import Frame, text, upstream_begin, upstream_end, usage
from perdure.errors import BackendTransportError
from tests.backends.asking import KEY, PROMPT, QUICK
from tests.backends.model_server import ModelServer

HANDLE = {"response": "resp_1"}
COUNTED = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
    "output_tokens": 2,
    "output_tokens_details": {"reasoning_tokens": 1},
}
USED = usage(
    provider="openai",
    model="model-1-0613",
    tokens_in=9,
    tokens_out=2,
    tokens_cached=4,
    tokens_cache_written=3,
    tokens_reasoning=1,
    request_id="resp_1",
)


def event(kind: str, number: int | None = None, **data: Any) -> dict[str, Any]:
    numbered = {} if number is None else {"sequence_number": number}
    return {"type": kind, **numbered, **data}


def response(**fields: Any) -> dict[str, Any]:
    return {"id": "resp_1", "model": "model-1-0613", "background": True, **fields}


def delta(number: int, written: str, kind: str = "output_text") -> dict[str, Any]:
    return event(f"response.{kind}.delta", number, delta=written)


BEGUN = event("response.created", 0, response=response(status="queued"))
DONE = event("response.completed", 9, response=response(usage=COUNTED))
HELLO = [BEGUN, delta(1, "Hel"), delta(2, "lo"), DONE]
HELLO_FRAMES = [upstream_begin(HANDLE), text("Hel"), text("lo"), USED, upstream_end("stop")]


def backend_of(server: ModelServer, **options: Any) -> OpenAIResponsesBackend:
    given = {"base_url": server.base_url, "model": "model-1", "retry": QUICK, **options}
    return OpenAIResponsesBackend(KEY, **given)


async def ask(backend: OpenAIResponsesBackend, prompt: Prompt = PROMPT) -> list[Frame]:
    try:
        return [frame async for frame in backend.stream(prompt)]
    finally:
        await backend.aclose()


async def ask_in_vain(
    backend: OpenAIResponsesBackend,
) -> tuple[list[Frame], BackendTransportError]:
    found: list[Frame] = []
    try:
        async for frame in backend.stream(PROMPT):
            found.append(frame)  # noqa: PERF401 - what came before the failure counts
    except BackendTransportError as failure:
        return found, failure
    finally:
        await backend.aclose()
    pytest.fail(f"no failure after {found}")
