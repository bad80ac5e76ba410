"""The journal of a turn: frames are numbered, persisted, and only then shown to readers."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

from perdure.core.changes import AppendFrames, Change, Restart
from perdure.core.effects import jittered
from perdure.core.frames import DELTA_KINDS, URGENT_KINDS, Frame, RowBuilder
from perdure.core.jsonvalue import encode_value
from perdure.core.limits import (
    FLUSH_BYTES,
    FLUSH_FRAMES,
    FRAME_BYTES_MAX,
    FRAMES_ROW_BYTES_MAX,
    LINGER_MS,
    READERS_MAX,
    RING_BYTES,
    TURN_LOG_BYTES_MAX,
    UNFLUSHED_BYTES_MAX,
)
from perdure.core.records import JsonValue, Written
from perdure.durable.attempt import RETRY_MAX_MS, RETRY_MS, Attempt
from perdure.errors import (
    LeaseLostError,
    NotSerializableError,
    StoreError,
    TooManyReadersError,
    ValueTooLargeError,
)

logger = logging.getLogger("perdure.journal")

T = TypeVar("T")

_DELTA_CHARS_MAX: Final = 16 * 1024
"""A longer delta is cut: six bytes a character at worst still fit into a frame."""


class Ring:
    """The newest persisted frames of one live turn, for its readers in this process.

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
        self._news = asyncio.Event()

    @property
    def last_seq(self) -> int:
        return self._first_seq + len(self._frames) - 1

    def reaches(self, after: int) -> bool:
        """Return whether the ring has all frames behind the seq `after`."""
        return after + 1 >= self._first_seq

    def since(self, after: int) -> list[Frame]:
        """Return the frames behind the seq `after`, which the ring reaches."""
        return list(islice(self._frames, max(0, after + 1 - self._first_seq), None))

    def publish(self, frames: Sequence[Frame]) -> None:
        """Show persisted frames to readers."""
        for frame in frames:
            size = len(frame.data["delta"]) if frame.kind in DELTA_KINDS else 1_024
            self._frames.append(frame)
            self._sizes.append(size)
            self._bytes += size
        while self._bytes > RING_BYTES and len(self._frames) > 1:
            self._frames.popleft()
            self._bytes -= self._sizes.popleft()
            self._first_seq += 1
        self._wake()

    def close(self) -> None:
        """Say that nothing more will be published here."""
        self.closed = True
        self._wake()

    async def wait(self, timeout_ms: float) -> bool:
        """Wait for news; False when none came in time."""
        try:
            async with asyncio.timeout(timeout_ms / 1_000):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    def enter(self) -> None:
        """Count a reader in. Raises TooManyReadersError."""
        if self.readers >= READERS_MAX:
            raise TooManyReadersError(f"this turn has {READERS_MAX} readers in this process")
        self.readers += 1

    def leave(self) -> None:
        """Count a reader out."""
        self.readers -= 1

    def _wake(self) -> None:
        self._news.set()
        self._news.clear()


class Journal:
    """Writes the frames of one attempt at a turn, in order and without a gap.

    One write is in flight at a time; a flush takes everything that waits. Frames linger 20 ms,
    so that tokens share a commit; what a reader waits for (the first content, tool boundaries,
    the end) is flushed at once. `on_published` is called with frames that are persisted.
    """

    def __init__(
        self,
        attempt: Attempt,
        ring: Ring,
        *,
        next_seq: int,
        on_published: Callable[[Sequence[Frame]], None] | None = None,
    ) -> None:
        self.ring = ring
        self._attempt = attempt
        self._next_seq = next_seq
        self.log_bytes = 0
        """How much the turn has in the store, earlier attempts included."""
        self._on_published = on_published
        self._pending: list[Frame] = []
        self._rows: list[RowBuilder] = []
        self._pending_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._door = asyncio.Lock()
        self._room = asyncio.Event()
        self._has_content = False
        self._part: tuple[str, str] | None = None

    @property
    def last_seq(self) -> int:
        """The seq of the last frame that was appended, flushed or not."""
        return self._next_seq - 1

    @property
    def is_full(self) -> bool:
        """Whether the producer has to wait (`room`) until the store has caught up."""
        return self._pending_bytes > UNFLUSHED_BYTES_MAX

    @property
    def is_over(self) -> bool:
        """Whether the attempt has written its last changes."""
        return self._attempt.is_over

    def append(self, frame: Frame) -> list[Frame]:
        """Number a producer's frame and let it be flushed soon; return the frames it became.

        A delta without a part joins the part that is being written. Raises NotSerializableError,
        and ValueTooLargeError for a frame over 256 KiB or a turn over 8 MiB.
        """
        if frame.kind in DELTA_KINDS:
            numbered = self._append_delta(frame)
        else:
            self._part = None
            numbered = [self._append_element(frame)]
        if self.log_bytes + self._pending_bytes > TURN_LOG_BYTES_MAX:
            raise ValueTooLargeError(f"the turn's frames are over {TURN_LOG_BYTES_MAX} bytes")
        self._schedule(frame.kind)
        return numbered

    async def room(self) -> None:
        """Wait until the store has caught up: the only thing that holds a producer back."""
        while self.is_full:
            self._flush_now()
            self._room.clear()
            await self._room.wait()
            self._attempt.check()

    async def write(self, *changes: Change) -> Written:
        """Write everything that is pending, and `changes` behind it, in one transaction."""
        return await finish_even_if_cancelled(self._write(changes))

    async def leave(self, *changes: Change, last: Frame | None = None) -> list[Frame]:
        """Write the last changes of the attempt behind everything that is pending.

        `last` is the frame that ends the turn; it is written however full the log is. Returns
        the frames that are persisted now and not yet published: when readers see the end is the
        caller's to decide.
        """
        self._cancel_timer()
        async with self._door:
            if last is not None:
                self._append_element(last)
            frames, rows = self._take()
            await self._attempt.leave(*rows, *changes)
        return frames

    async def restart(
        self,
        kept: Sequence[Frame],
        *changes: Change,
        reason: str,
        discarded_from: str,
    ) -> None:
        """Write, in one unit, that readers forget everything but the `kept` frames."""
        assert not self._pending, "a restart is the first thing that an attempt writes"
        restarted = {
            "attempt": self._attempt.lease.epoch,
            "reason": reason,
            "from": discarded_from,
            "kept": sum(len(_pieces(frame)) for frame in kept),
        }
        for frame in (Frame(0, 0, "restarted", restarted), *kept):
            if frame.kind in DELTA_KINDS:
                self._append_delta(frame)
            else:
                self._append_element(frame)
        self._part = None
        async with self._door:
            frames, rows = self._take()
            first, *rest = rows
            restart = Restart(first.first_seq, first.last_seq, first.body)
            await self._attempt.write(restart, *rest, *changes)
        self._publish(frames)

    async def _write(self, changes: Sequence[Change]) -> Written:
        async with self._door:
            frames, rows = self._take()
            written = await self._persist(*rows, *changes)
        self._publish(frames)
        return written

    async def _persist(self, *changes: Change) -> Written:
        """Write, and keep trying while the store cannot and the lease may still hold.

        Frames that were taken must not be lost to a busy moment; a repeated row is no harm.
        """
        pause_ms = RETRY_MS
        while True:
            try:
                return await self._attempt.write(*changes)
            except StoreError as error:
                if not error.retryable:
                    raise
                logger.warning("the frames of a turn wait for the store: %s", error)
            await asyncio.sleep(jittered(pause_ms) / 1_000)
            pause_ms = min(2 * pause_ms, RETRY_MAX_MS)

    # Numbering.

    def _append_delta(self, frame: Frame) -> list[Frame]:
        kind, delta, part = frame.kind, frame.data["delta"], frame.data["part"]
        if type(delta) is not str or not (part is None or type(part) is str):
            raise NotSerializableError(f"the delta and part of a {kind} frame must be str")
        if part is None:
            part = self._joined_part(kind)
        numbered: list[Frame] = []
        for piece in _pieces(frame):
            self._row_for(len(piece)).add_delta(kind, part, piece)
            self._pending_bytes += len(piece) + 3
            numbered.append(self._number(kind, {"part": part, "delta": piece}))
        return numbered

    def _joined_part(self, kind: str) -> str:
        """A part is named after the seq of its first frame: unique over all attempts."""
        if self._part is None or self._part[0] != kind:
            self._part = (kind, f"p{self._next_seq}")
        return self._part[1]

    def _append_element(self, frame: Frame) -> Frame:
        text = encode_value(
            {"k": frame.kind, **frame.data}, name=f"{frame.kind} frame", bytes_max=FRAME_BYTES_MAX
        )
        self._row_for(len(text)).add_element(text)
        self._pending_bytes += len(text)
        return self._number(frame.kind, frame.data)

    def _number(self, kind: str, data: Mapping[str, JsonValue]) -> Frame:
        numbered = Frame(self._next_seq, self._attempt.lease.epoch, kind, data)
        self._next_seq += 1
        self._pending.append(numbered)
        return numbered

    def _row_for(self, size_bytes: int) -> RowBuilder:
        rows = self._rows
        if not rows or (rows[-1].size_bytes + size_bytes > FRAMES_ROW_BYTES_MAX // 2):
            rows.append(RowBuilder(self._next_seq))
        return rows[-1]

    # Flushing.

    def _schedule(self, kind: str) -> None:
        urgent = kind in URGENT_KINDS
        if not self._has_content and kind in DELTA_KINDS:
            self._has_content = urgent = True
        if urgent or self._pending_bytes >= FLUSH_BYTES or len(self._pending) >= FLUSH_FRAMES:
            self._flush_now()
        elif self._timer is None and self._flushing is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LINGER_MS / 1_000, self._flush_now)

    def _flush_now(self) -> None:
        self._cancel_timer()
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().create_task(self._flush())

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _flush(self) -> None:
        try:
            while self._pending and not self._attempt.is_over:
                await self.write()
                if not self._is_pressing():
                    break
        except LeaseLostError:
            self._attempt.held.lose()
        except Exception as error:
            # Frames that were taken cannot be written: this attempt must not go on.
            logger.exception("the frames of a turn could not be written: %s", error)
            self._attempt.held.lose()
        finally:
            self._flushing = None
            self._room.set()
            if self._pending and self._timer is None and not self._attempt.is_over:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(LINGER_MS / 1_000, self._flush_now)

    def _is_pressing(self) -> bool:
        """Whether what came in during a write should not linger."""
        return (
            self._pending_bytes >= FLUSH_BYTES
            or len(self._pending) >= FLUSH_FRAMES
            or any(frame.kind in URGENT_KINDS for frame in self._pending)
        )

    def _take(self) -> tuple[list[Frame], list[AppendFrames]]:
        frames, self._pending = self._pending, []
        builders, self._rows = self._rows, []
        self._pending_bytes = 0
        self._room.set()
        rows = [AppendFrames(row.first_seq, row.last_seq, row.body()) for row in builders]
        self.log_bytes += sum(len(row.body) for row in rows)
        return frames, rows

    def _publish(self, frames: Sequence[Frame]) -> None:
        if not frames:
            return
        self.ring.publish(frames)
        if self._on_published is not None:
            self._on_published(frames)


def _pieces(frame: Frame) -> list[str]:
    """Return the deltas that `frame` is cut into; for a frame of another kind one stand-in."""
    if frame.kind not in DELTA_KINDS:
        return [""]
    delta: str = frame.data["delta"]
    return [delta[i : i + _DELTA_CHARS_MAX] for i in range(0, len(delta), _DELTA_CHARS_MAX)]


async def finish_even_if_cancelled(writing: Coroutine[Any, Any, T]) -> T:
    """Await a write that must not be torn: a caller who is cancelled still waits for its end."""
    task = asyncio.get_running_loop().create_task(writing)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is not None:
            logger.debug("a write failed while its caller was cancelled: %r", task.exception())
        raise
