"""Producers that are ordinary generators: each turn is answered in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator
from queue import SimpleQueue
from typing import Any, Final

from perdure.core.frames import Frame
from perdure.turn.handout import Turn

_END: Final = object()


def in_thread(
    produce: Callable[[Turn], Generator[Frame, None, None]],
) -> Callable[[Turn], AsyncIterator[Frame]]:
    """Return the producer that runs the generator function `produce` beside the event loop.

    The generator may block, in a client of a model, say. A stop or a drain does not wait for the
    item that it is working on; it is closed behind that. It cannot `await`, so `turn.step` and
    `turn.stream` are not for it.
    """

    async def answer(turn: Turn) -> AsyncIterator[Frame]:
        pulls: SimpleQueue[asyncio.Future[Any] | None] = SimpleQueue()
        loop = asyncio.get_running_loop()
        # Not one of an executor: those take no more work as soon as the interpreter ends.
        thread = threading.Thread(
            target=_work, args=(produce(turn), pulls, loop), name="perdure-turn", daemon=True
        )
        thread.start()
        try:
            while True:
                pull: asyncio.Future[Any] = loop.create_future()
                pulls.put(pull)
                item = await pull
                if item is _END:
                    return
                yield item
        finally:
            pulls.put(None)

    return answer


def _work(
    frames: Generator[Frame, None, None],
    pulls: SimpleQueue[asyncio.Future[Any] | None],
    loop: asyncio.AbstractEventLoop,
) -> None:
    while (pull := pulls.get()) is not None:
        item, error = None, None
        try:
            item = next(frames, _END)
        except BaseException as raised:
            error = raised
        loop.call_soon_threadsafe(_settle, pull, item, error)
    frames.close()


def _settle(pull: asyncio.Future[Any], item: object, error: BaseException | None) -> None:
    if pull.done():
        return
    if error is None:
        pull.set_result(item)
    else:
        pull.set_exception(error)
