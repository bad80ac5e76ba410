"""Restate: handlers that its server calls over HTTP/2; it keeps its log itself, in its own files.

`place` is the server's ingress and admin address, with a blank between them.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import restate
from hypercorn.asyncio import serve
from hypercorn.config import Config

from bench.sides.asked import AT_ONCE, WARM_STEPS, Answer, Asked, answer, many, result

service = restate.Service("bench")
lengths_s: list[float] = []
replayed = asyncio.Event()
PATIENCE = 200
"""So often the server is told where the handlers are, until they answer it."""


async def small(index: int) -> dict[str, Any]:
    return result(index)


@service.handler()
async def loop(context: restate.Context, count: int) -> int:
    began = time.perf_counter()
    for index in range(count):
        await context.run_typed("small", small, index=index)
    lengths_s.append(time.perf_counter() - began)
    return count


@service.handler()
async def broken(context: restate.Context, count: int) -> int:
    """Do all steps, and break off behind them the first time."""
    await loop(context, count)
    if len(lengths_s) < 2:
        raise RuntimeError("not done yet")
    replayed.set()
    return count


class Server:
    """The server, which calls the handlers of this process."""

    def __init__(self, ingress: str, client: httpx.AsyncClient) -> None:
        self._ingress = ingress
        self._client = client

    async def call(self, handler: str, count: int) -> None:
        response = await self._client.post(f"{self._ingress}/bench/{handler}", json=count)
        response.raise_for_status()


@asynccontextmanager
async def opened(asked: Asked) -> AsyncIterator[Server]:
    ingress, admin = asked.place.split()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = Config()
    config.bind = [address]
    config.loglevel = "CRITICAL"
    over = asyncio.Event()
    app: Any = restate.app([service])
    serving = asyncio.create_task(serve(app, config, shutdown_trigger=over.wait))
    limits = httpx.Limits(max_connections=2 * AT_ONCE)
    async with httpx.AsyncClient(timeout=300, limits=limits) as client:
        known = {"uri": f"http://{address}", "force": True}
        for _ in range(PATIENCE):
            if (await client.post(f"{admin}/deployments", json=known)).is_success:
                break
            await asyncio.sleep(0.05)
        server = Server(ingress, client)
        await server.call("loop", WARM_STEPS)
        lengths_s.clear()
        yield server
    over.set()
    await serving


async def steps(asked: Asked) -> Answer:
    async with opened(asked) as server:
        cpu = time.process_time()
        await server.call("loop", asked.size)
        cpu = time.process_time() - cpu
    each = 1e6 / asked.size
    return {"value": lengths_s[-1] * each, "cpu_us": cpu * each}


async def runs(asked: Asked) -> Answer:
    async with opened(asked) as server:
        return await many(lambda _: server.call("loop", 3), asked.size)


async def resume(asked: Asked) -> Answer:
    """The first attempt does the steps; the next one only replays them."""
    async with opened(asked) as server:
        calling = asyncio.create_task(server.call("broken", asked.size))
        await replayed.wait()
        await calling
        return {"value": lengths_s[1] * 1e3}


if __name__ == "__main__":
    answer({"steps": steps, "runs": runs, "resume": resume})
