"""The OpenAI backend against an HTTP server that does what providers do on bad days."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from perdure.backends.openai import OpenAIBackend
from perdure.backends.protocol import Backend, Prompt
from perdure.backends.retry import BackendRetry
from perdure.core.frames import Frame, reasoning, text, tool_call, upstream_end, usage
from perdure.errors import BackendTimeoutError, BackendTransportError, UsageError
from tests.backends.model_server import (
    Cut,
    Hang,
    ModelServer,
    Reply,
    Wait,
    chunk,
    refusal,
    reply,
    sse,
    tiny,
)

KEY = "sk-canary-0123456789"
PROMPT = Prompt([{"role": "user", "content": "Hi"}])
HELLO = sse(chunk(content="Hel"), chunk(content="lo"), chunk("stop"), "[DONE]")
HELLO_FRAMES = [text("Hel"), text("lo"), upstream_end("stop")]
QUICK = BackendRetry(max_attempts=3, initial_backoff_ms=1, max_backoff_ms=2)


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as running:
        yield running


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
    )
    await ask(backend_of(server, headers={"X-Team": "blue"}, extra_body={"seed": 1}), prompt)
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
    backend = OpenAIBackend(base_url=f"{server.base_url}/?version=2", include_usage=False)
    await ask(backend, PROMPT._replace(tool_choice="auto"))
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


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_a_status_that_may_pass_is_tried_again(server: ModelServer, status: int) -> None:
    server.will(refusal(status), refusal(status), reply(HELLO))
    assert await ask(backend_of(server)) == HELLO_FRAMES
    assert len(server.received) == 3


async def test_all_tries_of_a_call_carry_the_same_idempotency_key(server: ModelServer) -> None:
    server.will(refusal(500), reply(HELLO))
    await ask(backend_of(server), PROMPT._replace(idempotency_key="once"))
    assert [request.headers["idempotency-key"] for request in server.received] == ["once"] * 2


async def test_the_tries_have_an_end(server: ModelServer) -> None:
    server.will(*[refusal(503, b"overloaded", x_request_id="req_9")] * 3)
    frames, failure = await ask_in_vain(backend_of(server))
    assert frames == []
    assert len(server.received) == 3
    assert (failure.status, failure.body, failure.retryable) == (503, "overloaded", True)
    assert failure.backend == "openai"
    assert "req_9" in str(failure)


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 422, 501])
async def test_a_status_that_will_not_pass_is_not_tried_again(
    server: ModelServer, status: int
) -> None:
    server.will(refusal(status, b'{"error": {"code": "invalid_api_key"}}'))
    _, failure = await ask_in_vain(backend_of(server))
    assert len(server.received) == 1
    assert (failure.status, failure.retryable) == (status, False)
    assert "invalid_api_key" in str(failure)


async def test_an_exhausted_quota_is_not_tried_again(server: ModelServer) -> None:
    server.will(refusal(429, b'{"error": {"type": "insufficient_quota"}}'))
    _, failure = await ask_in_vain(backend_of(server))
    assert len(server.received) == 1
    assert not failure.retryable


class NotedRetry(BackendRetry):
    """Notes the waits and spares them."""

    def wait_ms(self, tries: int, *, chance: float, retry_after_ms: float | None = None) -> float:
        WAITS.append(super().wait_ms(tries, chance=chance, retry_after_ms=retry_after_ms))
        return 0


WAITS: list[float] = []


async def test_retry_after_is_waited_up_to_the_ceiling(server: ModelServer) -> None:
    server.will(
        refusal(429, retry_after="7"),
        refusal(429, retry_after="3600"),
        refusal(503, retry_after_ms="250"),
        refusal(503),
        reply(HELLO),
    )
    WAITS.clear()
    assert await ask(backend_of(server, retry=NotedRetry(jitter=0))) == HELLO_FRAMES
    assert WAITS == [7_000, 30_000, 250, 8_000]


async def test_a_failure_tells_what_the_provider_asked_to_wait(server: ModelServer) -> None:
    server.will(refusal(429, retry_after="7"))
    _, failure = await ask_in_vain(backend_of(server, retry=BackendRetry(max_attempts=1)))
    assert failure.retry_after_ms == 7_000


async def test_a_lost_connection_is_tried_again_before_the_first_byte(server: ModelServer) -> None:
    server.will(Reply((Cut(),), status=0), reply(Cut()), reply(HELLO))
    assert await ask(backend_of(server)) == HELLO_FRAMES
    assert len(server.received) == 3


async def test_a_connection_lost_before_the_first_byte_every_time_has_no_status(
    server: ModelServer,
) -> None:
    server.will(*[Reply((Cut(),), status=0)] * 3)
    _, failure = await ask_in_vain(backend_of(server))
    assert (failure.status, failure.retryable) == (0, True)
    assert len(server.received) == 3


async def test_a_server_that_is_not_there_is_a_failure_without_status() -> None:
    async with ModelServer() as server:
        pass
    _, failure = await ask_in_vain(backend_of(server))
    assert (failure.status, failure.retryable) == (0, True)
    assert "ConnectError" in str(failure)


async def test_a_connection_lost_within_the_answer_is_never_tried_again(
    server: ModelServer,
) -> None:
    server.will(reply(sse(chunk(content="Hel")), Cut()), reply(HELLO))
    frames, failure = await ask_in_vain(backend_of(server))
    assert frames == [text("Hel")]
    assert (failure.status, failure.retryable) == (200, True)
    assert len(server.received) == 1


async def test_a_server_that_hangs_before_its_head_is_tried_again(server: ModelServer) -> None:
    # More answers than needed: a slow machine may miss the limit with some of them.
    server.will(Reply((Hang(),), status=0), *[reply(HELLO)] * 9)
    backend = backend_of(server, request_timeout_ms=60, retry=replace(QUICK, max_attempts=10))
    assert await ask(backend) == HELLO_FRAMES
    assert len(server.received) > 1


async def test_a_server_that_hangs_before_its_first_byte_is_a_time_out(server: ModelServer) -> None:
    server.will(Reply((Hang(),), status=0), reply(Hang()), reply(Hang()), reply(HELLO))
    _, failure = await ask_in_vain(backend_of(server, request_timeout_ms=40))
    assert isinstance(failure, BackendTimeoutError)
    assert failure.retryable
    assert "40 ms" in str(failure)
    assert len(server.received) == 3


async def test_a_server_that_hangs_within_the_answer_is_a_time_out(server: ModelServer) -> None:
    server.will(reply(sse(chunk(content="Hel")), Hang()), reply(HELLO))
    frames, failure = await ask_in_vain(backend_of(server, idle_timeout_ms=40))
    assert frames == [text("Hel")]
    assert isinstance(failure, BackendTimeoutError)
    assert (failure.status, failure.retryable) == (200, True)
    assert len(server.received) == 1
    async with asyncio.timeout(5):
        await server.client_left.wait()


async def test_a_sign_of_life_keeps_a_silent_answer_alive(server: ModelServer) -> None:
    steps: list[Any] = [sse(chunk(content="Hel"))]
    gates = [asyncio.Event() for _ in range(5)]
    for gate in gates:
        steps += [Wait(gate), b": processing\n\n"]
    server.will(reply(*steps, sse(chunk("stop"))))
    backend = backend_of(server, idle_timeout_ms=500)

    async def pace() -> None:
        for gate in gates:
            await asyncio.sleep(0.12)
            gate.set()

    pacing = asyncio.ensure_future(pace())
    assert await ask(backend) == [text("Hel"), upstream_end("stop")]
    await pacing


async def test_a_limit_of_nought_is_off(server: ModelServer) -> None:
    server.will(reply(HELLO))
    assert await ask(backend_of(server, request_timeout_ms=0, idle_timeout_ms=0)) == HELLO_FRAMES


@pytest.mark.parametrize("done", [(), ("[DONE]",)], ids=["cut short", "with DONE"])
async def test_an_answer_without_a_finish_reason_is_a_failure(
    server: ModelServer, done: tuple[str, ...]
) -> None:
    server.will(reply(sse(chunk(content="Hel"), *done)))
    frames, failure = await ask_in_vain(backend_of(server))
    assert frames == [text("Hel")]
    assert "without a finish reason" in str(failure)
    assert (failure.status, failure.retryable) == (200, True)


async def test_an_empty_answer_is_a_failure(server: ModelServer) -> None:
    server.will(reply())
    frames, failure = await ask_in_vain(backend_of(server))
    assert frames == []
    assert "without a finish reason" in str(failure)


async def test_usage_of_a_failed_answer_is_told(server: ModelServer) -> None:
    counted = {"usage": {"prompt_tokens": 5, "completion_tokens": 0}}
    server.will(reply(sse(chunk(content="Hel"), counted, "{broken")))
    frames, failure = await ask_in_vain(backend_of(server))
    assert [frame.kind for frame in frames] == ["text", "usage"]
    assert (frames[-1].data["in"], frames[-1].data["out"]) == (5, 0)
    assert failure.body == "{broken"


@pytest.mark.parametrize("loss", [Cut, Hang])
async def test_an_answer_is_whole_once_its_finish_reason_came(
    server: ModelServer, loss: type[Cut | Hang]
) -> None:
    server.will(reply(sse(chunk(content="Hi"), chunk("stop")), loss()))
    backend = backend_of(server, idle_timeout_ms=40)
    assert await ask(backend) == [text("Hi"), upstream_end("stop")]


async def test_a_server_that_stays_after_its_end_is_left(server: ModelServer) -> None:
    server.will(reply(HELLO, Hang()))
    assert await ask(backend_of(server, idle_timeout_ms=0)) == HELLO_FRAMES
    async with asyncio.timeout(5):
        await server.client_left.wait()


async def test_what_is_not_json_is_never_text(server: ModelServer) -> None:
    server.will(reply(sse(chunk(content="Hel"), "<html>Oops</html>", chunk("stop"))))
    frames, failure = await ask_in_vain(backend_of(server))
    assert frames == [text("Hel")]
    assert (failure.status, failure.body) == (200, "<html>Oops</html>")


@pytest.mark.parametrize(
    ("error", "status", "retryable"),
    [
        ({"message": "Busy", "type": "server_error"}, 200, True),
        ({"message": "No", "type": "invalid_request_error"}, 200, False),
        ({"message": "Down", "code": 502}, 502, True),
        ({"message": "Pay", "code": 402}, 402, False),
        ("a plain text", 200, True),
    ],
)
async def test_an_error_within_the_stream_is_raised(
    server: ModelServer, error: Any, status: int, retryable: bool
) -> None:
    server.will(reply(sse(chunk(content="Hel"), {"error": error})))
    frames, failure = await ask_in_vain(backend_of(server))
    assert frames == [text("Hel")]
    assert (failure.status, failure.retryable) == (status, retryable)
    assert failure.body


async def test_an_endpoint_that_does_not_stream_says_so(server: ModelServer) -> None:
    server.will(Reply((b'{"choices": []}',), headers={"content-type": "application/json"}))
    _, failure = await ask_in_vain(backend_of(server))
    assert "application/json" in str(failure)
    assert (failure.status, failure.retryable) == (200, False)
    assert len(server.received) == 1


async def test_an_error_that_comes_as_a_success_is_read(server: ModelServer) -> None:
    busy = Reply((b'{"error": {"code": 503}}',), headers={"content-type": "application/json"})
    server.will(busy, reply(HELLO))
    assert await ask(backend_of(server)) == HELLO_FRAMES


async def test_an_error_keeps_only_the_beginning_of_a_large_body(server: ModelServer) -> None:
    server.will(refusal(400, b"x" * 100_000))
    _, failure = await ask_in_vain(backend_of(server))
    assert failure.body == "x" * 2_048


async def test_an_error_body_that_never_ends_hides_nothing(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.backends.endpoint.ERROR_BODY_WAIT_MS", 40)
    server.will(Reply((b"because", Hang()), status=400))
    _, failure = await ask_in_vain(backend_of(server))
    assert (failure.status, failure.body) == (400, "because")


@pytest.mark.parametrize("moment", ["before the head", "before the first byte", "in the answer"])
async def test_a_cancelled_reader_ends_the_call_upstream(server: ModelServer, moment: str) -> None:
    hang = Hang()
    server.will(
        {
            "before the head": Reply((hang,), status=0),
            "before the first byte": reply(hang),
            "in the answer": reply(sse(chunk(content="Hel")), hang),
        }[moment]
    )
    backend = backend_of(server)

    async def read() -> None:
        async for _ in backend.stream(PROMPT):
            pass

    reading = asyncio.ensure_future(read())
    async with asyncio.timeout(5):
        await hang.reached.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await server.client_left.wait()
    await backend.aclose()


async def test_a_closed_iterator_ends_the_call_upstream(server: ModelServer) -> None:
    server.will(reply(sse(chunk(content="Hel")), Hang()))
    backend = backend_of(server)
    async with aclosing(backend.stream(PROMPT)) as frames:
        assert await anext(frames) == text("Hel")
    async with asyncio.timeout(5):
        await server.client_left.wait()
    await backend.aclose()


async def test_a_cancelled_wait_between_tries_ends_at_once(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = asyncio.Event()

    async def sleep(seconds: float) -> None:
        assert seconds == 30
        waiting.set()
        await asyncio.Event().wait()

    server.will(refusal(429, retry_after="30"))
    backend = backend_of(server, retry=BackendRetry())
    monkeypatch.setattr("perdure.backends.endpoint.asyncio.sleep", sleep)
    reading = asyncio.ensure_future(anext(backend.stream(PROMPT)))
    async with asyncio.timeout(5):
        await waiting.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    await backend.aclose()


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
        retry=BackendRetry(max_attempts=1),
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
        ({"request_timeout_ms": -1}, "request_timeout_ms"),
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
    async with httpx2.AsyncClient() as client:
        backend = backend_of(server, client=client)
        assert await ask(backend) == HELLO_FRAMES
        assert not client.is_closed


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
