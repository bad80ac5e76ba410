"""An HTTP server on loopback that answers as told, also wrongly: what a provider may do to us."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Received(NamedTuple):
    """One request as it arrived."""

    target: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    method: str = "POST"


class Hang:
    """Send nothing more; `reached` is set when it came to that."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()


class Cut:
    """Reset the connection."""


class Wait(NamedTuple):
    """Go on when `event` is set."""

    event: asyncio.Event


Step = bytes | Hang | Cut | Wait


class Reply(NamedTuple):
    """One answer: a head, unless `status` is 0, then what `steps` say."""

    steps: tuple[Step, ...] = ()
    status: int = 200
    headers: Mapping[str, str] = {"content-type": "text/event-stream"}


def reply(*steps: Step) -> Reply:
    return Reply(steps)


def refusal(status: int, body: bytes = b"{}", **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply((body,), status, {"content-type": "application/json", **named})


def sse(*records: Any) -> bytes:
    """Return `records` as events; a text goes as it stands, the rest as JSON."""
    texts = (each if isinstance(each, str) else json.dumps(each) for each in records)
    return "".join(f"data: {each}\n\n" for each in texts).encode()


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """Return a chunk of a completion as providers send it."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "model-1-0613",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


class ModelServer:
    """Plays one of `replies` for each request, in order; what is not planned gets a 418."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.received: list[Received] = []
        self.connections = 0
        self.client_left = asyncio.Event()
        """Set when a client closed its connection before the end of a reply."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ModelServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def will(self, *replies: Reply) -> None:
        self.replies += replies

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        try:
            while (request := await _receive(reader)) is not None:
                self.received.append(request)
                planned = self.replies.pop(0) if self.replies else refusal(418)
                if not await self._play(planned, reader, writer):
                    break
        except (ConnectionError, asyncio.CancelledError):
            # The client may go at any moment, and the end of the test ends everything.
            pass
        finally:
            writer.close()

    async def _play(
        self, planned: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Send `planned`; return whether the connection can be used again."""
        if planned.status:
            writer.write(_head(planned.status, planned.headers))
            await writer.drain()
        for step in planned.steps:
            match step:
                case bytes():
                    writer.write(b"%x\r\n%b\r\n" % (len(step), step))
                    await writer.drain()
                case Wait(event):
                    await event.wait()
                case Hang():
                    step.reached.set()
                    await self._until_client_leaves(reader)
                    return False
                case Cut():
                    _reset(writer)
                    return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _until_client_leaves(self, reader: asyncio.StreamReader) -> None:
        try:
            await reader.read(1)
        finally:
            self.client_left.set()


async def _receive(reader: asyncio.StreamReader) -> Received | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    request_line, *lines = head.strip().split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    method, target, _ = request_line.split(" ")
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Received(target, headers, json.loads(body or b"{}"), method)


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Status", "transfer-encoding: chunked"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _reset(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def tiny(stream: bytes, size: int = 1) -> Iterable[bytes]:
    """Cut `stream` into pieces of `size` bytes."""
    return (stream[start : start + size] for start in range(0, len(stream), size))
