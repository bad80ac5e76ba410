"""The FastAPI router: the same answers as the application, and a document that is true."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx2
import pytest
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.security import HTTPBearer

from perdure.errors import PerdureError
from perdure.store.memory import MemoryStore
from perdure.turn.engine import ChatTurnEngine
from perdure.web.app import Caller, create_app
from perdure.web.fastapi import ChatRouter, chat_router
from perdure.web.openapi import DESCRIPTIONS
from tests.turn.stage import Script, until
from tests.web.asking import (
    PATIENCE_S,
    STOP,
    STREAM,
    TURN,
    TURNS,
    Answer,
    ask,
    by_header,
    halting,
    serve,
)
from tests.web.listening import CALLER, Lines, text_in
from tests.web.routing import document_of, routed

BODY = {"turnIndex": 0, "message": "Hi"}


# The same answers as those of the application.

REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", TURN, {}),
    ("POST", TURNS, {"send": BODY}),
    ("POST", TURNS, {"send": BODY}),
    ("POST", f"{TURNS}?envelope=1", {"send": BODY}),
    ("POST", TURNS, {"send": BODY, "headers": [("accept", "text/event-stream")]}),
    ("POST", f"{TURNS}?wire=reference", {"send": BODY}),
    ("POST", TURNS, {"send": {**BODY, "message": "Other"}}),
    ("POST", TURNS, {"send": {"message": "Hi"}}),
    ("POST", TURNS, {"send": {**BODY, "more": 1}}),
    ("POST", TURNS, {"body": b"{"}),
    ("POST", TURNS, {"body": b"{}", "headers": [("content-type", "text/plain")]}),
    ("POST", TURNS, {"body": b" " * (1024 * 1024 + 1)}),
    ("POST", f"{TURNS}?envelope=2", {"send": BODY}),
    ("GET", STREAM, {}),
    ("GET", f"{STREAM}?after=nonsense", {}),
    ("HEAD", STREAM, {}),
    ("POST", STOP, {}),
    ("GET", TURN, {}),
    ("GET", TURN, {"caller": "/bob"}),
    ("GET", TURN, {"caller": None}),
    ("GET", f"{TURNS}/x", {}),
    ("GET", "/v1/sessions/s", {}),
    ("GET", "/v1/sessions/other", {}),
    ("POST", "/v1/sessions/a%2Fturns", {"send": BODY}),
    ("GET", "/v1/sessions/%FF", {}),
    ("GET", "/v1/sessions/%zz", {}),
    ("GET", "/healthz", {"caller": None}),
    ("GET", "/readyz", {"caller": None}),
]


def told(answer: Answer) -> tuple[Any, ...]:
    """Return what a client is told, without times."""
    body: Any = answer.body
    if answer.headers.get("content-type") == "application/json" and answer.body:
        body = {name: value for name, value in answer.json.items() if name != "turns"}
        body = {name: value for name, value in body.items() if not name.endswith("At")}
    headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
    return answer.status, headers, body, answer.is_whole


@pytest.mark.parametrize("prefix", ["", "/api", "/v1/sessions/x y"])
async def test_every_request_is_answered_as_by_the_application(prefix: str) -> None:
    plain, router = serve(MemoryStore()), routed(prefix=prefix)
    for method, target, options in REQUESTS:
        wanted = await plain.ask(method, target, **options)
        above = prefix.replace(" ", "%20")
        answer = await router.ask(method, f"{above}{target}", **options)
        if "location" in wanted.headers:
            wanted.headers["location"] = f"{above}{wanted.headers['location']}"
        assert told(answer) == told(wanted), (method, target)
    assert plain.script.calls == router.script.calls == 1


def test_every_route_of_the_application_is_there_and_described() -> None:
    service = serve(MemoryStore(), page=False)
    routes: Any = service.app
    wanted = {
        (method.lower(), route.path)
        for route in routes.routes
        for method in route.methods - {"HEAD"}
    }
    document = document_of(routed())
    assert {
        (method, path) for path, known in document["paths"].items() for method in known
    } == wanted
    assert {route.name for route in routes.routes} == set(DESCRIPTIONS)


# Who asks.


async def user_of(token: Annotated[Any, Depends(HTTPBearer())]) -> str:
    return str(token.credentials)


async def by_token(user_id: Annotated[str, Depends(user_of)]) -> Caller:
    return Caller("", user_id)


async def test_authorize_is_a_dependency_that_may_have_its_own_and_is_in_the_document() -> None:
    service = routed(authorize=by_token)
    document = document_of(service)
    assert document["components"]["securitySchemes"] == {
        "HTTPBearer": {"type": "http", "scheme": "bearer"}
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) == path.startswith("/v1/")
    assert (await service.submit(caller="Bearer ann")).status == 201
    assert (await service.ask("GET", TURN, caller="Bearer ann")).status == 200
    assert (await service.ask("GET", TURN, caller="Bearer bob")).status == 404
    unknown = await service.ask("GET", TURN, caller=None)
    assert (unknown.status, unknown.error["code"]) == (401, "unauthorized")


async def test_what_a_dependency_refuses_has_the_form_that_all_errors_have() -> None:
    def demanding(x_user: Annotated[int, Header()]) -> Caller:
        if x_user == 0:
            raise HTTPException(403, {"reason": "blocked"}, {"x-more": "1"})
        if x_user == 1:
            raise PerdureError("out of order")
        return Caller("", str(x_user))

    service = routed(authorize=demanding)
    missing = await service.ask("GET", TURN)
    assert (missing.status, missing.error["code"]) == (400, "bad_request")
    assert "header.x-user" in missing.error["message"]
    refused = await service.ask("GET", TURN, headers=[("x-user", "0")])
    assert (refused.status, refused.error["code"]) == (403, "forbidden")
    assert refused.headers["x-more"] == "1"
    broken = await service.ask("GET", TURN, headers=[("x-user", "1")])
    assert (broken.status, broken.error["code"]) == (500, "internal")


# Real servers and sockets.


@asynccontextmanager
async def uvicorn_serving(app: Any) -> AsyncIterator[tuple[httpx2.AsyncClient, asyncio.Task[None]]]:
    """Serve an application by a uvicorn that knows nothing of us, until a real signal."""
    config = uvicorn.Config(app, lifespan="on", log_level="critical")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = asyncio.create_task(server.serve(sockets=[listener]))
        async with httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{listener.getsockname()[1]}",
            headers=CALLER,
            timeout=PATIENCE_S,
        ) as client:
            await until(lambda: server.started)
            try:
                yield client, ended
            finally:
                server.should_exit = True
                await ended


async def test_a_turn_goes_on_behind_a_client_that_left_and_is_rejoined() -> None:
    go_on = asyncio.Event()
    service = routed(halting(go_on))
    async with uvicorn_serving(service.app) as (client, _):
        async with client.stream("POST", f"{TURNS}?envelope=1", json=BODY) as response:
            assert response.status_code == 201
            seen = await Lines(response).take(2)
        cursor = json.loads(seen[-1])["id"]
        go_on.set()
        url = f"{STREAM}?envelope=1&after={cursor}"
        async with client.stream("GET", url) as response:
            seen += await Lines(response).rest()
        assert text_in(seen) == "Hello there"
    assert service.script.calls == 1


@pytest.fixture
def outlived() -> Iterator[None]:
    """Let this process outlive the signal, which uvicorn raises again when it has ended."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("outlived")
async def test_a_signal_cuts_streams_though_the_server_would_wait_for_them() -> None:
    store, never = MemoryStore(), asyncio.Event()
    engine = ChatTurnEngine(store, produce=halting(never))
    app = FastAPI()
    app.include_router(chat_router(engine, authorize=by_header, drain_ms=0))
    async with uvicorn_serving(app) as (client, ended):
        async with client.stream("POST", f"{TURNS}?envelope=1", json=BODY) as response:
            lines = Lines(response)
            await lines.take(2)
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(httpx2.RemoteProtocolError):
                await lines.rest()
        await asyncio.wait_for(ended, PATIENCE_S)
    [run] = await store.list_runs()
    assert (run.state, run.lease_holder_id) == ("running", None)


def test_the_router_can_be_told_to_cut_its_streams() -> None:
    store = MemoryStore()
    engine = ChatTurnEngine(store, produce=Script())
    router = chat_router(engine, authorize=by_header)
    assert isinstance(router, ChatRouter)
    app: Any = create_app(engine, store, authorize=by_header)
    for told_of in (router, app.state):
        told_of.close_streams()
        told_of.hurry()


async def test_a_router_that_was_told_to_cut_refuses_new_streams() -> None:
    store = MemoryStore()
    engine = ChatTurnEngine(store, produce=Script(), recover=False)
    router = chat_router(engine, authorize=by_header)
    app = FastAPI()
    app.include_router(router)
    router.close_streams()
    answer = await ask(app, "POST", TURNS, send=BODY)
    assert (answer.status, answer.error["code"]) == (503, "shutting_down")
