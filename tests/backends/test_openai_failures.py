"""The OpenAI backend against a server that does what providers do on bad days."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from perdure.backends.retry import BackendRetry
from perdure.core.frames import text, upstream_end
from perdure.errors import BackendTimeoutError
from tests.backends.asking import (
    HELLO,
    HELLO_FRAMES,
    PROMPT,
    QUICK,
    ask,
    ask_in_vain,
    backend_of,
)
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
)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_a_status_that_may_pass_is_tried_again(server: ModelServer, status: int) -> None:
    server.will(refusal(status), refusal(status), reply(HELLO))
    assert await ask(backend_of(server)) == HELLO_FRAMES
    assert len(server.received) == 3


async def test_a_status_that_may_pass_is_believed_whatever_its_body(server: ModelServer) -> None:
    server.will(refusal(503, b'{"error": {"type": "invalid_request_error"}}'), reply(HELLO))
    assert await ask(backend_of(server)) == HELLO_FRAMES


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


@pytest.mark.parametrize(("said", "status", "calls"), [("false", 503, 1), ("true", 409, 2)])
async def test_what_the_provider_says_of_a_further_try_counts(
    server: ModelServer, said: str, status: int, calls: int
) -> None:
    server.will(refusal(status, x_should_retry=said), refusal(404))
    _, failure = await ask_in_vain(backend_of(server))
    assert len(server.received) == calls
    assert failure.retryable is False


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
    _, failure = await ask_in_vain(backend_of(server, retry=BackendRetry(tries_max=1)))
    assert failure.retry_after_ms == 7_000


async def test_a_lost_connection_is_tried_again_before_the_first_byte(server: ModelServer) -> None:
    server.will(Reply((Cut(),), status=0), reply(Cut()), reply(HELLO))
    assert await ask(backend_of(server)) == HELLO_FRAMES
    assert len(server.received) == 3


async def test_9_4_r7_a_connection_lost_before_the_first_byte_every_time_has_no_status(
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


async def test_9_4_r7_a_server_that_hangs_before_its_head_is_asked_again(
    server: ModelServer,
) -> None:
    # More answers than needed: a slow machine may miss the limit with some of them.
    server.will(Reply((Hang(),), status=0), *[reply(HELLO)] * 9)
    retry = replace(QUICK, tries_max=10, request_timeout_ms=60)
    assert await ask(backend_of(server, retry=retry)) == HELLO_FRAMES
    assert len(server.received) > 1


async def test_a_server_that_hangs_before_its_first_byte_is_a_time_out(server: ModelServer) -> None:
    server.will(Reply((Hang(),), status=0), reply(Hang()), reply(Hang()), reply(HELLO))
    retry = replace(QUICK, request_timeout_ms=400)
    _, failure = await ask_in_vain(backend_of(server, retry=retry))
    assert isinstance(failure, BackendTimeoutError)
    assert failure.retryable
    assert "400 ms" in str(failure)
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
    more = asyncio.Event()
    server.will(reply(sse(chunk(content="Hel")), Wait(more), sse(chunk("stop"))))
    backend = backend_of(server, idle_timeout_ms=0, retry=BackendRetry(request_timeout_ms=0))
    async with aclosing(backend.stream(PROMPT)) as frames:
        assert await anext(frames) == text("Hel")
        more.set()
        assert await anext(frames) == upstream_end("stop")
    await backend.aclose()


@pytest.mark.parametrize("done", [(), ("[DONE]",)], ids=["cut short", "with DONE"])
async def test_an_answer_without_a_finish_reason_is_a_failure(
    server: ModelServer, done: tuple[str, ...]
) -> None:
    server.will(reply(sse(chunk(content="Hel"), *done)))
    frames, failure = await ask_in_vain(backend_of(server))
    assert frames == [text("Hel")]
    assert "without a finish reason" in str(failure)
    assert (failure.status, failure.retryable) == (200, True)


async def test_an_answer_that_stays_open_after_done_is_judged_at_once(server: ModelServer) -> None:
    server.will(reply(sse(chunk(content="Hel"), "[DONE]"), Hang()))
    _, failure = await ask_in_vain(backend_of(server, idle_timeout_ms=0))
    assert "without a finish reason" in str(failure)


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
    # What has come out by then is no bill.
    assert (frames[-1].data["in"], frames[-1].data.get("out")) == (5, None)
    assert failure.body == "{broken"


@pytest.mark.parametrize("loss", [Cut, Hang])
async def test_an_answer_is_whole_once_its_finish_reason_came(
    server: ModelServer, loss: type[Cut | Hang]
) -> None:
    server.will(reply(sse(chunk(content="Hi"), chunk("stop")), loss()))
    backend = backend_of(server, idle_timeout_ms=40)
    assert await ask(backend) == [text("Hi"), upstream_end("stop")]


async def test_usage_that_never_comes_is_not_awaited_for_ever(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.backends.reading.USAGE_WAIT_MS", 40)
    server.will(reply(sse(chunk(content="Hi"), chunk("stop")), Hang()))
    backend = backend_of(server, idle_timeout_ms=0)
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
async def test_9_6_r5_an_error_within_the_stream_is_raised(
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
    server.will(busy, reply(HELLO), busy)
    assert await ask(backend_of(server)) == HELLO_FRAMES
    _, failure = await ask_in_vain(backend_of(server, retry=BackendRetry(tries_max=1)))
    assert (failure.status, failure.retryable) == (503, True)


async def test_an_error_keeps_only_the_beginning_of_a_large_body(server: ModelServer) -> None:
    server.will(refusal(400, b"x" * 100_000))
    _, failure = await ask_in_vain(backend_of(server))
    assert failure.body == "x" * 2_048 + "…"


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


async def test_9_4_r6_a_cancelled_wait_between_tries_ends_at_once(
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
