"""Every row and every status of the route table."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Mount

from perdure.core.frames import reasoning, text, tool_call, tool_result, upstream_end, usage
from perdure.errors import PerdureError
from perdure.store.memory import MemoryStore
from perdure.store.opening import open_store
from perdure.turn.hooks import ChatTurnHooks
from perdure.web.app import Caller
from perdure.web.responses import STATUS_OF
from tests.turn.stage import Script, until, words
from tests.web.asking import TURNS, Answer, Service, ask, serve
from tests.web.conftest import Start

STREAM, STOP, TURN = f"{TURNS}/0/stream", f"{TURNS}/0/stop", f"{TURNS}/0"
HELLO = "Hello there"


def text_of(answer: Answer) -> str:
    deltas = (event["data"] for event in answer.events if "delta" in event["data"])
    return "".join(data["delta"] for data in deltas if data["part"]["type"] == "text")


async def begin(service: Service, **options: Any) -> asyncio.Task[Answer]:
    """Submit a turn whose script stops at an event, and return once it has said something."""
    reading = asyncio.create_task(service.submit(**options))
    await until(lambda: service.script.calls or reading.done())

    async def has_spoken() -> bool:
        target = f"{TURNS}/{options.get('index', 0)}"
        caller = options.get("caller", "/ann")
        return reading.done() or bool(
            (await service.ask("GET", target, caller=caller)).json["text"]
        )

    await until(has_spoken)
    return reading


def halting(event: asyncio.Event) -> Script:
    return Script([text("Hello"), event, text(" there"), upstream_end("stop")])


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


# Streaming.


async def watched(start: Start) -> tuple[Service, Answer]:
    """Return a service and a turn as somebody saw it who was there from its first frame on."""
    go_on = asyncio.Event()
    service = await start(halting(go_on))
    reading = await begin(service, target=f"{TURNS}?envelope=1")
    go_on.set()
    return service, await reading


async def test_every_cursor_gives_exactly_the_rest(start: Start) -> None:
    service, whole = await watched(start)
    lines = whole.body.splitlines(keepends=True)
    ids = [line["id"] for line in whole.events]
    assert len(set(ids)) == len(ids) >= 4
    for place, cursor in enumerate(ids[:-1]):
        asked = await service.ask("GET", f"{STREAM}?envelope=1&after={cursor}")
        assert asked.status == 200
        rest = b"".join(lines[place + 1 :])
        assert asked.body == rest.replace(b'"replayed":false', b'"replayed":true')


async def test_a_cursor_may_come_as_last_event_id_which_counts_first(start: Start) -> None:
    service, whole = await watched(start)
    first, second, *_ = whole.events
    header = [("Last-Event-ID", first["id"])]
    asked = await service.ask("GET", f"{STREAM}?envelope=1", headers=header)
    assert asked.events[0]["id"] == second["id"]
    header = [("Last-Event-ID", second["id"])]
    asked = await service.ask("GET", f"{STREAM}?envelope=1&after={first['id']}", headers=header)
    assert second["id"] not in str(asked.events)


async def test_the_cursor_of_the_end_is_answered_by_204(service: Service) -> None:
    end = (await service.submit(target=f"{TURNS}?envelope=1")).events[-1]["id"]
    answer = await service.ask("GET", f"{STREAM}?after={end}")
    assert (answer.status, answer.body) == (204, b"")


@pytest.mark.parametrize(
    "cursor",
    ["x", "1", "0001_0000000001_ffffff", "0001_9999999999_{mark}", "-1", "%00", "é", "a b"],
)
async def test_a_wrong_cursor_is_refused(service: Service, cursor: str) -> None:
    mark = (await service.submit(target=f"{TURNS}?envelope=1")).events[0]["id"].split("_")[2]
    cursor = cursor.format(mark=mark)
    by_query = await service.ask("GET", f"{STREAM}?after={cursor}")
    by_header = await service.ask("GET", STREAM, headers=[("Last-Event-ID", cursor)])
    for answer in (by_query, by_header):
        assert (answer.status, answer.error["code"]) == (400, "bad_cursor")


async def test_frames_that_were_deleted_are_gone_but_the_turn_is_there(service: Service) -> None:
    first = (await service.submit(target=f"{TURNS}?envelope=1")).events[0]["id"]
    assert await service.store.delete("chat:s:0", frames_only=True)
    answer = await service.ask("GET", f"{STREAM}?after={first}")
    assert (answer.status, answer.error["code"]) == (410, "frames_expired")
    assert text_of(await service.ask("GET", STREAM)) == HELLO


async def test_a_turn_with_too_many_readers_asks_the_next_one_to_come_back(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = asyncio.Event()
    service = await start(halting(go_on))
    first = await begin(service)
    monkeypatch.setattr("perdure.durable.ring.READERS_MAX", 1)
    for answer in (await service.ask("GET", STREAM), await service.submit()):
        assert (answer.status, answer.error["code"]) == (429, "too_many_readers")
        assert int(answer.headers["retry-after"]) >= 1
    go_on.set()
    assert text_of(await first) == HELLO


async def test_a_reader_who_left_makes_room_at_once(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, leaves = asyncio.Event(), asyncio.Event()
    service = await start(halting(go_on))
    monkeypatch.setattr("perdure.durable.ring.READERS_MAX", 1)
    first = await begin(service, leaves=leaves)
    leaves.set()
    await first
    go_on.set()
    assert (await service.ask("GET", STREAM)).status == 200


async def test_head_tells_the_headers_of_a_stream_without_waiting_for_it(start: Start) -> None:
    service = await start(halting(asyncio.Event()))
    leaves = asyncio.Event()
    reading = await begin(service, leaves=leaves)
    answer = await service.ask("HEAD", STREAM)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-type"] == "application/x-ndjson"
    leaves.set()
    await reading


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
    assert used["tokensCached"] is None
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


# Who asks.

ENDPOINTS = [
    ("GET", STREAM),
    ("GET", TURN),
    ("POST", STOP),
    ("GET", "/v1/sessions/s"),
    ("POST", TURNS),
]


@pytest.mark.parametrize(("method", "target"), ENDPOINTS)
async def test_a_caller_whom_nobody_knows_gets_401(
    service: Service, method: str, target: str
) -> None:
    await service.submit()
    body = {"turnIndex": 0, "message": "Hi"} if target == TURNS else None
    answer = await service.ask(method, target, caller=None, send=body)
    assert (answer.status, answer.error["code"]) == (401, "unauthorized")


@pytest.mark.parametrize("is_same_message", [True, False])
@pytest.mark.parametrize(("method", "target"), ENDPOINTS)
async def test_a_session_of_another_user_looks_as_if_it_were_not_there(
    service: Service, method: str, target: str, is_same_message: bool
) -> None:
    await service.submit("Mine")
    message = "Mine" if is_same_message else "Other"
    body = {"turnIndex": 0, "message": message} if target == TURNS else None
    answer = await service.ask(method, target, caller="/eve", send=body)
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert "ann" not in str(answer)
    assert (await service.ask("GET", TURN)).json["state"] == "completed"


async def test_nobody_adds_a_turn_to_a_session_of_another_user(service: Service) -> None:
    await service.submit("Mine")
    answer = await service.submit("Mine too", index=1, caller="/eve")
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert len(await service.store.list_runs()) == 1


async def test_tenants_have_sessions_of_the_same_name_side_by_side(service: Service) -> None:
    for tenant in ("acme", "beta", "", "a b"):
        answer = await service.submit(f"I am {tenant}", caller=f"{tenant}/ann")
        assert answer.status == 201, answer
    for tenant in ("acme", "beta", "", "a b"):
        view = (await service.ask("GET", TURN, caller=f"{tenant}/ann")).json
        assert view["message"] == f"I am {tenant}"
    assert (await service.ask("GET", TURN, caller="gamma/ann")).status == 404


async def test_authorize_may_be_a_coroutine_function(start: Start) -> None:
    async def authorize(request: Request) -> Caller | None:
        await asyncio.sleep(0)
        return Caller("", "ann") if request.headers.get("authorization") else None

    service = await start(authorize=authorize)
    assert (await service.submit()).status == 201
    assert (await service.submit(caller=None)).status == 401


async def test_authorize_may_raise_what_starlette_knows(start: Start) -> None:
    def authorize(request: Request) -> Caller | None:
        raise HTTPException(403, "Not you.", headers={"x-why": "because"})

    answer = await (await start(authorize=authorize)).submit()
    assert (answer.status, answer.headers["x-why"]) == (403, "because")
    assert answer.error["message"] == "Not you."


async def test_an_authorize_that_breaks_tells_nothing_of_the_inside(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    def authorize(request: Request) -> Caller | None:
        raise RuntimeError("password=1234")

    answer = await (await start(authorize=authorize)).submit()
    assert (answer.status, answer.error["code"]) == (500, "internal")
    assert b"1234" not in answer.body
    reference = answer.error["message"].split()[-1].rstrip(".")
    assert reference in caplog.text
    assert "1234" in caplog.text


# Health.


async def test_health_asks_nobody_who_they_are(service: Service) -> None:
    for target in ("/healthz", "/readyz"):
        answer = await service.ask("GET", target, caller=None)
        assert (answer.status, answer.json) == (200, {"status": "ok"})


async def test_a_closed_store_is_alive_but_not_ready(service: Service) -> None:
    await service.submit()
    await service.store.close()
    assert (await service.ask("GET", "/healthz")).status == 200
    for method, target in (("GET", "/readyz"), ("GET", TURN), ("GET", STREAM), ("POST", STOP)):
        answer = await service.ask(method, target)
        assert (answer.status, answer.error["code"]) == (503, "store_unavailable"), target
        assert int(answer.headers["retry-after"]) >= 1
    assert (await service.submit("Next", index=1)).status == 503


# The rest of the form.


@pytest.mark.parametrize(
    "target", ["/nothing", "/v1", "/v1/sessions", "/v1/sessions/", f"{TURNS}/"]
)
async def test_a_path_that_is_none_is_answered_in_json(service: Service, target: str) -> None:
    answer = await service.ask("GET", target)
    assert (answer.status, answer.error["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "target"),
    [("DELETE", TURN), ("GET", TURNS), ("POST", STREAM), ("GET", STOP), ("OPTIONS", TURNS)],
)
async def test_a_method_that_a_path_has_not_is_answered_in_json(
    service: Service, method: str, target: str
) -> None:
    answer = await service.ask(method, target)
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"]


async def test_the_app_may_be_mounted_below_a_path() -> None:
    service = serve(MemoryStore())
    outer = Starlette(routes=[Mount("/v1/sessions/x y", app=service.app)])
    body = {"turnIndex": 0, "message": "Hi"}
    target = "/v1/sessions/x%20y/v1/sessions/caf%C3%A9%201/turns"
    answer = await ask(outer, "POST", target, send=body)
    assert answer.status == 201
    assert answer.events[0]["data"]["sessionId"] == "café 1"
    await service.engine.aclose(drain_ms=0)


async def test_the_lifespan_gives_turns_back_and_cuts_streams() -> None:
    store = await open_store("memory:")
    service = serve(store, halting(asyncio.Event()), drain_ms=0)
    app: Any = service.app
    async with app.router.lifespan_context(app):
        reading = await begin(service)
    assert not (await reading).is_whole
    [run] = await store.list_runs()
    assert (run.state, run.lease_holder_id) == ("running", None)
    await store.close()


def test_every_status_is_that_of_a_code_that_there_is() -> None:
    codes: set[str] = set()
    pending: list[type[PerdureError]] = [PerdureError]
    while pending:
        known = pending.pop()
        codes.add(known.code)
        pending.extend(known.__subclasses__())
    assert set(STATUS_OF) <= codes


async def test_an_error_before_the_first_byte_is_a_status() -> None:
    service = serve(MemoryStore())
    await service.submit()
    await service.engine.aclose(drain_ms=0)
    answer = await service.ask("GET", STREAM)
    assert (answer.status, answer.error["code"]) == (503, "store_unavailable")
