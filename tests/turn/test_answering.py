"""Turns answered by an OpenAI-compatible provider over real HTTP, which counts what it is asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.backends.openai import OpenAIBackend
from perdure.backends.retry import BackendRetry
from perdure.turn.answering import answer_with
from tests.backends.aimock import Aimock
from tests.backends.model_server import Cut, Hang, ModelServer, chunk, refusal, reply, sse

COUNTED = {"prompt_tokens": 9, "completion_tokens": 2}
USAGE = {"id": "chatcmpl-1", "model": "model-1-0613", "choices": [], "usage": COUNTED}
ANSWER = sse(chunk(content="Hello"), chunk(content=" there"), chunk("stop"), USAGE, "[DONE]")
NO_RETRY = BackendRetry(tries_max=1)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[perdure.RunStore]:
    store = await perdure.open_store(f"sqlite:{tmp_path / 'turns.db'}")
    yield store
    await store.close()


@asynccontextmanager
async def engine_on(
    store: perdure.RunStore, base_url: str, *, idle_timeout_ms: int = 60_000, **options: Any
) -> AsyncIterator[perdure.ChatTurnEngine]:
    backend = OpenAIBackend(
        "sk-secret", base_url=base_url, model="model-1", retry=NO_RETRY, **options
    )
    engine = perdure.ChatTurnEngine(
        store, produce=answer_with(backend), recover=False, idle_timeout_ms=idle_timeout_ms
    )
    try:
        yield engine
    finally:
        await engine.aclose(drain_ms=0)
        await backend.aclose()


def turn(index: int = 0) -> perdure.ChatTurnIdentity:
    return perdure.ChatTurnIdentity("", "session", "user", index)


async def read(submitted: perdure.SubmittedTurn) -> list[dict[str, Any]]:
    body = b"".join([line async for line in submitted.lines()])
    return [json.loads(line) for line in body.splitlines()]


def text_of(events: list[dict[str, Any]]) -> str:
    """Return the text that a client shows, which forgets everything at a restart."""
    text = ""
    for event in events:
        text += event["data"].get("delta", "")
        if event["type"] == "session.run.restarted":
            text = ""
    return text


async def details_of(store: perdure.RunStore) -> Any:
    return await store.read_details("chat:session:0")


async def test_a_turn_is_one_call_and_its_replay_none(
    store: perdure.RunStore, server: ModelServer
) -> None:
    server.will(reply(ANSWER))
    async with engine_on(store, server.base_url) as engine:
        fresh = await read(await engine.submit(turn(), "Hi"))
        again = await read(await engine.submit(turn(), "Hi"))
    assert text_of(fresh) == text_of(again) == "Hello there"
    end = {"sessionId": "session", "replayed": False, "finishReason": "stop"}
    assert fresh[-1]["data"] == end
    assert again[-1]["data"] == {**end, "replayed": True}
    assert len(server.received) == 1
    (usage,) = (await details_of(store)).usage
    assert (usage.state, usage.tokens_in, usage.tokens_out) == ("settled", 9, 2)
    assert (usage.provider, usage.model) == ("openai", "model-1-0613")


async def test_ten_submits_at_once_are_one_call(
    store: perdure.RunStore, server: ModelServer
) -> None:
    server.will(reply(ANSWER))
    async with engine_on(store, server.base_url) as engine:

        async def one() -> tuple[bool, str]:
            submitted = await engine.submit(turn(), "Hi")
            return submitted.created, text_of(await read(submitted))

        answers = await asyncio.gather(*(one() for _ in range(10)))
    assert [text for _, text in answers] == ["Hello there"] * 10
    assert [created for created, _ in answers].count(True) == 1
    assert len(server.received) == 1


async def test_two_engines_on_one_database_make_one_call(
    store: perdure.RunStore, server: ModelServer, tmp_path: Path
) -> None:
    server.will(reply(ANSWER))
    other_store = await perdure.open_store(f"sqlite:{tmp_path / 'turns.db'}")
    async with (
        engine_on(store, server.base_url) as one,
        engine_on(other_store, server.base_url) as other,
    ):

        async def ask(engine: perdure.ChatTurnEngine) -> str:
            return text_of(await read(await engine.submit(turn(), "Hi")))

        answers = await asyncio.gather(ask(one), ask(other))
    assert list(answers) == ["Hello there"] * 2
    await other_store.close()
    assert len(server.received) == 1


async def test_a_stop_before_the_first_token_ends_the_call(
    store: perdure.RunStore, server: ModelServer
) -> None:
    hang = Hang()
    server.will(reply(hang))
    async with engine_on(store, server.base_url) as engine:
        submitted = await engine.submit(turn(), "Hi")
        await hang.reached.wait()
        assert (await engine.stop(turn())).state == "stopped"
        events = await read(submitted)
        await asyncio.wait_for(server.client_left.wait(), 5)
    assert [event["type"] for event in events] == ["session.run.started", "session.run.stopped"]
    (usage,) = (await details_of(store)).usage
    assert usage.state == "unknown", "the call was made, and nobody said what it cost"


@pytest.mark.parametrize(
    ("planned", "code"),
    [
        (refusal(500, b'{"error":{"message":"secret host db-7"}}'), "transport"),
        (refusal(401, b'{"error":{"message":"bad key sk-secret"}}'), "transport"),
        (reply(sse(chunk(content="Half an ans")), Cut()), "transport"),
        (reply(sse(chunk(content="No finish reason"), "[DONE]")), "transport"),
        (reply(sse(chunk(content="He"), {"error": {"message": "secret"}})), "transport"),
        (reply(sse(chunk(content="He")), b"data: {broken\n\n"), "transport"),
    ],
    ids=["500", "401", "cut", "no finish reason", "error in the stream", "garbage"],
)
async def test_a_provider_that_fails_fails_the_turn_without_telling_why(
    store: perdure.RunStore, server: ModelServer, planned: Any, code: str
) -> None:
    server.will(planned)
    async with engine_on(store, server.base_url) as engine:
        events = await read(await engine.submit(turn(), "Hi"))
        again = await read(await engine.submit(turn(), "Hi"))
    error, failed = events[-2:]
    assert error["type"] == "error"
    assert error["data"]["code"] == code
    assert failed["type"] == "session.run.failed"
    assert "secret" not in json.dumps(events)
    assert again == events, "a failure is replayed until somebody asks for a retry"
    assert len(server.received) == 1
    (usage,) = (await details_of(store)).usage
    assert usage.state == "unknown"


async def test_a_failed_turn_is_answered_on_retry(
    store: perdure.RunStore, server: ModelServer
) -> None:
    server.will(reply(sse(chunk(content="Half")), Cut()), reply(ANSWER))
    async with engine_on(store, server.base_url) as engine:
        await read(await engine.submit(turn(), "Hi"))
        retried = await engine.submit(turn(), "Hi", retry=True)
        events = await read(retried)
    assert not retried.created
    kinds = [event["type"] for event in events]
    assert "session.run.restarted" in kinds
    assert "error" not in kinds, "a client that believed the old end would leave"
    assert text_of(events) == "Hello there"
    assert len(server.received) == 2
    states = [usage.state for usage in (await details_of(store)).usage]
    assert states == ["unknown", "settled"]


async def test_a_provider_that_hangs_is_given_up(
    store: perdure.RunStore, server: ModelServer
) -> None:
    server.will(reply(sse(chunk(content="Well")), Hang()))
    async with engine_on(store, server.base_url, idle_timeout_ms=200) as engine:
        events = await read(await engine.submit(turn(), "Hi"))
        await asyncio.wait_for(server.client_left.wait(), 5)
    assert events[-2]["data"]["code"] == "idle_timeout"
    assert events[-2]["data"]["retryable"] is True
    assert text_of(events) == "Well"


async def test_the_model_is_given_the_conversation(
    store: perdure.RunStore, server: ModelServer
) -> None:
    server.will(reply(ANSWER), reply(ANSWER))
    async with engine_on(store, server.base_url) as engine:
        await read(await engine.submit(turn(0), "Hi"))
        await read(await engine.submit(turn(1), "And now?"))
    assert server.received[1].body["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello there"},
        {"role": "user", "content": "And now?"},
    ]


@pytest.mark.node
async def test_an_independent_server_counts_one_call_for_turn_replay_and_ten_submits(
    store: perdure.RunStore, aimock: Aimock
) -> None:
    async with engine_on(store, aimock.base_url) as engine:
        fresh = text_of(await read(await engine.submit(turn(), "hello")))
        replays = await asyncio.gather(*(engine.submit(turn(), "hello") for _ in range(10)))
        texts = [text_of(await read(replay)) for replay in replays]
    assert fresh.startswith("Hello there")
    assert texts == [fresh] * 10
    assert len(aimock.journal()) == 1


async def test_what_is_added_to_each_request_counts_before_our_own_fields(
    store: perdure.RunStore,
) -> None:
    async with ModelServer() as server:
        server.will(reply(ANSWER))
        backend = OpenAIBackend(base_url=server.base_url, model="model-1", retry=NO_RETRY)
        added = {"temperature": 0.1, "stream_options": None, "max_completion_tokens": 9}
        engine = perdure.ChatTurnEngine(store, produce=answer_with(backend, extra_body=added))
        assert text_of(await read(await engine.submit(turn(), "Hi"))) == "Hello there"
        await engine.aclose()
        await backend.aclose()
        (request,) = server.received
    assert (request.body["temperature"], request.body["max_completion_tokens"]) == (0.1, 9)
    assert "stream_options" not in request.body
