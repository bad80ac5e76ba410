"""A body that does not come: the service waits for it neither for ever nor while it shuts down."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.types import Message

from tests.web.asking import TURNS, Service


async def begin_body(service: Service, then: Callable[[], None]) -> tuple[Message, Any]:
    """Send the first byte of a body, call `then`, and return how the service answers."""
    sent: list[Message] = []
    pieces: list[Message] = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> Message:
        if pieces:
            return pieces.pop()
        then()
        await asyncio.Event().wait()
        return {}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"authorization", b"/ann")]
    scope = {
        **{"type": "http", "http_version": "1.1", "method": "POST", "scheme": "http"},
        **{"path": TURNS, "raw_path": TURNS.encode(), "query_string": b"", "root_path": ""},
        "headers": headers,
    }
    async with asyncio.timeout(20):
        await service.app(scope, receive, send)
    return sent[0], json.loads(sent[1]["body"])["error"]


async def test_a_body_that_takes_too_long_is_given_up(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.web.requests.BODY_WAIT_MS", 20)
    start, error = await begin_body(service, lambda: None)
    assert start["status"] == 408
    assert error["code"] == "request_timeout"
    assert not await service.store.list_runs()


async def test_a_service_that_shuts_down_waits_for_no_body(service: Service) -> None:
    assert isinstance(service.app, Starlette)
    start, error = await begin_body(service, service.app.state.close_streams)
    assert start["status"] == 503
    assert error["code"] == "shutting_down"
    assert (b"retry-after", b"1") in start["headers"]
    assert not await service.store.list_runs()
