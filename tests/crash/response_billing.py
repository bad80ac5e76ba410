"""A provider of responses that keeps its own bill: an answer goes on, and costs, unheard.

It speaks the Responses API in background mode. Who asks is what the user has said.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from tests.crash.billing import MODEL, WORD_S, Billed

_CLOSED: Final = "Connection: close\r\n\r\n"
_STREAM: Final = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{_CLOSED}".encode()
_JSON: Final = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{_CLOSED}".encode()


class Response:
    """One answer, and the line of the bill that grows with it."""

    def __init__(self, line: Billed, words: int, chance: random.Random) -> None:
        self.line = line
        self.status = "in_progress"
        self.events: list[dict[str, Any]] = []
        self.news = asyncio.Condition()
        self._chance = chance
        self.writing = asyncio.ensure_future(self._write(words))

    @property
    def told(self) -> dict[str, Any]:
        """What is kept of it."""
        line = self.line
        usage = {
            "input_tokens": line.tokens_in,
            "input_tokens_details": {"cached_tokens": line.tokens_cached},
            "output_tokens": line.tokens_out,
            "output_tokens_details": {"reasoning_tokens": line.tokens_reasoning},
        }
        kept = {"id": line.request_id, "background": True, "status": self.status, "model": MODEL}
        return kept if self.status == "in_progress" else {**kept, "usage": usage}

    async def end(self, status: str) -> None:
        """End it, unless it is over; nothing is billed from then on."""
        if self.status == "in_progress":
            self.writing.cancel()
            self.status = status
            await self._add(f"response.{status}", response=self.told)

    async def _write(self, words: int) -> None:
        await self._add("response.created", response=self.told)
        for number in range(words):
            await asyncio.sleep(2 * WORD_S * self._chance.random())
            self.line.tokens_out += 1
            self.line.tokens_reasoning += self._chance.randint(0, 1)
            await self._add("response.output_text.delta", delta=f"word{number} ")
        self.status = "completed"
        await self._add("response.completed", response=self.told)

    async def _add(self, kind: str, **data: Any) -> None:
        async with self.news:
            self.events.append({"type": kind, "sequence_number": len(self.events), **data})
            self.news.notify_all()


class ResponseProvider:
    """Answers in the background, and bills whatever it has said of an answer."""

    def __init__(self, chance: random.Random) -> None:
        self.bill: list[Billed] = []
        self.joined = 0
        self._chance = chance
        self._responses: dict[str, Response] = {}
        self._billed = asyncio.Condition()

    async def has_billed(self, lines: int) -> None:
        """Return once the bill has so many lines."""
        async with self._billed:
            await self._billed.wait_for(lambda: len(self.bill) >= lines)

    async def is_idle(self) -> None:
        """Return once nothing more is added to the bill."""
        writing = [each.writing for each in self._responses.values()]
        await asyncio.gather(*writing, return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            method, target, body = await _asked(reader)
            address = urlsplit(target)
            query = parse_qs(address.query)
            name = address.path.removesuffix("/cancel").rpartition("/")[2]
            if method == "POST" and name == "responses":
                await self._tell(await self._begin(json.loads(body)), -1, writer)
            elif method == "POST":
                await self._responses[name].end("cancelled")
                writer.write(_JSON + json.dumps(self._responses[name].told).encode())
            elif "stream" in query:
                self.joined += 1
                after = int(query.get("starting_after", ["-1"])[0])
                await self._tell(self._responses[name], after, writer)
            else:
                writer.write(_JSON + json.dumps(self._responses[name].told).encode())
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # Whoever asked is dead, and pays all the same.
        finally:
            writer.close()

    async def _begin(self, asked: dict[str, Any]) -> Response:
        said = [str(item["content"]) for item in asked["input"]]
        line = Billed(f"resp_{len(self.bill)}", said[-1], sum(len(each.split()) for each in said))
        line.tokens_cached = self._chance.randint(0, line.tokens_in)
        response = Response(line, self._chance.randint(3, 25), self._chance)
        self._responses[line.request_id] = response
        async with self._billed:
            self.bill.append(line)
            self._billed.notify_all()
        return response

    async def _tell(self, response: Response, after: int, writer: asyncio.StreamWriter) -> None:
        writer.write(_STREAM)
        position = after + 1
        while position < len(response.events) or response.status == "in_progress":
            async with response.news:
                while position >= len(response.events):
                    await response.news.wait()
            for event in response.events[position:]:
                writer.write(f"data: {json.dumps(event)}\n\n".encode())
                position += 1
            await writer.drain()


@asynccontextmanager
async def responding(chance: random.Random) -> AsyncIterator[tuple[ResponseProvider, str]]:
    """Serve on a free port; yield the provider and its address."""
    provider = ResponseProvider(chance)
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    try:
        yield provider, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        await provider.is_idle()


async def _asked(reader: asyncio.StreamReader) -> tuple[str, str, bytes]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, target, _ = lines[0].split(" ")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
    return method, target, await reader.readexactly(int(headers.get("content-length", 0)))
