"""Clients that leave at every chunk, and come back: the turn goes on, and nothing is missed."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import pytest
from starlette.types import ASGIApp, Message

from perdure.core.frames import text, upstream_end
from perdure.store.memory import MemoryStore
from tests.turn.stage import PATIENCE_S, Script
from tests.web.asking import JSON, TURN, TURNS, Service, serve

CHUNKS = [f"word{number} " for number in range(50)]
ANSWER = "".join(CHUNKS)
LINES = len(CHUNKS) + 2
"""The start, the chunks, the end."""

Leaving = Literal["unnoticed", "broken"]
"""Whether a server drops what is sent to a client that left, or raises."""


class Client:
    """Reads a turn line by line, keeps its cursor, and may leave behind any line."""

    def __init__(self, app: ASGIApp, leaving: Leaving) -> None:
        self.text = ""
        self.seqs: list[int] = []
        self.ended = False
        self.visits = 0
        self._app = app
        self._leaving = leaving
        self._cursor: str | None = None

    async def visit(self, *, lines_max: int | None = None) -> None:
        """Submit the turn, or come back to it; leave behind so many lines, or at its end."""
        self.visits += 1
        gone = asyncio.Event()
        seen = 0
        body = [json.dumps({"turnIndex": 0, "message": "Hi"}).encode()] if self.visits == 1 else []

        async def receive() -> Message:
            if body:
                return {"type": "http.request", "body": body.pop(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal seen
            if gone.is_set() and self._leaving == "broken":
                raise OSError("the client left")
            for line in message.get("body", b"").split(b"\n"):
                if line and not gone.is_set():
                    self._take(json.loads(line))
                    seen += 1
                    if seen == lines_max:
                        gone.set()
            # What has come in one piece is no reason for the next one not to wait its turn.
            await asyncio.sleep(0)

        if lines_max == 0:
            gone.set()
        async with asyncio.timeout(PATIENCE_S):
            await self._app(self._scope(), receive, send)

    def _take(self, line: Any) -> None:
        if line["id"] is not None:
            self._cursor = line["id"]
            self.seqs.append(int(line["id"].split("_")[1]))
        event = line["chunk"] or {"type": "", "data": {}}
        if event["type"] == "session.run.started":
            self.text = ""
        self.text += event["data"].get("delta", "")
        self.ended = self.ended or event["type"] == "session.run.completed"

    def _scope(self) -> dict[str, Any]:
        method, path = ("POST", TURNS) if self.visits == 1 else ("GET", f"{TURN}/stream")
        query = "envelope=1" + (f"&after={self._cursor}" if self._cursor else "")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(b"authorization", b"/ann"), (b"content-type", JSON.encode())],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }


def chatting() -> Service:
    return serve(MemoryStore(), Script([*map(text, CHUNKS), upstream_end("stop")]))


async def check(service: Service, client: Client) -> None:
    """Read the rest, and check that nothing was missed, told twice, or asked for again."""
    while not client.ended:
        await client.visit()
    turn = (await service.ask("GET", TURN)).json
    assert client.text == turn["text"] == ANSWER
    assert turn["attempt"] == service.script.calls == 1
    assert client.seqs == sorted(set(client.seqs))
    await service.engine.aclose(drain_ms=0)


@pytest.mark.parametrize("leaving", ["unnoticed", "broken"])
@pytest.mark.parametrize("lines", range(LINES + 1))
async def test_a_client_that_leaves_behind_any_chunk_misses_nothing(
    lines: int, leaving: Leaving
) -> None:
    service = chatting()
    client = Client(service.app, leaving)
    await client.visit(lines_max=lines)
    await check(service, client)


@pytest.mark.parametrize("leaving", ["unnoticed", "broken"])
@pytest.mark.parametrize("lines", [1, 2, 7])
async def test_a_client_that_leaves_behind_every_few_chunks_misses_nothing(
    lines: int, leaving: Leaving
) -> None:
    service = chatting()
    client = Client(service.app, leaving)
    while not client.ended:
        await client.visit(lines_max=lines)
    assert client.visits >= LINES // lines
    await check(service, client)


async def test_the_turn_is_finished_though_everybody_left_at_once() -> None:
    service = chatting()
    clients = [Client(service.app, "broken") for _ in range(50)]
    await asyncio.gather(*(client.visit(lines_max=place) for place, client in enumerate(clients)))
    for client in clients[1:]:
        while not client.ended:
            await client.visit()
        assert client.text == ANSWER
        assert client.seqs == sorted(set(client.seqs))
    await check(service, clients[0])
