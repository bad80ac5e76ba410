"""A lifespan for applications with endpoints of their own, under whatever server they run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

from perdure.core.limits import DRAIN_MS
from perdure.durable.signals import hearing_signals
from perdure.turn.engine import ChatTurnEngine


def lifespan_of(
    engine: ChatTurnEngine, *, drain_ms: int = DRAIN_MS
) -> Callable[[object], AbstractAsyncContextManager[None]]:
    """Return a lifespan for Starlette, FastAPI or any framework that takes one.

    It looks for turns that nobody works on. A signal to stop begins the drain: turns go on for
    `drain_ms` and their readers with them; then they are given back and their readers are cut. A
    server that waits for open responses before it ends the lifespan, as most do, waits no longer
    than that. A second signal ends the drain. `create_app` and `chat_router` have a lifespan of
    their own, which cuts streams at once.
    """

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncGenerator[None, None]:
        loop = asyncio.get_running_loop()
        drains: list[asyncio.Task[None]] = []

        def drain(length_ms: int) -> None:
            drains.append(loop.create_task(engine.aclose(drain_ms=length_ms)))

        engine.start()

        def told(length_ms: int) -> None:
            loop.call_soon_threadsafe(drain, length_ms)

        with hearing_signals(partial(told, drain_ms), partial(told, 0)):
            try:
                yield
            finally:
                if not drains:
                    drain(drain_ms)
                await asyncio.gather(*drains)

    return lifespan
