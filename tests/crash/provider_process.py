"""A provider in a process of its own: it goes on with a response although nobody listens."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.crash.turn_process import Notes, say

TOKEN_S = 0.01
WORDS = [f"word{number} " for number in range(30)]
FINAL = "".join(WORDS)
COUNTED = {"input_tokens": 7, "output_tokens": len(WORDS)}


class Response:
    """One answer: its events so far, and how they come."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.events: list[dict[str, Any]] = []
        self.news = asyncio.Condition()
        self.task: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        return bool(self.events) and self.events[-1]["type"] == "response.completed"

    async def write(self) -> None:
        await self._add("response.created", response={"id": self.id, "background": True})
        for word in WORDS:
            await asyncio.sleep(TOKEN_S)
            await self._add("response.output_text.delta", delta=word)
        await self._add("response.completed", response={"id": self.id, "usage": COUNTED})

    async def _add(self, kind: str, **data: Any) -> None:
        async with self.news:
            self.events.append({"type": kind, "sequence_number": len(self.events), **data})
            self.news.notify_all()


class Provider:
    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._responses: dict[str, Response] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            method, target, length = await _head(reader)
            await reader.readexactly(length)
            address = urlsplit(target)
            if method == "POST":
                response = self._begin()
                after = -1
            else:
                name = address.path.rpartition("/")[2]
                response = self._responses[name]
                after = int(parse_qs(address.query).get("starting_after", ["-1"])[0])
                self._notes.add(f"joined {name}")
            await _tell(response, after, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self._notes.add("left")
        finally:
            writer.close()

    def _begin(self) -> Response:
        response = Response(f"resp_{len(self._responses) + 1}")
        self._responses[response.id] = response
        self._notes.add(f"begun {response.id}")
        response.task = asyncio.ensure_future(response.write())
        return response


async def _head(reader: asyncio.StreamReader) -> tuple[str, str, int]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, target, _ = lines[0].split(" ")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
    return method, target, int(headers.get("content-length", 0))


async def _tell(response: Response, after: int, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
    position = after + 1
    while position < len(response.events) or not response.is_over:
        async with response.news:
            while position >= len(response.events):
                await response.news.wait()
        for event in response.events[position:]:
            writer.write(f"data: {json.dumps(event)}\n\n".encode())
            position += 1
        await writer.drain()


async def main(notes_path: str) -> None:
    provider = Provider(Notes(notes_path))
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    say(str(server.sockets[0].getsockname()[1]))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
