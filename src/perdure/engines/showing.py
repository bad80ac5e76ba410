"""Frames that come from within another engine's loop, yielded by a turn's producer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

from perdure.core.frames import Frame


class Showing:
    """Lets work in asyncio tasks of its own yield frames through whoever drives it.

    `show` returns when the frame has been taken and the next one is asked for: what a turn's
    producer yields is in the journal by then, so a step that shows its last frame and ends is
    recorded behind it.
    """

    def __init__(self) -> None:
        self._shown: asyncio.Queue[tuple[Frame, asyncio.Future[None]] | None] = asyncio.Queue()
        self._waiting: set[asyncio.Future[None]] = set()

    async def show(self, frame: Frame) -> None:
        """Have a frame yielded, and wait until it was."""
        taken = asyncio.get_running_loop().create_future()
        self._waiting.add(taken)
        taken.add_done_callback(self._waiting.discard)
        self._shown.put_nowait((frame, taken))
        await taken

    async def frames(self, work: Coroutine[Any, Any, object]) -> AsyncGenerator[Frame, None]:
        """Run the work in a task of its own, and yield what is shown until it ends.

        Raises what the work raises. Closing this cancels the work, and waits for it; who still
        shows something then is cancelled too.
        """
        task = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._shown.put_nowait(None))
        try:
            while (shown := await self._shown.get()) is not None:
                frame, taken = shown
                if taken.done():
                    continue  # Whoever showed it was cancelled.
                yield frame
                if not taken.done():
                    taken.set_result(None)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
            for taken in [*self._waiting]:
                taken.cancel()
        await task
