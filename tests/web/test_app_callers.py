"""Who asks: users and tenants see what is theirs, and nothing of anybody else."""

from __future__ import annotations

import asyncio

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from perdure.web.app import Caller
from tests.web.asking import (
    STOP,
    STREAM,
    TURN,
    TURNS,
    Service,
)
from tests.web.conftest import Start

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
    assert "chat:" not in str(answer), "what only the store should know"
    assert (await service.ask("GET", TURN)).json["state"] == "completed"


async def test_nobody_adds_a_turn_to_a_session_of_another_user(service: Service) -> None:
    await service.submit("Mine")
    answer = await service.submit("Mine too", index=1, caller="/eve")
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert answer.error["message"] == "there is no session 's'"
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
