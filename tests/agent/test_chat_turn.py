"""Chat turns in a sandbox (14.4), rule by rule, against a server on loopback."""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from perdure.agent.cancel import CancelSignal
from perdure.agent.chat_turn import (
    ChatTurnAuth,
    ChatTurnCalling,
    ChatTurnMessage,
    ChatTurnOverlay,
    ChatTurnSandbox,
    compose_turn_profile,
    run_chat_turn,
    sandbox_as_chat_turn_target,
)
from perdure.agent.chat_turn_events import ChatTurnReader, collect_chat_turn
from perdure.agent.profile import AgentProfile, ProfilePrompt
from perdure.agent.stream_events import (
    FinalEvent,
    TextDeltaEvent,
    ToolCallEvent,
    UnknownEvent,
)
from perdure.backends.retry import BackendRetry
from perdure.backends.sse import EVENT_CHARS_MAX
from perdure.errors import (
    AgentRuntimeError,
    ChatTurnError,
    PerdureError,
    UsageError,
    ValueTooLargeError,
)
from tests.agent.streaming import read
from tests.backends.model_server import Cut, Hang, ModelServer, Reply, refusal, reply, sse, tiny

PROFILE = {"name": "support-agent", "prompt": {"systemPrompt": "Be kind."}}
KEY = "sandbox-key-9f2c6a1b"
ONCE = ChatTurnCalling(retry=BackendRetry(tries_max=1))
QUICK = ChatTurnCalling(retry=BackendRetry(tries_max=3, backoff_ms=0))
DELTA = {"type": "text_delta", "text": "On its way."}


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as running:
        yield running


def box(server: ModelServer) -> ChatTurnSandbox:
    return ChatTurnSandbox("box-1", server.base_url, ChatTurnAuth("X-Box-Key", KEY))


async def turn(server: ModelServer, **options: Any) -> list[Any]:
    options.setdefault("calling", ONCE)
    events = run_chat_turn(PROFILE, "Where is my order?", box(server), **options)
    return [event async for event in events]


def test_14_4_r1_an_overlay_is_laid_over_the_profile_for_one_turn() -> None:
    overlay = ChatTurnOverlay(
        prompt_overlay={"instructions": ["Customer tier: gold."]},
        resources_overlay={"files": [{"path": "a"}]},
        subagents_overlay={"legal": {"maxSteps": 2}},
        metadata={"turn": 7},
    )
    assert compose_turn_profile(PROFILE, overlay) == {
        "name": "support-agent",
        "prompt": {"systemPrompt": "Be kind.", "instructions": ["Customer tier: gold."]},
        "resources": {"files": [{"path": "a"}]},
        "subagents": {"legal": {"maxSteps": 2}},
        "metadata": {"turn": 7},
    }
    assert PROFILE == {"name": "support-agent", "prompt": {"systemPrompt": "Be kind."}}


@pytest.mark.parametrize(
    "overlay",
    [
        None,
        ChatTurnOverlay(),
        ChatTurnOverlay(prompt_overlay={}, resources_overlay={}, subagents_overlay={}, metadata={}),
        ChatTurnOverlay(prompt_overlay=ProfilePrompt(), resources_overlay={"files": None}),
    ],
)
def test_14_4_r1_an_empty_overlay_gives_a_profile_equal_to_the_base(overlay: Any) -> None:
    bases: tuple[dict[str, Any], ...] = (PROFILE, {**PROFILE, "resources": {}}, {"tools": {}})
    for base in bases:
        assert compose_turn_profile(base, overlay) == base
    assert compose_turn_profile(None, overlay) == {}


@pytest.mark.parametrize("slashes", ["", "/", "//"])
async def test_14_4_r2_r3_r4_what_the_sandbox_gets(server: ModelServer, slashes: str) -> None:
    server.will(reply(sse(DELTA)))
    target = ChatTurnSandbox("box-1", server.base_url + slashes, ChatTurnAuth("X-Box-Key", KEY))
    prior = [{"role": "user", "content": "Hi", "metadata": {"at": 1}, "own": 2}]
    stream = run_chat_turn(
        AgentProfile(name="a", prompt=ProfilePrompt(system_prompt="Be kind.")),
        "Where is my order?",
        target,
        prior_messages=[*prior, ChatTurnMessage("assistant", "Hello.")],
        model_override="vendor/model-x",
        calling=ONCE,
    )
    assert [event async for event in stream] == [TextDeltaEvent(text="On its way.")]
    [request] = server.received
    assert (request.method, request.target) == ("POST", "/v1/runtime/agents/run/stream")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["accept"] == "text/event-stream"
    assert request.headers["x-box-key"] == KEY
    assert request.body == {
        "backend": {
            "type": "claude-code",
            "profile": {"name": "a", "prompt": {"systemPrompt": "Be kind."}},
            "model": {"default": "vendor/model-x"},
        },
        "messages": [
            *prior,
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Where is my order?"},
        ],
    }


async def test_14_4_r4_the_profile_names_the_kind_of_agent(server: ModelServer) -> None:
    server.will(reply(sse(DELTA)))
    await turn(server, overlay=ChatTurnOverlay(metadata={"backend": {"type": "codex"}}))
    [request] = server.received
    assert request.body["backend"]["type"] == "codex"
    assert "model" not in request.body["backend"]


async def test_14_4_r5_a_refusal_tells_its_status_and_a_little_of_its_body(
    server: ModelServer,
) -> None:
    server.will(refusal(403, b"no entry " * 200))
    with pytest.raises(ChatTurnError, match="no entry") as raised:
        await turn(server)
    assert (raised.value.status, raised.value.retryable) == (403, False)
    assert str(raised.value).count("no entry") == 500 // len("no entry ")
    assert (raised.value.code, isinstance(raised.value, PerdureError)) == ("transport", True)


async def test_14_4_r5_an_echoed_key_does_not_reach_the_error(server: ModelServer) -> None:
    server.will(refusal(401, f"bad key {KEY}".encode()))
    with pytest.raises(ChatTurnError, match="bad key") as raised:
        await turn(server)
    assert KEY not in f"{raised.value!r}{raised.value.__cause__!r}"
    assert KEY not in repr(box(server))


async def test_14_4_r5_an_answer_without_a_body_is_refused(server: ModelServer) -> None:
    server.will(Reply())
    with pytest.raises(ChatTurnError, match="without a body") as raised:
        await turn(server)
    assert raised.value.status == 200


async def test_14_4_a_refusal_that_may_pass_is_tried_again_under_the_same_key(
    server: ModelServer,
) -> None:
    server.will(refusal(503), Reply((Cut(),), 0), reply(sse(DELTA)))
    assert await turn(server, calling=QUICK) == [TextDeltaEvent(text="On its way.")]
    keys = {request.headers["idempotency-key"] for request in server.received}
    assert (len(server.received), len(keys)) == (3, 1)


async def test_14_4_the_key_is_the_callers_if_there_is_one(server: ModelServer) -> None:
    server.will(reply(sse(DELTA)))
    await turn(server, calling=ChatTurnCalling(idempotency_key="turn-7"))
    assert server.received[0].headers["idempotency-key"] == "turn-7"


async def test_bb_12_too_much_at_once_is_refused(server: ModelServer) -> None:
    server.will(reply(b"data: " + b"x" * (EVENT_CHARS_MAX + 1)))
    with pytest.raises(ChatTurnError, match="too much at once"):
        await turn(server)


async def test_14_4_nothing_is_repeated_once_the_answer_has_begun(server: ModelServer) -> None:
    server.will(reply(sse(DELTA), Cut()))
    told: list[Any] = []
    with pytest.raises(ChatTurnError, match="broke off") as raised:
        await read(run_chat_turn(PROFILE, "Hi", box(server), calling=QUICK), told)
    assert told == [TextDeltaEvent(text="On its way.")]
    assert (raised.value.retryable, len(server.received)) == (True, 1)


async def test_bb_18_silence_ends_the_turn(server: ModelServer) -> None:
    server.will(reply(sse(DELTA), Hang()))
    with pytest.raises(ChatTurnError, match="sent nothing for 20 ms"):
        await turn(server, calling=ChatTurnCalling(idle_timeout_ms=20))


async def test_14_4_a_signal_ends_the_turn_and_the_call(server: ModelServer) -> None:
    hang, signal = Hang(), CancelSignal()
    server.will(reply(sse(DELTA), hang))
    stream = run_chat_turn(PROFILE, "Hi", box(server), signal=signal, calling=ONCE)
    assert await anext(stream) == TextDeltaEvent(text="On its way.")
    signal.cancel("the user left")
    with pytest.raises(AgentRuntimeError, match="the user left"):
        await anext(stream)
    await asyncio.wait_for(server.client_left.wait(), 10)
    with pytest.raises(AgentRuntimeError, match="the user left"):
        await turn(server, signal=signal)
    assert len(server.received) == 1


@pytest.mark.parametrize("address", ["", "box.example", "ftp://box.example", "file:///etc/hosts"])
async def test_14_4_r2_a_sandbox_without_an_address_of_the_web_is_named(address: str) -> None:
    target = ChatTurnSandbox("box-1", address)
    with pytest.raises(UsageError, match="runtime_url of the sandbox 'box-1' must be an address"):
        await read(run_chat_turn(PROFILE, "Hi", target, calling=ONCE))


async def test_14_4_closing_the_stream_ends_the_call(server: ModelServer) -> None:
    server.will(reply(sse(DELTA), Hang()))
    stream = run_chat_turn(PROFILE, "Hi", box(server), calling=ONCE)
    await anext(stream)
    await stream.aclose()
    await asyncio.wait_for(server.client_left.wait(), 10)


# Reading…

CALL = {"type": "tool_call", "toolName": "find", "toolCallId": "c-1", "args": {"a_b": 1}}
ODD = {"type": "message.part.updated", "data": {"text": "ü"}}
EVENTS = [
    TextDeltaEvent(text="On its way."),
    ToolCallEvent(tool_name="find", tool_call_id="c-1", args={"a_b": 1}),
    UnknownEvent("message.part.updated", ODD),
]


def lines(*records: Any) -> bytes:
    return "".join(f"{json.dumps(each, ensure_ascii=False)}\n" for each in records).encode()


STREAMS = [
    sse(DELTA, CALL, ODD, "[DONE]"),
    sse(DELTA, CALL, ODD).replace(b"\n", b"\r\n"),
    b": hello\n\n\n" + sse(DELTA, "not JSON", "7", CALL) + sse(ODD).removesuffix(b"\n\n"),
    sse(DELTA, CALL, ODD).replace(b"\n\n", b"\n"),
    lines(DELTA, CALL, ODD),
    b"\n \r\n" + lines(DELTA, CALL).replace(b"\n", b"\r\n\r\n") + b"oops\n" + lines(ODD)[:-1],
    codecs.BOM_UTF8 + lines(DELTA, CALL, ODD),
    lines(DELTA) + sse(CALL) + lines(ODD) + b"data: [DONE]",
    codecs.BOM_UTF8 + b"\n" + sse(DELTA, CALL, ODD),
]


@pytest.mark.parametrize("stream", STREAMS)
def test_14_4_r6_however_it_is_framed_and_cut_the_events_are_the_same(stream: bytes) -> None:
    for size in range(1, len(stream) + 1):
        reader = ChatTurnReader()
        events = [event for piece in tiny(stream, size) for event in reader.feed(piece)]
        assert [*events, *reader.close()] == EVENTS, size


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_14_4_r6_what_no_json_has_is_skipped(number: str) -> None:
    odd = f'{{"type": "llm_call", "model": "m", "costUsd": {number}}}\n'.encode()
    for stream in (odd + lines(DELTA), b"data: " + odd + b"\n" + sse(DELTA)):
        assert list(ChatTurnReader().feed(stream)) == [TextDeltaEvent(text="On its way.")]


@pytest.mark.parametrize("head", [b"data: ", b"{"])
def test_bb_12_an_event_without_an_end_is_refused(head: bytes) -> None:
    reader = ChatTurnReader(event_chars_max=100)
    with pytest.raises(ValueTooLargeError):
        [event for piece in (head, *[b"x" * 50] * 3) for event in reader.feed(piece)]


def test_14_4_a_known_type_whose_fields_do_not_fit_comes_as_it_was_sent() -> None:
    sent = {"type": "tool_call", "data": {"name": "find"}}
    assert list(ChatTurnReader().feed(sse(sent))) == [UnknownEvent("tool_call", sent)]
    assert list(ChatTurnReader().feed(sse({"a": 1}))) == [UnknownEvent("", {"a": 1})]


async def test_bb_18_a_turn_is_collected(server: ModelServer) -> None:
    usage = {"type": "llm_call", "model": "m", "tokensIn": 7, "tokensOut": 3}
    odd_call = {"type": "tool_call", "data": {"name": "ask", "input": {"q": 1}}}
    result = {"type": "result", "data": {"finalText": "On its way. Soon."}}
    server.will(reply(sse(DELTA, CALL, odd_call, usage, result)))
    turn = await collect_chat_turn(run_chat_turn(PROFILE, "Hi", box(server), calling=ONCE))
    assert turn.text == "On its way. Soon."
    assert [call.tool_name for call in turn.tool_calls] == ["find", "ask"]
    assert [(call.tokens_in, call.tokens_out) for call in turn.calls] == [(7, 3)]
    assert turn.terminal == UnknownEvent("result", result)
    assert turn.event_count == 5


@pytest.mark.parametrize(
    ("whole", "text"), [("On its way. Soon.", "On its way. Soon."), ("Else.", "On its way.")]
)
async def test_bb_18_a_final_event_adds_what_its_deltas_lack(
    server: ModelServer, whole: str, text: str
) -> None:
    final = {"type": "final", "status": "completed", "reason": "done", "text": whole}
    known = {"task": {"id": "t", "intent": "i"}, "timestamp": "2026-05-10T00:00:00.000Z"}
    server.will(reply(sse(DELTA, {**final, **known})))
    turn = await collect_chat_turn(run_chat_turn(PROFILE, "Hi", box(server), calling=ONCE))
    assert turn.text == text
    assert isinstance(turn.terminal, FinalEvent)


def test_bb_18_an_answer_may_be_silent_for_a_minute_where_nothing_else_is_said() -> None:
    assert ChatTurnCalling().idle_timeout_ms == 60_000


# Targets…


class _Connection:
    runtime_url = "https://inner.example//"


class _Instance:
    id = "box-2"
    connection = _Connection()


@pytest.mark.parametrize(
    ("instance", "url"),
    [
        ({"id": "box-2", "url": "https://a.example/", "connection": {"runtimeUrl": "b"}}, "a"),
        ({"id": "box-2", "connection": {"runtimeUrl": "https://b.example"}}, "b"),
        (_Instance(), "inner"),
    ],
)
def test_14_4_r7_the_address_of_a_sandbox(instance: Any, url: str) -> None:
    auth = ChatTurnAuth("Authorization", "Bearer x")
    found = sandbox_as_chat_turn_target(instance, auth)
    assert found == ChatTurnSandbox("box-2", f"https://{url}.example", auth)


@pytest.mark.parametrize("where", [{}, {"url": ""}, {"connection": {"runtimeUrl": ""}}])
def test_14_4_r7_a_sandbox_without_an_address_is_refused(where: dict[str, Any]) -> None:
    with pytest.raises(ChatTurnError, match="'box-2'") as raised:
        sandbox_as_chat_turn_target({"id": "box-2", **where})
    assert (raised.value.status, raised.value.retryable) == (0, False)
