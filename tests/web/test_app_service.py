"""Health, mounting, shutting down, and the one form that refusals have."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from perdure.errors import PerdureError
from perdure.store.memory import MemoryStore
from perdure.store.opening import open_store
from perdure.web.responses import STATUS_OF
from tests.web.asking import (
    PATIENCE_S,
    STOP,
    STREAM,
    TURN,
    TURNS,
    Service,
    ask,
    begin,
    halting,
    serve,
)

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
        assert answer.status == 503, target
        # Closing the store has closed the engine, too.
        assert answer.error["code"] in {"store_closed", "store_unavailable"}, target
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


async def test_the_end_of_the_lifespan_cuts_streams_and_then_lets_turns_finish() -> None:
    store, go_on = await open_store("memory:"), asyncio.Event()
    service = serve(store, halting(go_on), drain_ms=10_000)
    app: Any = service.app
    lifespan = app.router.lifespan_context(app)
    await lifespan.__aenter__()
    reading = await begin(service)
    leaving = asyncio.create_task(lifespan.__aexit__(None, None, None))
    assert not (await reading).is_whole
    assert not leaving.done()
    go_on.set()
    await leaving
    [run] = await store.list_runs()
    assert run.state == "completed"
    await store.close()


async def test_a_hurry_ends_the_drain_and_gives_turns_back() -> None:
    store = await open_store("memory:")
    service = serve(store, halting(asyncio.Event()), drain_ms=60_000)
    app: Any = service.app
    lifespan = app.router.lifespan_context(app)
    await lifespan.__aenter__()
    reading = await begin(service)
    leaving = asyncio.create_task(lifespan.__aexit__(None, None, None))
    await reading
    app.state.hurry()
    await asyncio.wait_for(leaving, PATIENCE_S)
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


def test_a_run_that_cannot_go_on_as_asked_is_no_fault_of_the_server() -> None:
    conflicts = {"lease_held", "manifest_mismatch", "session_busy", "parked", "stopped"}
    assert {code for code, status in STATUS_OF.items() if status == 409} == conflicts


async def test_an_error_before_the_first_byte_is_a_status() -> None:
    service = serve(MemoryStore())
    await service.submit()
    await service.engine.aclose(drain_ms=0)
    answer = await service.ask("GET", STREAM)
    assert (answer.status, answer.error["code"]) == (503, "store_unavailable")
