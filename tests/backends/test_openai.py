"""The OpenAI backend: what is asked, what is answered, what is refused."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from contextlib import aclosing
from typing import Any

import httpx2
import pytest

from perdure.backends.openai import OpenAIBackend
from perdure.backends.protocol import Backend, Prompt
from perdure.backends.retry import BackendRetry
from perdure.core.frames import reasoning, text, tool_call, upstream_end, usage
from perdure.errors import BackendTransportError, UsageError
from tests.backends.asking import (
    HELLO,
    HELLO_FRAMES,
    KEY,
    PROMPT,
    ask,
    backend_of,
)
from tests.backends.model_server import (
    Cut,
    ModelServer,
    Reply,
    Wait,
    chunk,
    refusal,
    reply,
    sse,
    tiny,
)


async def test_an_answer_is_streamed_to_its_end(server: ModelServer) -> None:
    server.will(reply(HELLO))
    assert await ask(backend_of(server)) == HELLO_FRAMES


async def test_frames_come_as_soon_as_their_bytes(server: ModelServer) -> None:
    more = asyncio.Event()
    server.will(reply(sse(chunk(content="Hel")), Wait(more), sse(chunk("stop"), "[DONE]")))
    backend = backend_of(server)
    async with aclosing(backend.stream(PROMPT)) as frames:
        assert await anext(frames) == text("Hel")
        more.set()
        assert await anext(frames) == upstream_end("stop")
    await backend.aclose()


async def test_the_request_says_what_is_asked(server: ModelServer) -> None:
    server.will(reply(HELLO))
    tool = {"type": "function", "function": {"name": "get_weather"}}
    prompt = Prompt(
        [{"role": "user", "content": "\ud800é"}],
        model="model-2",
        idempotency_key="run-1:0",
        tools=[tool],
        tool_choice="required",
        response_format={"type": "json_object"},
        temperature=0.0,
        max_tokens=7,
        extra_body={"seed": 1},
    )
    await ask(backend_of(server, headers={"X-Team": "blue"}), prompt)
    (request,) = server.received
    assert request.target == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["idempotency-key"] == "run-1:0"
    assert request.headers["x-team"] == "blue"
    assert request.body == {
        "model": "model-2",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "\ud800é"}],
        "tools": [tool],
        "tool_choice": "required",
        "response_format": {"type": "json_object"},
        "temperature": 0.0,
        "max_tokens": 7,
        "seed": 1,
    }


async def test_what_is_not_given_is_not_sent(server: ModelServer) -> None:
    server.will(reply(HELLO))
    backend = OpenAIBackend(base_url=f"{server.base_url}/?version=2")
    await ask(backend, PROMPT._replace(tool_choice="auto", extra_body={"stream_options": None}))
    (request,) = server.received
    assert request.target == "/v1/chat/completions?version=2"
    assert not {"authorization", "idempotency-key"} & request.headers.keys()
    assert request.body == {"messages": PROMPT.messages, "stream": True}


async def test_a_header_that_is_given_replaces_ours_in_any_case(server: ModelServer) -> None:
    server.will(reply(HELLO))
    await ask(backend_of(server, headers={"AUTHORIZATION": "Key other"}))
    assert server.received[0].headers["authorization"] == "Key other"


async def test_a_connection_is_used_again(server: ModelServer) -> None:
    server.will(reply(HELLO), reply(HELLO), refusal(503), reply(HELLO))
    backend = backend_of(server)
    for _ in range(3):
        assert [frame async for frame in backend.stream(PROMPT)] == HELLO_FRAMES
    await backend.aclose()
    assert len(server.received) == 4
    assert server.connections == 1


async def test_one_backend_serves_many_calls_at_once(server: ModelServer) -> None:
    calls = 120
    go = asyncio.Event()
    server.will(*[reply(sse(chunk(content="a")), Wait(go), sse(chunk("stop")))] * calls)
    backend = backend_of(server)
    streams = [backend.stream(PROMPT) for _ in range(calls)]
    assert await asyncio.gather(*map(anext, streams)) == [text("a")] * calls
    go.set()
    assert await asyncio.gather(*map(anext, streams)) == [upstream_end("stop")] * calls
    for stream in streams:
        await stream.aclose()
    await backend.aclose()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
async def test_chunk_borders_and_line_ends_do_not_matter(
    server: ModelServer, end: str, size: int
) -> None:
    stream = b": keep-alive\n\n" + sse(chunk(content="Grüß 👋"), chunk("stop"), "[DONE]")
    server.will(reply(*tiny(stream.replace(b"\n", end.encode()), size)))
    assert await ask(backend_of(server)) == [text("Grüß 👋"), upstream_end("stop")]


async def test_usage_is_what_the_provider_says(server: ModelServer) -> None:
    counted = {
        "choices": [],
        "usage": {
            "prompt_tokens": 19,
            "completion_tokens": 10,
            "total_tokens": 29,
            "prompt_tokens_details": {"cached_tokens": 3},
            "completion_tokens_details": {"reasoning_tokens": 4},
        },
    }
    stream = sse(chunk(content="Hi"), chunk("stop"), counted, "[DONE]")
    headers = {"content-type": "text/event-stream; charset=utf-8", "x-request-id": "req_7"}
    server.will(Reply((stream,), headers=headers))
    assert await ask(backend_of(server, name="gateway")) == [
        text("Hi"),
        usage(
            provider="gateway",
            model="model-1-0613",
            request_id="req_7",
            tokens_in=19,
            tokens_out=10,
            tokens_cached=3,
            tokens_reasoning=4,
        ),
        upstream_end("stop"),
    ]


async def test_tool_calls_are_put_together(server: ModelServer) -> None:
    def call(index: int, arguments: str, **head: str) -> dict[str, Any]:
        name = {"name": head.pop("name")} if head else {}
        return {"index": index, **head, "function": {**name, "arguments": arguments}}

    server.will(
        reply(
            sse(
                chunk(role="assistant", content=None),
                chunk(tool_calls=[call(0, "", id="a", name="get_weather")]),
                chunk(tool_calls=[call(0, '{"city": '), call(1, "", id="b", name="now")]),
                chunk(tool_calls=[call(0, '"Oslo"}')]),
                chunk("tool_calls"),
                "[DONE]",
            )
        )
    )
    assert await ask(backend_of(server)) == [
        tool_call("a", "get_weather", {"city": "Oslo"}, effect="at_most_once"),
        tool_call("b", "now", {}),
        upstream_end("tool_calls"),
    ]


async def test_reasoning_comes_before_the_text(server: ModelServer) -> None:
    server.will(reply(sse(chunk(reasoning_content="Hm"), chunk(content="Hi"), chunk("stop"))))
    assert await ask(backend_of(server)) == [reasoning("Hm"), text("Hi"), upstream_end("stop")]


@pytest.mark.parametrize("finish", ["length", "content_filter"])
async def test_the_reason_of_the_end_is_reported(server: ModelServer, finish: str) -> None:
    server.will(reply(sse(chunk(content="Hi"), chunk(finish), "[DONE]")))
    assert await ask(backend_of(server)) == [text("Hi"), upstream_end(finish)]


async def test_no_error_holds_a_secret(
    server: ModelServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = (KEY, "header-secret-1", "query-secret-2", "password-3")
    echo = " ".join(secrets).encode()
    server.will(
        refusal(401, echo),
        reply(sse(echo.decode())),
        refusal(400, b"x" * 2_040 + KEY.encode()),
        Reply((Cut(),), status=0),
    )
    backend = backend_of(
        server,
        base_url=server.base_url.replace("//", "//user:password-3@") + "?key=query-secret-2",
        headers={"X-Secret": "header-secret-1"},
        retry=BackendRetry(tries_max=1),
    )
    for _ in range(4):
        with pytest.raises(BackendTransportError) as caught:
            await anext(backend.stream(PROMPT))
        shown = f"{caught.value!r} {caught.value.body}"
        assert not [secret for secret in secrets if secret[:8] in shown]
    await backend.aclose()
    assert KEY not in caplog.text
    assert "header-secret-1" not in caplog.text


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"base_url": "api.openai.com/v1"}, "base_url"),
        ({"base_url": "ftp://host/v1"}, "base_url"),
        ({"base_url": "http://host:port/"}, "base_url"),
        ({"api_key": "sk-canary\nX: y"}, "Authorization"),
        ({"api_key": "sk-canary-é"}, "Authorization"),
        ({"headers": {"X Y": "z"}}, "X Y"),
        ({"headers": {"X-Y": "canary\r"}}, "X-Y"),
        ({"idle_timeout_ms": float("nan")}, "idle_timeout_ms"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_and_not_shown(
    options: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        OpenAIBackend(**options)
    assert "canary" not in str(caught.value)


async def test_a_prompt_that_cannot_be_sent_is_refused(server: ModelServer) -> None:
    for prompt in (
        PROMPT._replace(idempotency_key="a\nb"),
        PROMPT._replace(temperature=float("nan")),
        Prompt([{"role": "user", "content": b"bytes"}]),
    ):
        with pytest.raises(UsageError):
            await ask(backend_of(server), prompt)
    assert server.received == []


async def test_a_closed_backend_says_so(server: ModelServer) -> None:
    backend = backend_of(server)
    await backend.aclose()
    with pytest.raises(UsageError, match="closed"):
        await anext(backend.stream(PROMPT))


async def test_a_client_that_was_given_stays_open(server: ModelServer) -> None:
    server.will(reply(HELLO))
    async with httpx2.AsyncClient(headers={"X-Client": "given"}) as client:
        backend = backend_of(server, client=client)
        assert await ask(backend) == HELLO_FRAMES
        assert not client.is_closed
    assert server.received[0].headers["x-client"] == "given"


async def test_the_time_limits_of_a_client_that_was_given_do_not_count(
    server: ModelServer,
) -> None:
    late = asyncio.Event()
    server.will(reply(sse(chunk(content="Hel")), Wait(late), sse(chunk("stop"))))
    async with httpx2.AsyncClient(timeout=0.05) as client:
        stream = backend_of(server, client=client).stream(PROMPT)
        assert await anext(stream) == text("Hel")
        asyncio.get_running_loop().call_later(0.15, late.set)
        assert await anext(stream) == upstream_end("stop")
        await stream.aclose()


def test_it_is_a_backend() -> None:
    assert isinstance(OpenAIBackend(), Backend)


def test_without_its_extra_the_import_names_the_way_out() -> None:
    code = "import sys; sys.modules['httpx2'] = None; import perdure.backends.openai"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError" in done.stderr
    assert "pip install 'perdure[openai]'" in done.stderr


def test_protocol_and_scripts_need_no_extra() -> None:
    code = "import sys; sys.modules['httpx2'] = None; import perdure.backends.scripted"
    subprocess.run([sys.executable, "-c", code], check=True)
