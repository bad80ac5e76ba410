"""A served chat under test: a provider that counts, services that can be killed, a loyal reader."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx2

TOKENS = [f" word{number}" for number in range(40)]
ANSWER = "".join(TOKENS)
ENDS = {"session.run.completed", "session.run.failed", "session.run.stopped"}
PATIENCE_S = 40.0


class Provider:
    """An OpenAI-compatible endpoint that answers slowly and counts how often it was asked."""

    def __init__(self, *, token_ms: float) -> None:
        self.calls = 0
        self._token_ms = token_ms
        self._asked = asyncio.Condition()

    async def __aenter__(self) -> Provider:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def called(self, times: int) -> None:
        """Return once it was asked so many times."""
        async with self._asked:
            await self._asked.wait_for(lambda: self.calls >= times)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            size = next(
                int(line.split(b":")[1])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length")
            )
            await reader.readexactly(size)
            async with self._asked:
                self.calls += 1
                self._asked.notify_all()
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
            )
            for token in TOKENS:
                writer.write(_chunk({"delta": {"content": token}}))
                await writer.drain()
                await asyncio.sleep(self._token_ms / 1_000)
            writer.write(_chunk({"delta": {}, "finish_reason": "stop"}) + b"data: [DONE]\n\n")
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # The service was killed in the middle of its call.
        finally:
            writer.close()


def _chunk(choice: Mapping[str, Any]) -> bytes:
    record = {"id": "c1", "model": "m", "choices": [{"index": 0, "finish_reason": None, **choice}]}
    return f"data: {json.dumps(record)}\n\n".encode()


class Service(NamedTuple):
    """A `perdure serve` in a process of its own."""

    process: asyncio.subprocess.Process
    origin: str

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def service_on(
    url: str, provider: Provider, *, lease_ms: int = 500
) -> AsyncIterator[Service]:
    """Start a service on a free port, and end it if it still runs."""
    environment = {
        **os.environ,
        "OPENAI_BASE_URL": provider.base_url,
        "OPENAI_MODEL": "model-1",
        "PYTHONUNBUFFERED": "1",
    }
    command = ["-m", "perdure", "serve", "--port", "0", "--backend", "openai"]
    command += ["--store", url, "--lease-ms", str(lease_ms)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, env=environment, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not (line := await process.stdout.readline()).startswith(b"address"):
                assert line, "the service did not start"
        origin = line.split()[1].decode().rstrip("/")
        await _until_it_answers(origin)
        yield Service(process, origin)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _until_it_answers(origin: str) -> None:
    async with asyncio.timeout(PATIENCE_S), httpx2.AsyncClient() as client:
        while True:
            try:
                await client.get(f"{origin}/readyz")
                return
            except httpx2.TransportError:
                await asyncio.sleep(0.02)


class Reader:
    """A client as it should be: it keeps its cursor, forgets at a restart, and comes back."""

    def __init__(self) -> None:
        self.cursor: str | None = None
        self.text = ""
        self.seqs: list[int] = []
        self.restarts = 0
        self.end: str | None = None
        self.broke_off = 0

    async def submit(self, origin: str, *, leave_behind: int | None = None) -> None:
        body = {"turnIndex": 0, "message": "Say some words"}
        await self._read("POST", f"{_turns(origin)}?envelope=1", leave_behind, json=body)

    async def follow(self, origin: str, *, leave_behind: int | None = None) -> None:
        after = f"&after={self.cursor}" if self.cursor else ""
        await self._read("GET", f"{_turns(origin)}/0/stream?envelope=1{after}", leave_behind)

    async def _read(self, method: str, url: str, leave_behind: int | None, **options: Any) -> None:
        """Read until the end of the turn, or until `leave_behind` lines came, or a break."""
        seen = 0
        try:
            async with (
                asyncio.timeout(PATIENCE_S),
                httpx2.AsyncClient(timeout=PATIENCE_S) as client,
                client.stream(method, url, **options) as response,
            ):
                assert response.status_code in (200, 201, 204), await response.aread()
                async for line in _lines_of(response):
                    self._take(line)
                    seen += 1
                    if self.end is not None or seen == leave_behind:
                        return
        except httpx2.TransportError:
            self.broke_off += 1

    def _take(self, line: Mapping[str, Any]) -> None:
        event = line["chunk"]
        if line["id"] is not None:
            self.cursor = line["id"]
            self.seqs.append(int(line["id"].split("_")[1]))
        if event is None:
            return
        if event["type"] == "session.run.started":
            self.text = ""
        elif event["type"] == "session.run.restarted":
            self.text = ""
            self.restarts += 1
        elif event["type"] in ENDS:
            self.end = event["type"]
        self.text += event["data"].get("delta", "")


async def _lines_of(response: httpx2.Response) -> AsyncIterator[Mapping[str, Any]]:
    rest = b""
    async for data in response.aiter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        for line in filter(None, lines):
            yield json.loads(line)


def _turns(origin: str) -> str:
    return f"{origin}/v1/sessions/s/turns"


async def turn_of(origin: str) -> Mapping[str, Any]:
    """Return the turn as the service shows it."""
    async with httpx2.AsyncClient(timeout=PATIENCE_S) as client:
        turn: Mapping[str, Any] = (await client.get(f"{_turns(origin)}/0")).json()
        return turn
