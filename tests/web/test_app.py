"""Submitting, looking at and stopping turns: the rows of the route table, and their statuses."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.core.frames import reasoning, text, tool_call, tool_result, upstream_end, usage
from perdure.turn.hooks import ChatTurnHooks
from tests.turn.stage import Script, until, words
from tests.web.asking import (
    STOP,
    STREAM,
    TURN,
    TURNS,
    Service,
    ask,
    begin,
    halting,
    text_of,
)
from tests.web.conftest import Start

HELLO = "Hello there"


# Submitting.


async def test_a_fresh_turn_is_answered_by_201_and_its_stream(service: Service) -> None:
    answer = await service.submit()
    assert answer.status == 201
    assert answer.is_whole
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["cache-control"] == "no-cache, no-transform"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.kinds[0] == "session.run.started"
    assert answer.kinds[-1] == "session.run.completed"
    assert text_of(answer) == HELLO


async def test_the_same_turn_again_is_replayed_by_200_without_asking_the_model(
    service: Service,
) -> None:
    await service.submit()
    again = await service.submit()
    assert again.status == 200
    assert text_of(again) == HELLO
    assert again.events[-1]["data"]["replayed"] is True
    assert service.script.calls == 1


async def test_the_same_turn_while_it_runs_is_attached_to(start: Start) -> None:
    go_on = asyncio.Event()
    service = await start(halting(go_on))
    first = await begin(service)
    second = asyncio.create_task(service.submit())
    await asyncio.sleep(0)
    go_on.set()
    answers = await asyncio.gather(first, second)
    assert [answer.status for answer in answers] == [201, 200]
    assert [text_of(answer) for answer in answers] == [HELLO, HELLO]
    assert service.script.calls == 1


@pytest.mark.parametrize("wire", ["ndjson", "envelope", "sse", "both"])
async def test_the_wire_is_chosen_by_query_and_accept(service: Service, wire: str) -> None:
    accept = [("Accept", "text/event-stream, */*")] if wire in ("sse", "both") else []
    target = f"{TURNS}?envelope={int(wire in ('envelope', 'both'))}"
    answer = await service.submit(target=target, headers=accept)
    if wire in ("sse", "both"):
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.body.startswith(b"id: 0001_0000000000_")
    else:
        first = answer.events[0]
        assert (first["chunk"] if wire == "envelope" else first)["type"] == "session.run.started"


async def test_another_message_or_model_for_the_same_turn_is_a_conflict(service: Service) -> None:
    await service.submit()
    for answer in (await service.submit("Bye"), await service.submit(more={"model": "m2"})):
        assert answer.status == 409
        assert answer.error["code"] == "manifest_mismatch"
        assert "turn 0" in answer.error["message"]
        assert "retry-after" not in answer.headers


async def test_another_turn_of_a_busy_session_is_told_to_come_back(start: Start) -> None:
    go_on = asyncio.Event()
    service = await start(halting(go_on))
    first = await begin(service)
    busy = await service.submit("Next", index=1)
    assert (busy.status, busy.error["code"]) == (409, "session_busy")
    assert int(busy.headers["retry-after"]) >= 1
    assert (await service.ask("GET", f"{TURNS}/1")).status == 404
    go_on.set()
    await first
    assert (await service.submit("Next", index=1)).status == 201


async def test_a_failed_turn_is_replayed_until_somebody_asks_for_another_try(start: Start) -> None:
    service = await start(Script([text("Hel"), ValueError("secret")], words("Hello", " there")))
    failed = await service.submit()
    assert failed.status == 201
    assert failed.kinds[-2:] == ["error", "session.run.failed"]
    assert b"secret" not in failed.body
    again = await service.submit()
    assert (again.status, again.kinds[-1]) == (200, "session.run.failed")
    assert service.script.calls == 1
    view = (await service.ask("GET", TURN)).json
    assert (view["state"], view["text"]) == ("failed", "Hel")
    assert view["error"]["code"] == "internal"
    assert "secret" not in str(view)
    retried = await service.submit(more={"retry": True})
    assert (retried.status, retried.kinds[-1]) == (200, "session.run.completed")
    assert (await service.ask("GET", TURN)).json["text"] == HELLO


async def test_the_model_and_the_history_reach_the_producer(service: Service) -> None:
    await service.submit("One", more={"model": "large"})
    await service.submit("Two", index=1, more={"model": None})
    first, second = service.script.turns
    assert (first.model, second.model) == ("large", None)
    assert list(first.history) == []
    assert [(each["role"], each["content"]) for each in second.history] == [
        ("user", "One"),
        ("assistant", HELLO),
    ]


async def test_a_reader_who_leaves_ends_nothing(start: Start) -> None:
    go_on, leaves = asyncio.Event(), asyncio.Event()
    service = await start(halting(go_on))
    reading = await begin(service, leaves=leaves)
    leaves.set()
    left = await reading
    assert not left.is_whole
    go_on.set()
    assert text_of(await service.ask("GET", STREAM)) == HELLO
    assert service.script.calls == 1


async def test_a_client_who_leaves_in_the_middle_of_a_body_leaves_nothing(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    leaves = asyncio.Event()
    leaves.set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def torn() -> Any:
            message = await receive()
            return {**message, "more_body": True} if "body" in message else message

        await service.app(scope, torn, send)

    answer = await ask(app, "POST", TURNS, body=b'{"turnIndex":0', leaves=leaves)
    assert answer.status == 400
    assert await service.store.list_runs() == []
    assert caplog.records == []


# Turns and sessions.


async def test_a_live_turn_shows_what_there_is_so_far(start: Start) -> None:
    go_on = asyncio.Event()
    service = await start(halting(go_on))
    reading = await begin(service)
    view = (await service.ask("GET", TURN)).json
    assert (view["state"], view["attempt"], view["text"]) == ("running", 1, "Hello")
    assert (view["message"], view["completedAt"], view["error"]) == ("Hi", None, None)
    go_on.set()
    await reading


async def test_a_finished_turn_shows_parts_usage_and_deliveries(start: Start) -> None:
    async def persist(turn: Any) -> None:
        return None

    script = Script(
        [
            reasoning("Hm."),
            tool_call("c1", "look", {"at": 1}, effect="pure"),
            tool_result("c1", {"seen": True}),
            text("Done."),
            usage(provider="p", model="m", tokens_in=3, tokens_out=4),
            upstream_end("stop"),
        ]
    )
    hooks = ChatTurnHooks(persist_assistant_message=persist)
    service = await start(script, engine={"hooks": hooks})
    await service.submit()
    view = (await service.ask("GET", TURN)).json
    assert (view["sessionId"], view["turnIndex"], view["revision"]) == ("s", 0, 0)
    assert (view["state"], view["text"], view["reason"]) == ("completed", "Done.", None)
    assert [part["type"] for part in view["parts"]] == [
        "reasoning",
        "tool_call",
        "tool_result",
        "text",
    ]
    [used] = view["usage"]
    assert (used["model"], used["tokensIn"], used["tokensOut"]) == ("m", 3, 4)
    assert (used["tokensCached"], used["tokensCacheWritten"]) == (None, None)
    [delivery] = view["deliveries"]
    assert delivery["topic"] == "persist_assistant_message"
    assert delivery["state"] == "delivered"
    assert view["completedAt"] >= view["createdAt"]


async def test_a_session_is_its_conversation_without_the_answer_in_flight(start: Start) -> None:
    go_on = asyncio.Event()
    service = await start(
        Script(words("One"), [text("Tw"), go_on, text("o"), upstream_end("stop")])
    )
    await service.submit("First")
    reading = asyncio.create_task(service.submit("Second", index=1))
    await until(lambda: service.script.calls == 2)
    session = (await service.ask("GET", "/v1/sessions/s")).json
    first = [{"role": "user", "content": "First"}, {"role": "assistant", "content": "One"}]
    assert session["messages"] == first
    assert [turn["turnIndex"] for turn in session["turns"]] == [0, 1]
    assert session["inFlight"]["turnIndex"] == 1
    go_on.set()
    await reading
    session = (await service.ask("GET", "/v1/sessions/s")).json
    assert session["messages"][2:] == [
        {"role": "user", "content": "Second"},
        {"role": "assistant", "content": "Two"},
    ]
    assert session["inFlight"] is None


async def test_stop_keeps_the_partial_answer_and_works_twice(start: Start) -> None:
    service = await start(halting(asyncio.Event()))
    reading = await begin(service)
    stopped = await service.ask("POST", STOP)
    assert (stopped.status, stopped.json["state"], stopped.json["text"]) == (
        200,
        "stopped",
        "Hello",
    )
    assert (await reading).kinds[-1] == "session.run.stopped"
    assert (await service.ask("POST", STOP)).json["state"] == "stopped"
    session = (await service.ask("GET", "/v1/sessions/s")).json
    assert session["messages"][-1] == {"role": "assistant", "content": "Hello"}


async def test_stop_leaves_a_finished_turn_as_it_is(service: Service) -> None:
    await service.submit()
    before = (await service.ask("GET", TURN)).json
    answer = await service.ask("POST", STOP)
    assert (answer.status, answer.json) == (200, before)


@pytest.mark.parametrize(
    ("method", "target"),
    [("GET", STREAM), ("GET", TURN), ("POST", STOP), ("GET", "/v1/sessions/s")],
)
async def test_what_is_not_there_is_not_found(service: Service, method: str, target: str) -> None:
    answer = await service.ask(method, target)
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert await service.store.list_runs() == []
