"""A TCP proxy between a worker and its database that breaks in the ways of a network."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal, get_args

Fault = Literal["cut", "reset", "hang", "delay", "refuse", "half"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
DELAY_S = 0.05
PIECE = 8_192


class FaultProxy:
    """Passes bytes on until it is told of a fault.

    "cut" closes every connection in order, "reset" by RST, "half" passes half of the next piece on
    and resets; all three go on to take new connections. "refuse" resets what there is and whatever
    comes. "delay" holds each piece back, "hang" passes nothing on in either direction.
    """

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._links: set[_Link] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.delay_s = 0.0
        self.refuses = False
        self.halves = False

    async def __aenter__(self) -> FaultProxy:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.break_all(by_reset=True)

    @asynccontextmanager
    async def fault(self, fault: Fault) -> AsyncIterator[None]:
        """Have a fault for as long as the block lasts; what it broke stays broken."""
        if fault in ("cut", "reset", "refuse"):
            self.break_all(by_reset=fault != "cut")
        self.refuses, self.halves = fault == "refuse", fault == "half"
        self.delay_s = DELAY_S if fault == "delay" else 0.0
        if fault == "hang":
            self._flows.clear()
        try:
            yield
        finally:
            self.refuses = self.halves = False
            self.delay_s = 0.0
            self._flows.set()

    def break_all(self, *, by_reset: bool) -> None:
        for link in tuple(self._links):
            link.end(by_reset=by_reset)

    async def pass_on(self, link: _Link, piece: bytes, to: asyncio.StreamWriter) -> None:
        await self._flows.wait()
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.halves:
            to.write(piece[: len(piece) // 2])
            await to.drain()
            link.end(by_reset=True)
            return
        to.write(piece)
        await to.drain()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            _reset(writer)
            return
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            _reset(writer)
            return
        link = _Link(self, writer, up_writer)
        self._links.add(link)
        try:
            await link.run(reader, up_reader)
        finally:
            self._links.discard(link)


class _Link:
    """One connection through the proxy."""

    def __init__(
        self, proxy: FaultProxy, client: asyncio.StreamWriter, server: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._ended = asyncio.Event()

    def end(self, *, by_reset: bool) -> None:
        for writer in (self._client, self._server):
            if by_reset:
                _reset(writer)
            else:
                writer.close()
        self._ended.set()

    async def run(self, client: asyncio.StreamReader, server: asyncio.StreamReader) -> None:
        jobs = {
            asyncio.ensure_future(self._pump(client, self._server)),
            asyncio.ensure_future(self._pump(server, self._client)),
            asyncio.ensure_future(self._ended.wait()),
        }
        try:
            await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
            self.end(by_reset=False)

    async def _pump(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while piece := await source.read(PIECE):
                await self._proxy.pass_on(self, piece, to)


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
