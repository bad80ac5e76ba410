"""Ordinary generators as producers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from typing import Any

import pytest

from perdure.core.frames import Frame, text
from perdure.sync import in_thread
from tests.turn.stage import until

ANY_TURN: Any = None


async def test_frames_come_in_order_from_a_thread_of_their_own() -> None:
    threads: set[str] = set()

    def produce(_: Any) -> Generator[Frame, None, None]:
        for word in "abc":
            threads.add(threading.current_thread().name)
            yield text(word)

    produced = [frame async for frame in in_thread(produce)(ANY_TURN)]
    assert produced == [text(word) for word in "abc"]
    assert threads == {"perdure-turn"}


async def test_what_the_generator_raises_is_raised() -> None:
    def produce(_: Any) -> Generator[Frame, None, None]:
        yield text("a")
        raise KeyError("culprit")

    frames = in_thread(produce)(ANY_TURN)
    assert await anext(frames) == text("a")
    with pytest.raises(KeyError, match="culprit"):
        await anext(frames)


async def test_a_generator_that_blocks_does_not_block_the_loop_and_is_closed_in_the_end() -> None:
    go_on, closed = threading.Event(), threading.Event()

    def produce(_: Any) -> Generator[Frame, None, None]:
        try:
            yield text("a")
            assert go_on.wait(20)
            yield text("b")
        finally:
            closed.set()

    frames: Any = in_thread(produce)(ANY_TURN)
    await anext(frames)
    pulling = asyncio.create_task(anext(frames))
    for _ in range(3):
        await asyncio.sleep(0)
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    assert not closed.is_set()
    go_on.set()
    await until(closed.is_set)
