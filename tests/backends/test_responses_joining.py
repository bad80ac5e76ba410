"""Answers of the Responses API that outlive their connections: joined again, or ended."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perdure.backends.protocol import AttachableBackend
from perdure.errors import BackendTransportError, UsageError
from tests.backends.asking import KEY
from tests.backends.model_server import Cut, Hang, ModelServer, refusal, reply, sse
from tests.backends.responding import (
    BEGUN,
    DONE,
    HANDLE,
    HELLO,
    HELLO_FRAMES,
    ask,
    ask_in_vain,
    backend_of,
    delta,
    event,
    response,
)


@pytest.mark.parametrize("end", [Cut(), None], ids=["reset", "closed"])
async def test_a_lost_connection_is_made_again_behind_the_last_event(
    server: ModelServer, end: Cut | None
) -> None:
    half = sse(delta(2, "lo"))[:9]
    server.will(
        reply(sse(*HELLO[:2]), half, *([] if end is None else [end])),
        reply(sse(HELLO[1], *HELLO[2:])),
    )
    assert await ask(backend_of(server)) == HELLO_FRAMES
    again = server.received[1]
    assert (again.method, again.target) == (
        "GET",
        "/v1/responses/resp_1?stream=true&starting_after=1",
    )
    assert again.headers["authorization"] == f"Bearer {KEY}"


async def test_a_silence_is_broken_by_another_connection(server: ModelServer) -> None:
    server.will(reply(sse(*HELLO[:2]), Hang()), reply(sse(*HELLO[2:])))
    assert await ask(backend_of(server, idle_timeout_ms=50)) == HELLO_FRAMES


async def test_connections_without_a_new_event_are_given_up(server: ModelServer) -> None:
    server.will(reply(sse(*HELLO[:2]), Cut()), *[reply(Cut()) for _ in range(9)])
    frames, failure = await ask_in_vain(backend_of(server))
    assert frames == HELLO_FRAMES[:2]
    assert failure.retryable
    assert 2 < len(server.received) < 10


async def test_connections_that_bring_something_are_not_counted(server: ModelServer) -> None:
    deltas = [delta(number, "x") for number in range(1, 9)]
    server.will(
        reply(sse(BEGUN), Cut()), *[reply(sse(each), Cut()) for each in deltas], reply(sse(DONE))
    )
    frames = await ask(backend_of(server))
    assert [frame.data["delta"] for frame in frames if frame.kind == "text"] == ["x"] * 8


@pytest.mark.parametrize("number", [None, 0])
async def test_what_has_no_handle_or_no_number_is_not_made_again(
    server: ModelServer, number: int | None
) -> None:
    begun = event(
        "response.created", number, response=response(background=None if number is None else False)
    )
    server.will(reply(sse(begun, event("response.output_text.delta", delta="He")), Cut()))
    _, failure = await ask_in_vain(backend_of(server))
    assert len(server.received) == 1
    assert failure.retryable


async def test_a_response_is_joined_from_its_beginning(server: ModelServer) -> None:
    server.will(reply(sse(*HELLO)))
    backend = backend_of(server)
    assert [frame async for frame in backend.attach(HANDLE)] == HELLO_FRAMES
    await backend.aclose()
    (request,) = server.received
    assert (request.method, request.target) == ("GET", "/v1/responses/resp_1?stream=true")


async def test_a_response_that_is_not_kept_cannot_be_joined(server: ModelServer) -> None:
    server.will(refusal(404))
    backend = backend_of(server)
    with pytest.raises(BackendTransportError) as caught:
        await anext(backend.attach(HANDLE))
    assert (caught.value.status, caught.value.retryable) == (404, False)
    await backend.aclose()


@pytest.mark.parametrize("status", [200, 400, 404, 409, 410])
async def test_a_response_is_ended_if_it_is_not_over(server: ModelServer, status: int) -> None:
    server.will(refusal(status, json.dumps(response()).encode()))
    backend = backend_of(server)
    await backend.cancel(HANDLE)
    await backend.aclose()
    (request,) = server.received
    assert (request.method, request.target) == ("POST", "/v1/responses/resp_1/cancel")
    assert request.headers["authorization"] == f"Bearer {KEY}"


async def test_an_order_that_is_refused_is_a_failure(server: ModelServer) -> None:
    server.will(refusal(500, KEY.encode()))
    backend = backend_of(server)
    with pytest.raises(BackendTransportError) as caught:
        await backend.cancel(HANDLE)
    assert (caught.value.status, KEY in caught.value.body) == (500, False)
    await backend.aclose()


async def test_a_provider_that_is_away_cannot_be_given_orders(server: ModelServer) -> None:
    backend = backend_of(server)
    await server.__aexit__()
    with pytest.raises(BackendTransportError, match="could not be asked"):
        await backend.cancel(HANDLE)
    await backend.aclose()


@pytest.mark.parametrize("handle", [None, "resp_1", {}, {"response": "../1"}, {"response": 1}])
async def test_what_is_no_handle_is_refused(server: ModelServer, handle: Any) -> None:
    backend = backend_of(server)
    with pytest.raises(UsageError, match="names a response"):
        await backend.cancel(handle)
    with pytest.raises(UsageError, match="names a response"):
        await anext(backend.attach(handle))
    await backend.aclose()
    assert server.received == []


async def test_it_is_a_backend_that_can_be_joined(server: ModelServer) -> None:
    assert isinstance(backend_of(server), AttachableBackend)
