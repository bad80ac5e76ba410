"""The server: what is no request gets the one form that errors have, and nobody is woken by it."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from perdure.store.memory import MemoryStore
from tests.web.asking import PATIENCE_S, serve
from tests.web.listening import listening


async def exchange(port: int, request: bytes) -> tuple[bytes, bytes]:
    """Send bytes, and return head and body of what comes back until the server hangs up."""
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    return head, body


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
    ],
)
async def test_what_is_no_request_is_refused_as_json(
    request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(serve(MemoryStore())) as served:
        head, body = await exchange(served.port, request_bytes + b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"content-type: application/json" in head
        error = json.loads(body)["error"]
        assert (error["code"], len(error)) == ("bad_request", 3)
        assert all(error.values())
        assert (await served.client.get("/healthz")).status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_an_upgrade_that_nobody_offers_is_an_ordinary_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    request = (
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    async with listening(serve(MemoryStore())) as served:
        head, body = await exchange(served.port, request)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body) == {"status": "ok"}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
