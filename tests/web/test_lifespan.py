"""The lifespan of applications with endpoints of their own: a signal begins the drain."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest

from perdure.core.frames import text, upstream_end
from perdure.errors import StoreUnavailableError
from perdure.store.memory import MemoryStore
from perdure.turn.engine import ChatTurnEngine
from perdure.web.lifespan import lifespan_of
from tests.turn.stage import TURN, Script

PATIENCE_S = 20


@pytest.fixture(autouse=True)
def outlived() -> Iterator[None]:
    """Let this process outlive the signal, as under a server that handles it."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


class Live:
    """An engine with a turn that waits to be let through."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.store = MemoryStore()
        script = Script([text("Hello"), self.go_on, text(" there"), upstream_end("stop")])
        self.engine = ChatTurnEngine(self.store, produce=script)

    async def read(self) -> bytes:
        submitted = await self.engine.submit(TURN, "Hi")
        return b"".join([line async for line in submitted.lines()])

    async def state(self) -> tuple[str, bool]:
        [run] = await self.store.list_runs()
        return run.state, run.lease_holder_id is None


async def begun(live: Live) -> asyncio.Task[bytes]:
    """Return a reader of a turn that has said something."""
    submitted = await live.engine.submit(TURN, "Hi")
    async for line in submitted.lines():
        if b"Hello" in line:
            break
    return asyncio.create_task(live.read())


async def test_a_signal_lets_turns_finish_with_their_readers() -> None:
    live = Live()
    async with asyncio.timeout(PATIENCE_S), lifespan_of(live.engine)(None):
        reading = await begun(live)
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(0)
        live.go_on.set()
        assert b"session.run.completed" in await reading
    assert await live.state() == ("completed", True)


async def test_readers_of_turns_that_take_too_long_are_cut_before_the_lifespan_ends() -> None:
    live = Live()
    async with asyncio.timeout(PATIENCE_S), lifespan_of(live.engine, drain_ms=20)(None):
        reading = await begun(live)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StoreUnavailableError):
            await reading
        assert await live.state() == ("running", True)


async def test_a_second_signal_ends_the_drain() -> None:
    live = Live()
    async with asyncio.timeout(PATIENCE_S), lifespan_of(live.engine, drain_ms=600_000)(None):
        reading = await begun(live)
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StoreUnavailableError):
            await reading
    assert await live.state() == ("running", True)


async def test_without_a_signal_the_end_of_the_lifespan_drains() -> None:
    live = Live()
    async with asyncio.timeout(PATIENCE_S):
        async with lifespan_of(live.engine, drain_ms=20)(None):
            reading = await begun(live)
        with pytest.raises(StoreUnavailableError):
            await reading
    assert await live.state() == ("running", True)
