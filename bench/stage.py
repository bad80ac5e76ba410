"""An engine of turns on an empty store, with a model that says tokens and may wait at their end."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import perdure
from bench.sides.asked import tokens
from perdure.core.frames import text, upstream_end
from tests.store.postgres_server import running_server

TOKEN: Final = "the-token"
"""What a model says whose one token is waited for."""


class Model:
    """A model that says so many tokens, and may wait at their end until it is let go."""

    def __init__(self, count: int, *, pause_ms: float = 0, waits: bool = False) -> None:
        self.count = count
        self.pause_ms = pause_ms
        self.may_end = asyncio.Event()
        if not waits:
            self.may_end.set()

    async def __call__(self, _turn: perdure.Turn) -> AsyncIterator[perdure.Frame]:
        async for token in tokens(self.count, self.pause_ms):
            yield text(token)
        await self.may_end.wait()
        yield upstream_end("stop")


class Bench:
    """An engine on a store of its own."""

    def __init__(self, store: perdure.RunStore, model: Model) -> None:
        self.store = store
        self.model = model
        self.engine = perdure.ChatTurnEngine(store, produce=model, recover=False)
        self._turns = 0

    async def submit(self) -> tuple[perdure.ChatTurnIdentity, perdure.SubmittedTurn]:
        self._turns += 1
        turn = perdure.ChatTurnIdentity("", f"s{self._turns}", "ann", 0)
        return turn, await self.engine.submit(turn, "Hi")


@asynccontextmanager
async def empty(scheme: str) -> AsyncIterator[str]:
    """Yield the address of an empty store; PostgreSQL is a server of our own, which flushes."""
    with ExitStack() as stack:
        if scheme == "postgres":
            server = await asyncio.to_thread(stack.enter_context, running_server(flushes=True))
            yield server.new_store()
        elif scheme == "memory":
            yield "memory:"
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="perdure-bench-"))
            yield f"{scheme}:{Path(folder) / 'perdure'}"


@asynccontextmanager
async def opened(url: str, model: Model) -> AsyncIterator[Bench]:
    store = await perdure.open_store(url)
    bench = Bench(store, model)
    yield bench
    await bench.engine.aclose()
    await store.close()


@asynccontextmanager
async def bench(model: Model, scheme: str = "sqlite") -> AsyncIterator[Bench]:
    async with empty(scheme) as url, opened(url, model) as bench:
        yield bench


async def read(submitted: perdure.SubmittedTurn) -> int:
    """Read a turn to its end; return how many bytes it was."""
    size = 0
    async for line in submitted.lines():
        size += len(line)
    return size


async def until_token(lines: AsyncIterator[bytes]) -> float:
    """Read to the end; return when TOKEN came, as `perf_counter` says it."""
    came_s = 0.0
    async for line in lines:
        if not came_s and TOKEN.encode() in line:
            came_s = time.perf_counter()
    return came_s
