"""Answers of the Responses API that outlive their connections: joined again, or ended."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perdure.backends.protocol import AttachableBackend
from perdure.core.frames import (
    fold_parts,
    reasoning,
    source,
    text,
    text_of,
    tool_call,
    tool_result,
    upstream_begin,
    upstream_end,
)
from perdure.errors import BackendTransportError, UsageError
from tests.backends.asking import KEY
from tests.backends.model_server import Cut, Hang, ModelServer, Reply, refusal, reply, sse
from tests.backends.responding import (
    BEGUN,
    COUNTED,
    DONE,
    HANDLE,
    HELLO,
    HELLO_FRAMES,
    USED,
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
    server.will(*[refusal(500, KEY.encode())] * 3)
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


async def test_an_order_that_fails_is_given_again(server: ModelServer) -> None:
    ended = json.dumps(response(status="cancelled")).encode()
    server.will(refusal(503), Reply((Cut(),), 0), refusal(200, ended))
    backend = backend_of(server)
    await backend.cancel(HANDLE)
    await backend.aclose()
    assert [request.method for request in server.received] == ["POST"] * 3


# Responses that are streamed no more, and kept all the same.

TOO_OLD = b'{"error": {"message": "can no longer be streamed", "type": "invalid_request_error"}}'
OUTPUT = [
    {"type": "reasoning", "id": "rs_1", "summary": [{"text": "one"}, {"text": "two"}]},
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"query": "a"}},
    {
        "type": "message",
        "id": "msg_1",
        "content": [
            {
                "type": "output_text",
                "text": "Hello",
                "annotations": [{"type": "url_citation", "url": "https://a.example", "title": "A"}],
            }
        ],
    },
    {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}"},
]
TOLD = [
    upstream_begin(HANDLE),
    reasoning("one"),
    reasoning("\n\ntwo"),
    tool_call("ws_1", "web_search", {"action": {"query": "a"}}, "idempotent"),
    tool_result("ws_1", "completed"),
    text("Hello"),
    source("https://a.example", "A"),
    tool_call("c1", "f", {}),
    USED,
]


def kept(status: str, **fields: Any) -> Reply:
    """Return what is answered to a look at a response."""
    return refusal(200, json.dumps(response(status=status, **fields)).encode())


COMPLETED = {"usage": COUNTED, "output": OUTPUT}


async def test_a_response_that_is_streamed_no_more_is_looked_at_until_it_is_over(
    server: ModelServer,
) -> None:
    still = kept("in_progress", output=[])
    server.will(refusal(400, TOO_OLD), kept("queued"), still, kept("completed", **COMPLETED))
    backend = backend_of(server)
    found = [frame async for frame in backend.attach(HANDLE)]
    await backend.aclose()
    assert found[:-1] == TOLD
    assert found[-1].data["finish"] == "tool_calls"
    targets = [request.target for request in server.received]
    assert targets == ["/v1/responses/resp_1?stream=true", *["/v1/responses/resp_1"] * 3]


async def test_a_server_that_streams_no_response_that_it_keeps_is_looked_at(
    server: ModelServer,
) -> None:
    whole = kept("completed", **COMPLETED)
    server.will(whole, whole)
    backend = backend_of(server)
    assert [frame async for frame in backend.attach(HANDLE)][:-1] == TOLD
    await backend.aclose()


async def test_a_connection_that_is_lost_too_late_to_be_made_again_loses_nothing(
    server: ModelServer,
) -> None:
    begun = [BEGUN, delta(1, "one", "reasoning_summary_text"), delta(2, "Hel")]
    server.will(
        reply(sse(*begun), Cut()),
        refusal(400, TOO_OLD),
        kept("in_progress"),
        kept("completed", **COMPLETED),
    )
    found = await ask(backend_of(server))
    assert text_of(fold_parts(found)) == "Hello"
    thoughts = [frame.data["delta"] for frame in found if frame.kind == "reasoning"]
    assert thoughts == ["one", "\n\ntwo"]
    assert [frame.kind for frame in found].count("tool_call") == 2
    assert [request.method for request in server.received] == ["POST", *["GET"] * 3]


async def test_half_a_character_at_the_loss_of_a_connection_is_told_with_the_rest(
    server: ModelServer,
) -> None:
    whole = {"type": "message", "content": [{"type": "output_text", "text": "Hi 👋!"}]}
    server.will(
        reply(sse(BEGUN, delta(1, "Hi \ud83d")), Cut()),
        refusal(400, TOO_OLD),
        kept("completed", output=[whole]),
    )
    assert text_of(fold_parts(await ask(backend_of(server)))) == "Hi 👋!"


@pytest.mark.parametrize(
    ("status", "fields", "words", "retryable"),
    [
        ("cancelled", {}, "was cancelled", True),
        ("failed", {"error": {"code": "server_error", "message": KEY}}, "(server_error)", True),
        ("failed", {"error": {"code": "invalid_prompt"}}, "(invalid_prompt)", False),
    ],
    ids=["cancelled", "failed", "refused"],
)
async def test_what_has_become_of_a_response_meanwhile_is_said(
    server: ModelServer, status: str, fields: dict[str, Any], words: str, retryable: bool
) -> None:
    over = kept(status, **fields)
    # The connections just end: nobody says on them why.
    server.will(reply(sse(*HELLO[:2])), reply(), over, over)
    frames, failure = await ask_in_vain(backend_of(server))
    assert frames == HELLO_FRAMES[:2]
    assert words in str(failure)
    assert (failure.retryable, KEY in failure.body) == (retryable, False)
    assert [request.target for request in server.received[2:]] == ["/v1/responses/resp_1"] * 2


async def test_a_response_that_is_looked_at_and_was_cut_says_so(server: ModelServer) -> None:
    cut = {"output": OUTPUT[2:3], "incomplete_details": {"reason": "max_output_tokens"}}
    server.will(refusal(400, TOO_OLD), kept("incomplete", **cut))
    backend = backend_of(server)
    found = [frame async for frame in backend.attach(HANDLE)]
    await backend.aclose()
    assert found[1:] == [text("Hello"), source("https://a.example", "A"), upstream_end("length")]


@pytest.mark.parametrize("body", [b"{}", b"[]", b"{no json", b'{"status": "odd"}'])
async def test_what_is_looked_at_and_is_no_response_is_a_failure(
    server: ModelServer, body: bytes
) -> None:
    server.will(refusal(400, TOO_OLD), refusal(200, body))
    backend = backend_of(server)
    with pytest.raises(BackendTransportError, match="no response"):
        await anext(backend.attach(HANDLE))
    await backend.aclose()


async def test_a_response_that_is_lost_and_not_kept_any_more_may_be_asked_for_again(
    server: ModelServer,
) -> None:
    server.will(reply(sse(*HELLO[:2]), Cut()), refusal(400, TOO_OLD), refusal(404))
    _, failure = await ask_in_vain(backend_of(server))
    assert (failure.status, failure.retryable) == (200, True)
    assert "broke off its answer" in str(failure)


async def test_events_that_all_have_one_number_are_not_joined_again(server: ModelServer) -> None:
    server.will(reply(sse(BEGUN, delta(0, "Hel"), delta(0, "lo")), Cut()))
    frames, failure = await ask_in_vain(backend_of(server))
    assert frames == HELLO_FRAMES[:3]
    assert failure.retryable
    assert len(server.received) == 1
