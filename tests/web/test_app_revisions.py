"""Revisions and busy sessions over HTTP: regenerate, edit, queue, replace, and what is shown."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tests.turn.stage import until, within
from tests.web.asking import STREAM, TURN, TURNS, Answer, Service, halting
from tests.web.conftest import Start

SESSION = "/v1/sessions/s"


async def say(service: Service, index: int, message: str | None = None, **more: Any) -> Answer:
    body: dict[str, Any] = {"turnIndex": index, **more}
    if message is not None:
        body["message"] = message
    return await service.ask("POST", f"{TURNS}?envelope=1", send=body)


async def shown(service: Service, target: str = SESSION) -> Any:
    answer = await service.ask("GET", target)
    assert answer.status == 200
    return answer.json


async def is_there(service: Service, target: str) -> bool:
    return (await service.ask("GET", target)).status == 200


async def refused(service: Service, **body: Any) -> str:
    answer = await service.ask("POST", TURNS, send={"turnIndex": 0, **body})
    assert answer.status == 400
    return str(answer.json["error"]["message"])


def told(events: Sequence[Mapping[str, Any]]) -> tuple[str, str, Mapping[str, Any]]:
    """Return what a reader has of a stream in the end, in however many pieces it came."""
    last = events[-1]
    words = [event["chunk"]["data"].get("delta", "") for event in events]
    return "".join(words), last["id"], {**last["chunk"]["data"], "replayed": True}


async def test_a_turn_is_regenerated_and_each_revision_stays_readable(service: Service) -> None:
    first = await say(service, 0, "Hi")
    assert (first.status, first.headers["location"]) == (201, TURN)
    again = await say(service, 0, regenerate=True)
    assert (again.status, again.headers["location"]) == (201, f"{TURN}?revision=1")
    started = again.events[0]["chunk"]
    assert started["data"]["revision"] == 1
    edited = await say(service, 0, "Hello", revision=2)
    assert edited.status == 201
    assert (await say(service, 0, "Hello", revision=2)).status == 200
    messages = [
        (await shown(service, f"{TURN}{query}"))["message"]
        for query in ("?revision=0", "?revision=1", "?revision=2", "")
    ]
    assert messages == ["Hi", "Hi", "Hello", "Hello"]
    assert (await service.ask("GET", f"{TURN}?revision=3")).status == 404
    conflict = await say(service, 0, "another", revision=2)
    assert (conflict.status, conflict.json["error"]["code"]) == (409, "manifest_mismatch")


async def test_a_stream_without_a_revision_is_that_of_its_cursor_or_the_newest(
    service: Service,
) -> None:
    first = await say(service, 0, "Hi")
    second = await say(service, 0, regenerate=True)
    for answer in (first, second):
        cursor = answer.events[0]["id"]
        rest = await service.ask("GET", f"{STREAM}?envelope=1&after={cursor}")
        assert told(rest.events) == told(answer.events[1:])
    newest = await service.ask("GET", f"{STREAM}?envelope=1")
    assert newest.events[0]["chunk"]["data"]["revision"] == 1
    older = await service.ask("GET", f"{STREAM}?envelope=1&revision=0")
    assert "revision" not in older.events[0]["chunk"]["data"]
    wrong = await service.ask("GET", f"{STREAM}?revision=0&after={second.events[0]['id']}")
    assert wrong.json["error"]["code"] == "bad_cursor"


async def test_a_session_shows_its_lines_and_where_it_goes_on(service: Service) -> None:
    assert (await service.ask("GET", SESSION)).status == 404
    for index in range(3):
        await say(service, index, f"m{index}")
    view = await shown(service)
    assert view["next"] == {"turnIndex": 3, "revision": 0}
    assert all(turn["isCurrent"] for turn in view["turns"])
    await say(service, 1, "m1 edited", revision=1)
    view = await shown(service)
    said = [message["content"] for message in view["messages"] if message["role"] == "user"]
    assert said == ["m0", "m1 edited"]
    current = {(turn["turnIndex"], turn["revision"]): turn["isCurrent"] for turn in view["turns"]}
    assert current == {(0, 0): True, (1, 0): False, (1, 1): True, (2, 0): False}
    parents = [turn["parent"] for turn in view["turns"]]
    zero, one = {"turnIndex": 0, "revision": 0}, {"turnIndex": 1, "revision": 0}
    assert parents == [None, zero, zero, one]
    assert view["next"] == {"turnIndex": 2, "revision": 1}
    place = view["next"]
    assert (await say(service, place["turnIndex"], "m2 anew", revision=1)).status == 201
    view = await shown(service)
    said = [message["content"] for message in view["messages"] if message["role"] == "user"]
    assert said == ["m0", "m1 edited", "m2 anew"]
    assert view["next"] == {"turnIndex": 3, "revision": 0}


async def test_a_busy_session_does_what_the_body_says(start: Start) -> None:
    go_on = asyncio.Event()
    service = await start(halting(go_on))
    first = asyncio.ensure_future(say(service, 0, "m0"))
    await until(lambda: is_there(service, TURN))
    rejected = await say(service, 1, "m1")
    assert (rejected.status, rejected.headers["retry-after"]) == (409, "1")
    queued = asyncio.ensure_future(say(service, 1, "m1", busy="queue"))
    await until(lambda: is_there(service, f"{TURNS}/1"))
    view = await shown(service)
    assert [turn["state"] for turn in view["turns"]] == ["running", "queued"]
    assert (view["inFlight"]["turnIndex"], view["next"]["turnIndex"]) == (0, 2)
    replacing = asyncio.ensure_future(say(service, 2, "m2", busy="replace"))
    stopped = await within(asyncio.gather(first, queued))
    for answer in stopped:
        assert answer.events[-1]["chunk"]["type"] == "session.run.stopped"
    go_on.set()
    answer = await within(replacing)
    assert (answer.status, answer.events[-1]["chunk"]["type"]) == (201, "session.run.completed")


async def test_a_revision_is_stopped_by_its_number(start: Start) -> None:
    go_on = asyncio.Event()
    service = await start(halting(go_on))
    go_on.set()
    await say(service, 0, "Hi")
    go_on.clear()
    again = asyncio.ensure_future(say(service, 0, regenerate=True))
    await until(lambda: is_there(service, f"{TURN}?revision=1"))
    untouched = await service.ask("POST", f"{TURN}/stop?revision=0")
    assert untouched.json["state"] == "completed"
    stopped = await service.ask("POST", f"{TURN}/stop")
    assert (stopped.json["state"], stopped.json["revision"]) == ("stopped", 1)
    assert (await within(again)).status == 201


@pytest.mark.parametrize(
    ("body", "culprit"),
    [
        ({}, "`message`"),
        ({"message": "Hi", "revision": -1}, "`revision`"),
        ({"message": "Hi", "revision": 1}, "the next one is 0"),
        ({"message": "Hi", "regenerate": "yes"}, "`regenerate`"),
        ({"regenerate": True, "revision": 1}, "`regenerate`"),
        ({"regenerate": True, "retry": True}, "`regenerate`"),
        ({"message": "Hi", "busy": "wait"}, "`busy`"),
    ],
    ids=str,
)
async def test_a_wrong_field_is_named(service: Service, body: dict[str, Any], culprit: str) -> None:
    assert culprit in await refused(service, **body)


@pytest.mark.parametrize("revision", ["-1", "01", "x", ""])
async def test_a_wrong_revision_in_the_query_is_named(service: Service, revision: str) -> None:
    await say(service, 0, "Hi")
    for target in (TURN, STREAM):
        answer = await service.ask("GET", f"{target}?revision={revision}")
        assert answer.status == 400
        assert "`revision`" in answer.json["error"]["message"]


async def test_what_is_not_there_is_not_regenerated(service: Service) -> None:
    answer = await say(service, 0, regenerate=True)
    assert (answer.status, answer.json["error"]["code"]) == (404, "not_found")


async def test_a_place_is_told_as_a_path_that_can_be_asked_for(service: Service) -> None:
    target = "/v1/sessions/k%C3%BCche%20turns/turns"
    answer = await service.ask("POST", target, send={"turnIndex": 0, "message": "Hi"})
    assert answer.headers["location"] == f"{target}/0"
    assert (await service.ask("GET", answer.headers["location"])).status == 200
