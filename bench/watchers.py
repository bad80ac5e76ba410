"""Cheap readers of streams over HTTP: they note when tokens came, and parse nothing."""

from __future__ import annotations

import asyncio
import json
import time
from typing import NamedTuple

TOKEN = b'"delta"'
STORY = "Tell me a long story"
"""What the scripted model answers with 782 tokens."""


class Place(NamedTuple):
    """Where a service listens."""

    host: str
    port: int


def posting(session: str) -> bytes:
    """Return the request of a new turn, whose response is its stream."""
    body = json.dumps({"turnIndex": 0, "message": STORY}).encode()
    head = (
        f"POST /v1/sessions/{session}/turns HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def following(session: str) -> bytes:
    """Return the request of a reader who comes to a turn that is live."""
    return f"GET /v1/sessions/{session}/turns/0/stream HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()


class Watcher(asyncio.Protocol):
    """One open stream. Between `begin` and the end of the measurement it notes every wait."""

    def __init__(self, request: bytes) -> None:
        self.tokens = 0
        self.first_ms: float | None = None
        self.gaps_ms: list[float] = []
        self.status = b""
        self.is_cut = False
        self._request = request
        self._asked = 0.0
        self._came = 0.0
        self._notes = False

    def begin(self) -> None:
        """Note waits from now on."""
        self._notes, self.tokens = True, 0

    def end(self) -> None:
        self._notes = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._asked = time.perf_counter()
        transport.write(self._request)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self.status:
            self.status = data[9:12]
        count = data.count(TOKEN)
        if not count:
            return
        now = time.perf_counter()
        if self.first_ms is None:
            self.first_ms = (now - self._asked) * 1e3
        elif self._notes:
            self.gaps_ms.append((now - self._came) * 1e3)
        self._came = now
        if self._notes:
            self.tokens += count

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_cut = self._notes

    def leave(self) -> None:
        self._transport.abort()


async def watch(place: Place, request: bytes) -> Watcher:
    """Open a stream; the answer comes while others are opened."""
    loop = asyncio.get_running_loop()
    _, watcher = await loop.create_connection(lambda: Watcher(request), place.host, place.port)
    return watcher
