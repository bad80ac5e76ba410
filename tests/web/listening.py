"""A service behind a real server and a real socket, and clients that read it line by line."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx2

from perdure.web.server import StreamingServer
from tests.web.asking import PATIENCE_S, TURNS, Service

CALLER = {"authorization": "/ann"}


class Listening(NamedTuple):
    """A service on a port; `server` ends as if by a signal."""

    port: int
    server: StreamingServer
    client: httpx2.AsyncClient
    ended: asyncio.Task[None]

    def signal(self) -> None:
        self.server.handle_exit(signal.SIGTERM, None)

    @asynccontextmanager
    async def lines(self, method: str, target: str, **options: Any) -> AsyncIterator[Lines]:
        """Make a request, and read its answer line by line; leaving it hangs up."""
        async with self.client.stream(method, target, **options) as response:
            yield Lines(response)

    def submit(self, target: str = f"{TURNS}?envelope=1", index: int = 0, **more: Any) -> Any:
        body = {"turnIndex": index, "message": "Hi"}
        return self.lines("POST", target, json=body, **more)

    def stream(self, query: str = "envelope=1", index: int = 0, **more: Any) -> Any:
        return self.lines("GET", f"{TURNS}/{index}/stream?{query}", **more)


class Lines:
    """The lines of an answer. A line ends at a line feed and nowhere else."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self._lines = self._read()

    async def _read(self) -> AsyncIterator[bytes]:
        rest = b""
        async for data in self.response.aiter_raw():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield line + b"\n"
        assert rest == b"", "a body ends in the middle of a line"

    async def next(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await anext(self._lines)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._lines

    async def take(self, count: int) -> list[bytes]:
        return [await self.next() for _ in range(count)]

    async def rest(self) -> list[bytes]:
        """Return all lines to the clean end of the answer; raises if it is cut."""
        async with asyncio.timeout(PATIENCE_S):
            return [line async for line in self._lines]


def text_in(lines: list[bytes]) -> str:
    """Return the text that enveloped lines stand for to a reader who forgets when told to."""
    text = ""
    for line in lines:
        event = json.loads(line)["chunk"]
        if event and event["type"] in ("session.run.started", "session.run.restarted"):
            text = ""
        elif event and event["data"].get("part", {}).get("type") == "text":
            text += event["data"]["delta"]
    return text


@asynccontextmanager
async def listening(service: Service) -> AsyncIterator[Listening]:
    """Serve on a free port of loopback until the block ends."""
    app: Any = service.app
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        state = app.state
        server = StreamingServer(app, close_streams=state.close_streams, hurry=state.hurry)
        ended = asyncio.create_task(server.serve_on(listener))
        async with httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers=CALLER, timeout=PATIENCE_S
        ) as client:
            served = Listening(port, server, client, ended)
            try:
                yield served
            finally:
                served.signal()
                await ended
