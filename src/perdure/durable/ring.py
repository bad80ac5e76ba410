"""The ring of a live turn: its newest persisted frames, for readers in this process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Final

from perdure.core.frames import Frame
from perdure.core.limits import READERS_MAX, RING_BYTES
from perdure.durable.alarm import Alarm
from perdure.errors import TooManyReadersError

FRAME_WEIGHT_BYTES: Final = 384
"""What a frame costs in memory beside its content: without it a ring of tokens would be huge."""


class Ring:
    """The newest persisted frames of one live turn.

    A reader keeps a cursor, not a queue: a slow one costs nothing, and one that fell behind the
    ring reads the store.
    """

    def __init__(self, next_seq: int) -> None:
        self.closed = False
        """Nobody here writes to the turn any more: whoever follows it reads the store."""
        self.readers = 0
        self._first_seq = next_seq
        self._frames: deque[Frame] = deque()
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self.waiting: set[asyncio.Future[bool]] = set()
        """What becomes true at the next news."""

    @property
    def last_seq(self) -> int:
        return self._first_seq + len(self._frames) - 1

    def reaches(self, after: int) -> bool:
        """Return whether the ring has all frames behind the seq `after`."""
        return after + 1 >= self._first_seq

    def since(self, after: int) -> list[Frame]:
        """Return the frames behind the seq `after`, which the ring reaches."""
        newest = list(islice(reversed(self._frames), max(0, self.last_seq - after)))
        newest.reverse()
        return newest

    def publish(self, frames: Sequence[Frame], sizes: Sequence[int]) -> None:
        """Show persisted frames to readers; `sizes` says how many bytes each of them holds."""
        self._frames.extend(frames)
        self._sizes.extend(sizes)
        self._bytes += sum(sizes) + FRAME_WEIGHT_BYTES * len(frames)
        self._wake()
        if self._bytes > RING_BYTES:
            # Behind the readers that were just woken: they get the whole batch, however large.
            asyncio.get_running_loop().call_soon(self._trim)

    async def news(self) -> None:
        """Return when something more is published, or nothing more will be."""
        news: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.waiting.add(news)
        try:
            await news
        finally:
            self.waiting.discard(news)

    def close(self) -> None:
        """Say that nothing more will be published here."""
        self.closed = True
        self._wake()

    def check_room(self) -> None:
        """Raise TooManyReadersError if no further reader may enter."""
        if self.readers >= READERS_MAX:
            raise TooManyReadersError(f"this turn has {READERS_MAX} readers in this process")

    def enter(self) -> None:
        """Count a reader in. Raises TooManyReadersError."""
        self.check_room()
        self.readers += 1

    def leave(self) -> None:
        """Count a reader out."""
        self.readers -= 1

    def _trim(self) -> None:
        frames, sizes = self._frames, self._sizes
        over_bytes, count = self._bytes - RING_BYTES, len(frames)
        while over_bytes > 0 and len(frames) > 1:
            frames.popleft()
            over_bytes -= sizes.popleft() + FRAME_WEIGHT_BYTES
        self._bytes = RING_BYTES + over_bytes
        self._first_seq += count - len(frames)

    def _wake(self) -> None:
        waiting, self.waiting = self.waiting, set()
        for news in waiting:
            if not news.done():
                news.set_result(True)


class Listener:
    """Waits for one reader, who comes for every token, with one timer for all of his waits."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Future[bool] | None = None
        self._alarm = Alarm(self._give_up)

    async def wait(self, ring: Ring, timeout_ms: float) -> bool:
        """Wait for news of the ring; False when none came in time."""
        news: asyncio.Future[bool] = self._loop.create_future()
        self._news = news
        self._alarm.set(timeout_ms)
        ring.waiting.add(news)
        try:
            return await news
        finally:
            self._alarm.clear()
            ring.waiting.discard(news)

    def close(self) -> None:
        """Leave no timer behind."""
        self._alarm.close()

    def _give_up(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(False)
