"""The Anthropic backend against a server that does what providers do on bad days."""

from __future__ import annotations

import asyncio
import json
import traceback
from contextlib import aclosing

import pytest

from perdure.backends.retry import BackendRetry
from perdure.backends.sse import EVENT_CHARS_MAX
from perdure.core.frames import text
from perdure.errors import BackendTimeoutError
from tests.backends.asking import KEY, PROMPT, QUICK
from tests.backends.messaging import (
    HELLO,
    HELLO_FRAMES,
    STOP,
    ask,
    ask_in_vain,
    backend_of,
    begun,
    block,
    delta,
    refused,
    wire,
)
from tests.backends.model_server import Cut, Hang, ModelServer, Reply, refusal, reply

OVERLOADED = json.dumps(refused("overloaded_error", "Overloaded")).encode()
EVENTS = [wire(record) for record in HELLO]


@pytest.mark.parametrize("status", [408, 429, 500, 503, 529])
async def test_a_status_that_may_pass_is_tried_again(server: ModelServer, status: int) -> None:
    server.will(refusal(status, OVERLOADED), reply(wire(*HELLO)))
    assert await ask(backend_of(server)) == HELLO_FRAMES


async def test_overload_may_pass_whatever_the_policy_names(server: ModelServer) -> None:
    server.will(refusal(529, OVERLOADED), refusal(503))
    only = BackendRetry(tries_max=9, backoff_ms=1, retry_statuses=frozenset())
    _, failure = await ask_in_vain(backend_of(server, retry=only))
    assert (failure.status, failure.retryable, len(server.received)) == (503, False, 2)


async def test_retry_after_is_told(server: ModelServer) -> None:
    server.will(refusal(429, retry_after="7"))
    _, failure = await ask_in_vain(backend_of(server, retry=BackendRetry(tries_max=1)))
    assert (failure.status, failure.retryable, failure.retry_after_ms) == (429, True, 7_000)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
    ],
)
async def test_a_refusal_for_good_is_called_once(
    server: ModelServer, status: int, kind: str
) -> None:
    server.will(refusal(status, json.dumps(refused(kind)).encode(), request_id="req_5"))
    _, failure = await ask_in_vain(backend_of(server))
    assert (failure.status, failure.retryable, len(server.received)) == (status, False, 1)
    assert kind in str(failure)
    assert "req_5" in str(failure)


async def test_overload_instead_of_an_answer_is_tried_again(server: ModelServer) -> None:
    server.will(reply(wire(refused("overloaded_error"))), reply(wire(*HELLO)))
    assert await ask(backend_of(server)) == HELLO_FRAMES
    assert len(server.received) == 2


async def test_overload_instead_of_an_answer_fails_when_the_tries_are_used_up(
    server: ModelServer,
) -> None:
    server.will(*[reply(wire(refused("overloaded_error", KEY)))] * 3)
    frames, failure = await ask_in_vain(backend_of(server))
    assert frames == []
    assert (failure.status, failure.retryable, len(server.received)) == (529, True, 3)
    assert KEY not in failure.body


@pytest.mark.parametrize(
    ("kind", "status", "retryable"),
    [
        ("overloaded_error", 529, True),
        ("rate_limit_error", 429, True),
        ("api_error", 500, True),
        ("timeout_error", 504, True),
        ("invalid_request_error", 200, False),
        ("authentication_error", 200, False),
        ("something_new", 200, True),
    ],
)
async def test_an_error_within_an_answer_fails_it_and_is_called_once(
    server: ModelServer, kind: str, status: int, retryable: bool
) -> None:
    server.will(reply(wire(begun(), block(0, "text", text="Hel"), refused(kind))))
    frames, failure = await ask_in_vain(backend_of(server))
    assert [frame.kind for frame in frames] == ["text", "usage"]
    assert (failure.status, failure.retryable) == (status, retryable)
    assert kind in str(failure)
    assert len(server.received) == 1


@pytest.mark.parametrize("count", range(1, len(EVENTS)))
async def test_an_end_behind_any_event_is_no_answer(server: ModelServer, count: int) -> None:
    server.will(reply(*EVENTS[:count]))
    frames, failure = await ask_in_vain(backend_of(server))
    assert all(frame.kind != "upstream_end" for frame in frames)
    assert (failure.status, failure.retryable) == (200, True)
    assert len(server.received) == 1


@pytest.mark.parametrize("count", range(1, len(EVENTS)))
async def test_a_connection_lost_behind_any_event_is_no_answer(
    server: ModelServer, count: int
) -> None:
    server.will(reply(*EVENTS[:count], Cut()))
    # The reset may overtake what was sent, even the first bytes: then the call is made again.
    once = BackendRetry(tries_max=1)
    frames, failure = await ask_in_vain(backend_of(server, retry=once))
    assert all(frame.kind != "upstream_end" for frame in frames)
    assert failure.retryable
    assert len(server.received) == 1


@pytest.mark.parametrize("at", range(1, len(wire(*HELLO)) - 1, 41))
async def test_an_end_within_an_event_is_no_answer(server: ModelServer, at: int) -> None:
    server.will(reply(wire(*HELLO)[:at]))
    frames, _ = await ask_in_vain(backend_of(server))
    assert all(frame.kind != "upstream_end" for frame in frames)


@pytest.mark.parametrize("count", range(1, len(EVENTS)))
async def test_silence_behind_any_event_ends_the_answer(server: ModelServer, count: int) -> None:
    server.will(reply(*EVENTS[:count], Hang()))
    frames, failure = await ask_in_vain(backend_of(server, idle_timeout_ms=30))
    assert isinstance(failure, BackendTimeoutError)
    assert all(frame.kind != "upstream_end" for frame in frames)
    assert failure.retryable


@pytest.mark.parametrize("count", range(1, len(EVENTS)))
async def test_malformed_json_behind_any_event_fails_the_answer(
    server: ModelServer, count: int
) -> None:
    server.will(reply(*EVENTS[:count], b"event: content_block_delta\ndata: {oops\n\n", STOP_WIRE))
    frames, failure = await ask_in_vain(backend_of(server))
    assert all(frame.kind != "upstream_end" for frame in frames)
    assert "no event of a message" in str(failure)
    assert failure.body == "{oops"


STOP_WIRE = wire(STOP)


async def test_no_first_byte_in_time_is_tried_again(server: ModelServer) -> None:
    # More answers than needed: a slow machine may miss the limit with some of them.
    server.will(Reply((Hang(),)), *[reply(wire(*HELLO))] * 9)
    hasty = BackendRetry(tries_max=10, backoff_ms=1, request_timeout_ms=100)
    assert await ask(backend_of(server, retry=hasty)) == HELLO_FRAMES
    assert len(server.received) > 1


async def test_an_answer_that_is_no_stream_is_no_answer(server: ModelServer) -> None:
    server.will(refusal(200, b"{malformed"))
    _, failure = await ask_in_vain(backend_of(server, retry=QUICK))
    assert "not with a stream" in str(failure)
    assert len(server.received) == 1


async def test_too_large_an_event_is_refused_for_good(server: ModelServer) -> None:
    server.will(reply(wire(begun()), b"data: " + b"x" * EVENT_CHARS_MAX))
    _, failure = await ask_in_vain(backend_of(server))
    assert not failure.retryable


async def test_a_failure_keeps_no_key(server: ModelServer) -> None:
    echo = f'{{"error": {{"type": "authentication_error", "message": "bad {KEY}"}}}}'.encode()
    server.will(refusal(401, echo), reply(wire(begun(), refused("api_error", KEY))))
    _, at_the_door = await ask_in_vain(backend_of(server))
    _, within = await ask_in_vain(backend_of(server))
    for failure in (at_the_door, within):
        assert KEY not in failure.body + str(failure)
        assert "[redacted]" in failure.body


async def test_a_key_that_stands_where_a_code_or_an_id_belongs_is_not_told(
    server: ModelServer,
) -> None:
    echo = f'{{"error": {{"type": "{KEY}"}}}}'.encode()
    server.will(
        refusal(401, echo, request_id=KEY), reply(wire(begun(), refused(KEY, "no such key")))
    )
    for _ in range(2):
        _, failure = await ask_in_vain(backend_of(server))
        assert KEY not in "".join(traceback.format_exception(failure))


async def test_a_reader_that_leaves_ends_the_call_upstream(server: ModelServer) -> None:
    server.will(reply(wire(begun(), block(0, "text"), delta(0, "text_delta", text="a")), Hang()))
    backend = backend_of(server)
    async with aclosing(backend.stream(PROMPT)) as frames:
        assert await anext(frames) == text("a")
    async with asyncio.timeout(5):
        await server.client_left.wait()
    await backend.aclose()
