"""What each backend asks of its provider, beside what the provider's own client asks."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs, urlsplit

import openai
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from openai.types.responses import ResponseInputItemParam
from pydantic import TypeAdapter

from perdure.backends.protocol import Prompt
from perdure.backends.responses import OpenAIResponsesBackend
from perdure.core.frames import fold_parts, text_of
from tests.backends import messaging, responding
from tests.backends.asking import QUICK
from tests.backends.model_server import Cut, ModelServer, Received, Reply, refusal, reply, sse
from tests.backends.official import KEY, TOOL, Api, backend_of

WIRES = {
    "chat": sse(
        {"choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}]},
        "[DONE]",
    ),
    "messages": messaging.wire(*messaging.HELLO),
}
ASKED: list[dict[str, Any]] = [
    {"role": "user", "content": "How warm is Paris?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": TOOL["name"], "arguments": '{"city": "Paris"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "20"},
]
CALLED = {"name": TOOL["name"], "input": {"city": "Paris"}}
BLOCKS = [
    {"role": "user", "content": [{"type": "text", "text": "How warm is Paris?"}]},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "call_1", **CALLED}]},
    {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": "20"}],
    },
]
NEWEST = "2026-10-21"
"""The version of Anthropic's API that its client asks for; ours knows `temperature` still."""


def essence(request: Received) -> tuple[Any, ...]:
    """Return all that a provider looks at."""
    headers, asked = request.headers, urlsplit(request.target)
    key = headers.get("x-api-key") or headers["authorization"].removeprefix("Bearer ")
    told = key, headers.get("anthropic-version")
    return request.method, asked.path, parse_qs(asked.query), told, request.body


async def ask(server: ModelServer, api: Api, prompt: Prompt, **options: Any) -> None:
    backend = backend_of(api, server.base_url, **options)
    async for _ in backend.stream(prompt):
        pass
    await backend.aclose()


async def test_a_chat_completion_is_asked_for_as_by_the_official_client(
    server: ModelServer,
) -> None:
    server.will(*[reply(WIRES["chat"])] * 2)
    tools: Any = [{"type": "function", "function": TOOL}]
    prompt = Prompt(ASKED, tools=tools, tool_choice="auto", temperature=0.5, max_tokens=9)
    await ask(server, "chat", prompt)
    messages: Any = ASKED
    async with AsyncOpenAI(api_key=KEY, base_url=server.base_url, max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="model-1",
            messages=messages,
            tools=tools,
            tool_choice="auto",
            temperature=0.5,
            max_tokens=9,
            stream=True,
            stream_options={"include_usage": True},
        )
        assert [each async for each in stream]
    mine, other = server.received
    assert essence(mine) == essence(other)


async def test_a_message_is_asked_for_as_by_the_official_client(server: ModelServer) -> None:
    server.will(*[reply(WIRES["messages"])] * 2)
    tools: Any = [{"type": "function", "function": TOOL}]
    prompt = Prompt(ASKED, tools=tools, tool_choice="required", max_tokens=9)
    await ask(server, "messages", prompt, headers={"anthropic-version": NEWEST})
    messages: Any = BLOCKS
    tool: Any = {name: TOOL[name] for name in ("name", "description")}
    tool["input_schema"] = TOOL["parameters"]
    origin = server.base_url.removesuffix("/v1")
    async with AsyncAnthropic(api_key=KEY, base_url=origin, max_retries=0) as client:
        stream = await client.messages.create(
            model="model-1",
            messages=messages,
            tools=[tool],
            tool_choice={"type": "any"},
            max_tokens=9,
            stream=True,
        )
        assert [each async for each in stream]
    mine, other = server.received
    assert essence(mine) == essence(other)


# A response that goes on in the background.

BEHIND = responding.HELLO[2:]


def broken_off() -> list[Reply]:
    """Return how a response comes whose connection is lost behind its second event."""
    return [reply(sse(*responding.HELLO[:2]), Cut()), reply(sse(*BEHIND))]


async def test_a_response_is_asked_for_and_joined_as_by_the_official_client(
    server: ModelServer,
) -> None:
    server.will(*broken_off(), *broken_off())
    backend = OpenAIResponsesBackend(KEY, base_url=server.base_url, model="model-1", retry=QUICK)
    prompt = Prompt([{"role": "user", "content": "Hi"}], max_tokens=9)
    frames = [frame async for frame in backend.stream(prompt)]
    await backend.aclose()

    events: list[Any] = []
    asked: Any = [{"role": "user", "content": "Hi"}]
    async with AsyncOpenAI(api_key=KEY, base_url=server.base_url, max_retries=0) as client:
        stream = await client.responses.create(
            model="model-1",
            input=asked,
            background=True,
            store=True,
            stream=True,
            max_output_tokens=9,
        )
        with suppress(openai.APIError):
            async for event in stream:
                events.append(event)  # noqa: PERF401 - what came before the failure counts
        assert len(events) == 2
        rest = await client.responses.retrieve(
            events[0].response.id, stream=True, starting_after=events[-1].sequence_number
        )
        events += [event async for event in rest]

    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert text_of(fold_parts(frames)) == "".join(deltas) == "Hello"
    mine, other = server.received[:2], server.received[2:]
    assert [essence(request) for request in mine] == [essence(request) for request in other]


async def test_a_response_is_joined_anew_and_ended_as_by_the_official_client(
    server: ModelServer,
) -> None:
    whole, ended = reply(sse(*responding.HELLO)), json.dumps(responding.response()).encode()
    server.will(whole, refusal(200, ended), whole, refusal(200, ended))
    backend = OpenAIResponsesBackend(KEY, base_url=server.base_url, model="model-1", retry=QUICK)
    assert [frame async for frame in backend.attach(responding.HANDLE)]
    await backend.cancel(responding.HANDLE)
    await backend.aclose()
    async with AsyncOpenAI(api_key=KEY, base_url=server.base_url, max_retries=0) as client:
        assert [each async for each in await client.responses.retrieve("resp_1", stream=True)]
        await client.responses.cancel("resp_1")
    mine, other = server.received[:2], server.received[2:]
    assert [each.target for each in mine] == [each.target for each in other]
    assert [each.method for each in mine] == [each.method for each in other]
    keys = {each.headers["authorization"] for each in server.received}
    assert keys == {f"Bearer {KEY}"}


async def test_parts_of_messages_have_the_form_that_the_official_client_names(
    server: ModelServer,
) -> None:
    server.will(reply(sse(*responding.HELLO)))
    picture = {"type": "image_url", "image_url": {"url": "https://a.example/a", "detail": "low"}}
    document = {"type": "file", "file": {"file_id": "file-1", "filename": "a.pdf"}}
    called = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    told = [{"type": "text", "text": "found"}, picture]
    messages: Any = [
        {"role": "user", "content": [{"type": "text", "text": "?"}, picture, document]},
        {"role": "assistant", "content": None, "tool_calls": called},
        {"role": "tool", "tool_call_id": "c1", "content": told},
    ]
    await ask(server, "responses", Prompt(messages))
    (request,) = server.received
    user, _, result = request.body["input"]
    image = {"type": "input_image", "image_url": "https://a.example/a", "detail": "low"}
    file = {"type": "input_file", "file_id": "file-1", "filename": "a.pdf"}
    assert user["content"] == [{"type": "input_text", "text": "?"}, image, file]
    assert result["output"] == [{"type": "input_text", "text": "found"}, image]
    official: Any = TypeAdapter(ResponseInputItemParam)
    for item in request.body["input"]:
        official.validate_python(item)
