"""Handles on a store in another process: each call is sent there, with what the clock says."""

from __future__ import annotations

import asyncio
import pickle
import struct
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from perdure.core.identity import check_tenant
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from tests.store.d1_server import D1Server

_HEAD = struct.Struct("!I")


async def send(writer: asyncio.StreamWriter, message: object) -> None:
    sent = pickle.dumps(message)
    writer.write(_HEAD.pack(len(sent)) + sent)
    await writer.drain()


async def receive(reader: asyncio.StreamReader) -> Any:
    (length,) = _HEAD.unpack(await reader.readexactly(_HEAD.size))
    return pickle.loads(await reader.readexactly(length))


async def open_at(url: str, clock: ManualClock, code_version: str | None) -> RunStore:
    """Open a handle; `d1 ORIGIN DATABASE` is a database of a D1 server of the tests."""
    if not url.startswith("d1 "):
        return await open_store(url, migrate=True, clock=clock, code_version=code_version)
    _, origin, database = url.split(" ")
    server = D1Server(origin)
    server.close()
    return server.store(server.api(database), clock, code_version)


class OtherProcess:
    """The other process, which opens handles and makes the calls that it is sent."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._calls = 0
        self._hearing = asyncio.ensure_future(self._hear())

    @classmethod
    async def start(cls) -> OtherProcess:
        return cls(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.contract.other_process"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        )

    async def _hear(self) -> None:
        assert self._process.stdout is not None
        while True:
            number, value, error = await receive(self._process.stdout)
            waiting = self._waiting.pop(number)
            if waiting.cancelled():
                continue
            if error is None:
                waiting.set_result(value)
            else:
                waiting.set_exception(raised(*error))

    async def ask(self, *what: Any) -> Any:
        """Return what became of a call; a caller that is cancelled cancels it there."""
        assert self._process.stdin is not None
        self._calls += 1
        number = self._calls
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        await send(self._process.stdin, (number, *what))
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            await send(self._process.stdin, (number, None))
            await asyncio.wait((answer,))
            raise

    async def open(self, url: str, clock: ManualClock, code_version: str | None) -> RunStore:
        handle: int = await self.ask("open", url, clock.now_ms, code_version)
        store: Any = RemoteStore(self, handle, clock)
        return store  # type: ignore[no-any-return]  # It has every method, made by name.

    async def close(self) -> None:
        self._hearing.cancel()
        self._process.kill()
        await self._process.wait()


def raised(kind: type[BaseException], values: tuple[Any, ...], members: Any) -> BaseException:
    """Return an error as it was raised there; its constructor may want more than its text."""
    if issubclass(kind, asyncio.CancelledError):
        return RuntimeError("the call was cancelled there")
    error = kind.__new__(kind)
    error.args = values
    error.__dict__.update(members)
    return error


class RemoteStore:
    """A handle, or its view for a tenant, whose methods are calls of the other process."""

    def __init__(
        self, process: OtherProcess, handle: int, clock: ManualClock, tenant: str = ""
    ) -> None:
        self.tenant = tenant
        self.handle = (id(process), handle)
        self._process = process
        self._number = handle
        self._clock = clock

    def for_tenant(self, tenant: str) -> RemoteStore:
        return RemoteStore(self._process, self._number, self._clock, check_tenant(tenant))

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        if method.startswith("_"):
            raise AttributeError(method)

        async def call(*values: Any, **options: Any) -> Any:
            where = (self._number, self.tenant, self._clock.now_ms)
            return await self._process.ask("call", *where, method, values, options)

        return call


class Serving:
    """What the other process does."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._handles: list[tuple[RunStore, ManualClock]] = []
        self._working: dict[int, asyncio.Task[None]] = {}

    def begin(self, number: int, what: str | None, *rest: Any) -> None:
        if what is None:
            working = self._working.get(number)
            if working is not None:
                working.cancel()
            return
        self._working[number] = asyncio.ensure_future(self._answer(number, what, rest))

    async def _answer(self, number: int, what: str, rest: tuple[Any, ...]) -> None:
        value, error = None, None
        try:
            value = await (self._open(*rest) if what == "open" else self._call(*rest))
        except BaseException as caught:
            error = (type(caught), caught.args, dict(caught.__dict__))
        await send(self._writer, (number, value, error))
        del self._working[number]

    async def _open(self, url: str, now_ms: int, code_version: str | None) -> int:
        clock = ManualClock(now_ms)
        store = await open_at(url, clock, code_version)
        self._handles.append((store, clock))
        return len(self._handles) - 1

    async def _call(
        self, handle: int, tenant: str, now_ms: int, method: str, values: Any, options: Any
    ) -> Any:
        store, clock = self._handles[handle]
        clock.now_ms = now_ms
        view = store.for_tenant(tenant) if tenant else store
        return await getattr(view, method)(*values, **options)


async def serve() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, sys.stdout.buffer
    )
    serving = Serving(asyncio.StreamWriter(transport, protocol, None, loop))
    while True:
        serving.begin(*await receive(reader))


if __name__ == "__main__":
    asyncio.run(serve())
