"""`perdure serve` before a provider over real HTTP: what the provider is sent, and how often."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest

from tests.backends import messaging
from tests.backends.model_server import ModelServer, Reply, chunk, reply, sse
from tests.backends.responding import BEGUN, DONE, delta
from tests.cli.commands import Serving, serving

PHOTO = {
    "id": "1",
    "mediaType": "image/png",
    "name": "cat.png",
    "url": "https://files.example/cat.png",
}
LIST = {
    "id": "2",
    "mediaType": "text/csv",
    "name": "list.csv",
    "sizeBytes": 12,
    "url": "https://files.example/list.csv",
}
PHOTO_NAMED = "[Attachment cat.png (image/png): https://files.example/cat.png]"
LIST_NAMED = "[Attachment list.csv (text/csv, 12 bytes): https://files.example/list.csv]"

COMPLETION = sse(chunk(content="Hello"), chunk("stop"), "[DONE]")
ANSWERS: Mapping[str, bytes] = {
    "openai": COMPLETION,
    "openai-responses": sse(BEGUN, delta(1, "Hello"), DONE),
    "anthropic": messaging.wire(
        messaging.begun(), messaging.block(0, "text", text="Hello"), *messaging.ENDING
    ),
}
TARGETS = {
    "openai": "/v1/chat/completions",
    "openai-responses": "/v1/responses",
    "anthropic": "/v1/messages",
}


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as running:
        yield running


def answers(backend: str, count: int) -> Sequence[Reply]:
    return [reply(ANSWERS[backend]) for _ in range(count)]


def submit(service: Serving, turn: int, **fields: Any) -> tuple[int, str]:
    """Submit a turn, and return its status and, once it is over, its stream."""
    asked = urllib.request.Request(
        f"{service.origin}/v1/sessions/s/turns",
        data=json.dumps({"turnIndex": turn, **fields}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def environment(server: ModelServer, backend: str) -> Mapping[str, str]:
    prefix = "ANTHROPIC" if backend == "anthropic" else "OPENAI"
    named = {"API_KEY": "k", "BASE_URL": server.base_url, "MODEL": "m-1"}
    return {f"{prefix}_{name}": value for name, value in named.items()}


def submit_all(
    server: ModelServer, backend: str, show: str, turns: Sequence[Mapping[str, Any]]
) -> list[tuple[int, str]]:
    """Serve with a backend, and submit turns to it one after the other."""
    env = environment(server, backend)
    options = ("--store", "memory:", "--backend", backend, "--attachments", show)
    with serving(*options, env=env) as service:
        return [submit(service, turn, **fields) for turn, fields in enumerate(turns)]


async def sent(
    server: ModelServer, backend: str, show: str, *turns: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """Return the bodies that the provider is sent when these turns are answered in order."""
    server.will(*answers(backend, len(turns)))
    told = await asyncio.to_thread(submit_all, server, backend, show, turns)
    assert [status for status, _ in told] == [201] * len(turns)
    assert all("Hello" in stream for _, stream in told)
    assert {request.target for request in server.received} == {TARGETS[backend]}
    name, value = ("x-api-key", "k") if backend == "anthropic" else ("authorization", "Bearer k")
    assert all(request.headers[name] == value for request in server.received)
    return [request.body for request in server.received]


def user(*parts: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"role": "user", "content": list(parts)}


def text(said: str) -> Mapping[str, Any]:
    return {"type": "text", "text": said}


def input_text(said: str) -> Mapping[str, Any]:
    return {"type": "input_text", "text": said}


async def test_images_are_shown_and_other_attachments_named(server: ModelServer) -> None:
    (body,) = await sent(
        server, "openai", "images", {"message": "What?", "attachments": [PHOTO, LIST]}
    )
    picture = {"type": "image_url", "image_url": {"url": PHOTO["url"]}}
    assert body["model"] == "m-1"
    assert body["messages"] == [user(text("What?"), picture, text(LIST_NAMED))]


async def test_the_responses_api_is_shown_them_under_its_own_names(server: ModelServer) -> None:
    (body,) = await sent(
        server, "openai-responses", "images", {"message": "What?", "attachments": [PHOTO, LIST]}
    )
    picture = {"type": "input_image", "image_url": PHOTO["url"]}
    assert body["model"] == "m-1"
    assert body["input"] == [user(input_text("What?"), picture, input_text(LIST_NAMED))]


async def test_the_messages_api_is_shown_them_as_blocks(server: ModelServer) -> None:
    (body,) = await sent(
        server, "anthropic", "images", {"message": "What?", "attachments": [PHOTO, LIST]}
    )
    picture = {"type": "image", "source": {"type": "url", "url": PHOTO["url"]}}
    assert body["model"] == "m-1"
    assert body["messages"] == [user(text("What?"), picture, text(LIST_NAMED))]


@pytest.mark.parametrize(
    ("backend", "field", "kind"),
    [
        ("openai", "messages", "text"),
        ("openai-responses", "input", "input_text"),
        ("anthropic", "messages", "text"),
    ],
)
async def test_images_too_are_only_named_where_text_is_asked_for(
    server: ModelServer, backend: str, field: str, kind: str
) -> None:
    (body,) = await sent(server, backend, "text", {"message": "What?", "attachments": [PHOTO]})
    parts = [{"type": kind, "text": said} for said in ("What?", PHOTO_NAMED)]
    assert body[field] == [user(*parts)]


async def test_what_came_with_an_earlier_message_is_shown_again(server: ModelServer) -> None:
    first, second = await sent(
        server,
        "openai",
        "images",
        {"message": "What?", "attachments": [PHOTO]},
        {"message": "Sure?"},
    )
    assert second["messages"] == [
        *first["messages"],
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Sure?"},
    ]


@pytest.mark.parametrize("backend", list(ANSWERS))
async def test_the_provider_is_asked_nothing_where_attachments_are_refused(
    server: ModelServer, backend: str
) -> None:
    server.will(*answers(backend, 1))
    turns = [{"message": "What?", "attachments": [PHOTO]}]
    ((status, told),) = await asyncio.to_thread(submit_all, server, backend, "refuse", turns)
    assert status == 422
    assert "attachments_not_shown" in told
    assert server.received == []


@pytest.mark.parametrize("backend", list(ANSWERS))
async def test_a_repeated_submit_with_attachments_asks_the_provider_once(
    server: ModelServer, backend: str
) -> None:
    server.will(*answers(backend, 2))
    env = environment(server, backend)
    options = ("--store", "memory:", "--backend", backend, "--attachments", "images")

    def twice() -> list[tuple[int, str]]:
        with serving(*options, env=env) as service:
            fields = {"message": "What?", "attachments": [PHOTO]}
            return [submit(service, 0, **fields) for _ in range(2)]

    (fresh, _), (again, replayed) = await asyncio.to_thread(twice)
    assert (fresh, again) == (201, 200)
    assert "Hello" in replayed
    assert len(server.received) == 1
