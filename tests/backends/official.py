"""The providers' own clients, as a measure: what they read of a wire, and how they fail at it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import anthropic
import openai
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from perdure.backends.anthropic import AnthropicBackend
from perdure.backends.openai import OpenAIBackend
from perdure.backends.protocol import Backend, Prompt
from perdure.backends.responses import OpenAIResponsesBackend
from perdure.backends.retry import BackendRetry
from perdure.core.frames import fold_parts, text_of
from perdure.errors import BackendTransportError

Api = Literal["chat", "responses", "messages"]
APIS: Sequence[Api] = ("chat", "responses", "messages")
KEY = "sk-canary-0123456789"
ONCE = BackendRetry(tries_max=1)
TOOL = {
    "name": "get_weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object"},
}

_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "max_output_tokens": "length",
}


class Told(NamedTuple):
    """What a client has read of an answer."""

    text: str
    calls: Sequence[tuple[str, str, Any]]
    tokens: tuple[int | None, int | None]
    finish: str | None


class Failed(NamedTuple):
    """How a client has failed: the status, 0 where there was no response."""

    status: int


def backend_of(api: Api, base_url: str, **options: Any) -> Backend:
    kinds: dict[Api, Any] = {
        "chat": OpenAIBackend,
        "responses": OpenAIResponsesBackend,
        "messages": AnthropicBackend,
    }
    given = {"base_url": base_url, "model": "model-1", "retry": ONCE, **options}
    backend: Backend = kinds[api](KEY, **given)
    return backend


async def ours(api: Api, base_url: str, words: str, **options: Any) -> Told | Failed:
    """Return what our backend reads of the answer to `words`."""
    backend = backend_of(api, base_url, **options)
    tools = [{"type": "function", "function": TOOL}]
    prompt = Prompt([{"role": "user", "content": words}], tools=tools)
    try:
        frames = [frame async for frame in backend.stream(prompt)]
    except BackendTransportError as error:
        return Failed(error.status)
    finally:
        await backend.aclose()
    used = next((frame.data for frame in frames if frame.kind == "usage"), {})
    calls = [frame.data for frame in frames if frame.kind == "tool_call"]
    return Told(
        text_of(fold_parts(frames)),
        [(call["call"], call["name"], call["args"]) for call in calls],
        (used.get("in"), used.get("out")),
        frames[-1].data["finish"],
    )


async def theirs(
    api: Api, base_url: str, words: str, *, headers: dict[str, str] | None = None
) -> Told | Failed:
    """Return what the provider's own client reads of the answer to `words`."""
    ask = {"chat": _chat, "responses": _responses, "messages": _messages}[api]
    try:
        return await ask(base_url, words, headers or {})
    except (openai.APIStatusError, anthropic.APIStatusError) as error:
        return Failed(error.status_code)
    except (openai.APIError, anthropic.APIError, json.JSONDecodeError):
        return Failed(0)


async def _chat(base_url: str, words: str, headers: dict[str, str]) -> Told:
    async with AsyncOpenAI(api_key=KEY, base_url=base_url, max_retries=0) as client:
        asked: Any = {
            "model": "model-1",
            "messages": [{"role": "user", "content": words}],
            "tools": [{"type": "function", "function": TOOL}],
            "stream_options": {"include_usage": True},
            "extra_headers": headers,
        }
        try:
            async with client.chat.completions.stream(**asked) as stream:
                whole: Any = await stream.get_final_completion()
        except openai.LengthFinishReasonError as cut:
            whole = cut.completion
    choice = whole.choices[0]
    called: Any = choice.message.tool_calls or ()
    calls = [(call.id, call.function.name, json.loads(call.function.arguments)) for call in called]
    used = whole.usage
    tokens = (None, None) if used is None else (used.prompt_tokens, used.completion_tokens)
    return Told(choice.message.content or "", calls, tokens, choice.finish_reason)


async def _responses(base_url: str, words: str, headers: dict[str, str]) -> Told:
    async with AsyncOpenAI(api_key=KEY, base_url=base_url, max_retries=0) as client:
        asked: Any = {
            "model": "model-1",
            "input": words,
            "tools": [{"type": "function", **TOOL}],
            "extra_headers": headers,
        }
        async with client.responses.stream(**asked) as stream:
            whole = await stream.get_final_response()
    items: Any = whole.output
    called = [item for item in items if item.type == "function_call"]
    calls = [(call.call_id, call.name, json.loads(call.arguments)) for call in called]
    used, why = whole.usage, whole.incomplete_details
    tokens = (None, None) if used is None else (used.input_tokens, used.output_tokens)
    finish = "tool_calls" if calls else "stop"
    if why is not None and why.reason is not None:
        finish = _FINISH.get(why.reason, why.reason)
    return Told(whole.output_text, calls, tokens, finish)


async def _messages(base_url: str, words: str, headers: dict[str, str]) -> Told:
    origin = base_url.removesuffix("/v1")
    async with AsyncAnthropic(api_key=KEY, base_url=origin, max_retries=0) as client:
        tool = {"name": TOOL["name"], "input_schema": TOOL["parameters"]}
        asked: Any = {
            "model": "model-1",
            "max_tokens": 100,
            "messages": [{"role": "user", "content": words}],
            "tools": [tool],
            "extra_headers": headers,
        }
        async with client.messages.stream(**asked) as stream:
            whole = await stream.get_final_message()
    blocks: Any = whole.content
    used: Any = whole.usage
    came_in = used.input_tokens + (used.cache_read_input_tokens or 0)
    came_in += used.cache_creation_input_tokens or 0
    return Told(
        "".join(block.text for block in blocks if block.type == "text"),
        [(block.id, block.name, block.input) for block in blocks if block.type == "tool_use"],
        (came_in, used.output_tokens),
        _FINISH.get(whole.stop_reason or "", whole.stop_reason),
    )
