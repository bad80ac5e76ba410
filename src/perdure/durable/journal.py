"""The journal of a turn: frames are numbered, persisted, and only then shown to readers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from perdure.core.changes import AppendFrames, Change, Restart
from perdure.core.effects import monotonic_ms
from perdure.core.frames import (
    DELTA_CHARS_MAX,
    DELTA_KINDS,
    MARK_KINDS,
    Frame,
    RowBuilder,
    encoded_event,
    is_waited_event,
    is_waited_for,
    piece_count,
)
from perdure.core.jsonvalue import encode_value
from perdure.core.limits import (
    FLUSH_BYTES,
    FLUSH_FRAMES,
    FRAME_BYTES_MAX,
    TURN_LOG_BYTES_MAX,
    UNFLUSHED_BYTES_MAX,
)
from perdure.core.records import JsonValue, Written
from perdure.durable.attempt import Attempt
from perdure.durable.ring import Ring
from perdure.durable.ticks import ticks_here
from perdure.durable.untorn import finish_even_if_cancelled
from perdure.errors import (
    LeaseLostError,
    NotSerializableError,
    PerdureError,
    ValueTooLargeError,
)

logger = logging.getLogger("perdure.journal")

_ROW_BYTES: Final = 128 * 1024
"""A row of this length is full; with one more piece it is still within the limit of a frame."""


class Journal:
    """Writes the frames of one attempt, in order and without a gap.

    One write of frames is in flight at a time; a flush takes everything that waits. Frames linger
    10 to 20 ms, so that tokens share a commit; what a reader waits for (the first content, tool
    boundaries, the end) is flushed at once. `on_published` is called with frames that are
    persisted, in order.
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
        self.log_bytes = 0
        """How much a reader who comes now gets from the store; a turn may have 8 MiB."""
        self.written_ms = monotonic_ms()
        """When the store last answered a write of frames."""
        self.element_text = ""
        """How the last frame that is no delta is stored."""
        self._attempt = attempt
        self._next_seq = next_seq
        self._on_published = on_published
        self._pending: list[Frame] = []
        self._sizes: list[int] = []
        self._rows: list[RowBuilder] = []
        self._full_bytes = self._pending_bytes = 0
        self._restart_seq: int | None = None
        self._unshown: tuple[list[Frame], list[int]] = ([], [])
        self._ticks = ticks_here()
        self._tick = 0
        """The number of the tick that is waited for; 0: none."""
        self._flushing: asyncio.Task[None] | None = None
        self._door = asyncio.Lock()
        self._room: asyncio.Future[None] | None = None
        self._has_content = False
        self._is_urgent = False
        """Something waits that a reader waits for."""
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

    def append(self, frame: Frame) -> Sequence[Frame]:
        """Number a producer's frame and let it be flushed soon; return the frames it became.

        A delta without a part joins the part that is being written. Raises NotSerializableError,
        and ValueTooLargeError for a frame over 256 KiB or a turn over 8 MiB; what was appended
        before is kept.
        """
        numbered: Sequence[Frame]
        if frame.kind == "event" and len(frame.data) == 1:
            self.append_event(frame.data["event"])
            return self._pending[-1:]
        if frame.kind in DELTA_KINDS:
            numbered = self._append_delta(frame)
            is_urgent, self._has_content = not self._has_content, True
        else:
            numbered = (self._append_element(frame),)
            is_urgent = is_waited_for(frame)
        self._appended(is_urgent=is_urgent)
        return numbered

    def append_event(self, event: Mapping[str, JsonValue]) -> str:
        """Append the frame of an event as `append` does; return the event as it is stored."""
        data = encoded_event(event)
        text = data.text
        self._part = None
        row = self._row(len(text))
        row.add_event(text)
        self._number(row, "event", data, len(text))
        is_token = not is_waited_event(event)
        self._appended(is_urgent=not (is_token and self._has_content))
        self._has_content |= is_token
        return text

    def _appended(self, *, is_urgent: bool) -> None:
        if self.log_bytes + self._pending_bytes > TURN_LOG_BYTES_MAX:
            raise ValueTooLargeError(f"the turn's frames are over {TURN_LOG_BYTES_MAX} bytes")
        if is_urgent:
            self._is_urgent = True
        if self._flushing is None:  # A flush looks for itself what came in meanwhile.
            self._schedule()

    def resume_part(self, frame: Frame) -> None:
        """Let deltas without a part go on in that of `frame`, the last one of another attempt."""
        if frame.kind in DELTA_KINDS:
            self._part = (frame.kind, frame.data["part"])

    async def room(self) -> None:
        """Wait until the store has caught up: the only thing that holds a producer back."""
        while self.is_full:
            self._flush_now()
            self._room = self._ticks.loop.create_future()
            await self._room
            self._attempt.check()

    async def write(self, *changes: Change) -> Written:
        """Write everything that is pending, and `changes` behind it, in one transaction."""
        return await finish_even_if_cancelled(self._write(changes))

    async def leave(self, *changes: Change, last: Frame | None = None) -> None:
        """Write the last changes of the attempt behind everything that is pending.

        `last` is the frame that ends the turn; it is written however full the log is, and readers
        see it when `show_last` is called.
        """
        await finish_even_if_cancelled(self._leave(changes, last))

    async def doze(self, *changes: Change) -> Written:
        """Write everything that is pending and `changes`, the last of which begins a sleep.

        What is appended meanwhile wakes the attempt, as the end does.
        """
        return await finish_even_if_cancelled(self._doze(changes))

    async def awake(self) -> None:
        """Return once the attempt has its lease. Raises LeaseLostError: others go on."""
        if self._attempt.is_asleep:
            try:
                await finish_even_if_cancelled(self._attempt.wake())
            except PerdureError as error:
                self._attempt.held.lose()
                raise LeaseLostError(f"the turn went on without this process: {error}") from error

    def show_last(self) -> None:
        """Show readers the frame that ends the turn, if there is one."""
        (frames, sizes), self._unshown = self._unshown, ([], [])
        self._publish(frames, sizes)

    def begin_again(self, kept: Sequence[Frame], *, reason: str, discarded_from: str) -> None:
        """Append that readers forget everything of the turn but the `kept` frames.

        It takes effect with the next write, in one unit; nothing else may be pending.
        """
        assert not self._pending, "a restart is the first thing that an attempt writes"
        restarted = {
            "attempt": self._attempt.lease.epoch,
            "reason": reason,
            "from": discarded_from,
            "kept": sum(piece_count(frame) for frame in kept),
        }
        self.log_bytes = 0
        self._restart_seq = self._next_seq
        for frame in (Frame(0, 0, "restarted", restarted), *kept):
            if frame.kind in DELTA_KINDS:
                self._append_delta(frame)
            else:
                self._append_element(frame)
        self._part = None

    async def _write(self, changes: Sequence[Change]) -> Written:
        async with self._door:
            await self.awake()
            frames, sizes, rows = self._take()
            try:
                written = await self._attempt.write(*rows, *changes)
            except Exception:
                if rows:
                    # Nothing may be written behind frames that are missing.
                    self._attempt.held.lose()
                raise
        self.written_ms = monotonic_ms()
        self._publish(frames, sizes)
        return written

    async def _leave(self, changes: Sequence[Change], last: Frame | None) -> None:
        self._tick = 0
        async with self._door:
            await self.awake()
            if last is not None:
                self._append_element(last)
            frames, sizes, rows = self._take()
            await self._attempt.leave(*rows, *changes)
        shown = len(frames) - (last is not None)
        self._unshown = (frames[shown:], sizes[shown:])
        self._publish(frames[:shown], sizes[:shown])

    async def _doze(self, changes: Sequence[Change]) -> Written:
        self._tick = 0
        async with self._door:
            await self.awake()
            frames, sizes, rows = self._take()
            try:
                written = await self._attempt.doze(*rows, *changes)
            except Exception:
                self._attempt.held.lose()
                raise
        self._publish(frames, sizes)
        return written

    # Numbering.

    def _append_delta(self, frame: Frame) -> Sequence[Frame]:
        kind, delta, part = frame.kind, frame.data["delta"], frame.data["part"]
        if type(delta) is not str or not (part is None or type(part) is str):
            raise NotSerializableError(f"the delta and part of a {kind} frame must be str")
        if part is None:
            part = self._joined_part(kind)
        if 0 < len(delta) <= DELTA_CHARS_MAX:
            return (self._number_delta(kind, part, delta),)
        if self.log_bytes + self._pending_bytes + len(delta) > TURN_LOG_BYTES_MAX:
            # Before it is cut: nothing of it is stored.
            raise ValueTooLargeError(f"the turn's frames are over {TURN_LOG_BYTES_MAX} bytes")
        # None of an empty one.
        cuts = range(0, len(delta), DELTA_CHARS_MAX)
        return [self._number_delta(kind, part, delta[i : i + DELTA_CHARS_MAX]) for i in cuts]

    def _number_delta(self, kind: str, part: str, delta: str) -> Frame:
        row = self._row()
        row.add_delta(kind, part, delta)
        return self._number(row, kind, {"part": part, "delta": delta}, len(delta))

    def _joined_part(self, kind: str) -> str:
        """A part is named after the seq of its first frame: unique over all attempts."""
        if self._part is None or self._part[0] != kind:
            self._part = (kind, f"p{self._next_seq}")
        return self._part[1]

    def _append_element(self, frame: Frame) -> Frame:
        kind, data = frame.kind, frame.data
        text = encode_value({"k": kind, **data}, name=f"{kind} frame", bytes_max=FRAME_BYTES_MAX)
        self.element_text = text
        if kind not in MARK_KINDS:
            self._part = None
        row = self._row(len(text))
        row.add_element(text)
        return self._number(row, kind, data, len(text))

    def _number(
        self, row: RowBuilder, kind: str, data: Mapping[str, JsonValue], size_bytes: int
    ) -> Frame:
        self._pending_bytes = self._full_bytes + row.size_bytes
        numbered = Frame(self._next_seq, self._attempt.lease.epoch, kind, data)
        self._next_seq += 1
        self._pending.append(numbered)
        self._sizes.append(size_bytes)
        return numbered

    def _row(self, size_bytes: int = 0) -> RowBuilder:
        """Return the row for what comes next; one element may fill a row alone."""
        rows = self._rows
        if not rows:
            rows.append(RowBuilder(self._next_seq))
        elif rows[-1].size_bytes >= _ROW_BYTES or size_bytes > _ROW_BYTES:
            self._full_bytes += rows[-1].size_bytes
            rows.append(RowBuilder(self._next_seq))
        return rows[-1]

    # Flushing.

    def _schedule(self) -> None:
        if self._is_pressing():
            self._flush_now()
        elif not self._tick:
            self._tick = self._ticks.after_next(self._flush_at)

    def _flush_at(self, tick: int) -> None:
        # One that a flush came before is waited for no more.
        if tick == self._tick:
            self._flush_now()

    def _flush_now(self) -> None:
        self._tick = 0
        if self._flushing is None:
            self._flushing = self._ticks.loop.create_task(self._flush())

    async def _flush(self) -> None:
        try:
            if self._is_urgent:
                # What is appended in the same breath goes along, and an end takes everything along.
                await asyncio.sleep(0)
            while self._pending and not self._is_done:
                # This task is the journal's own: there is no caller who could be cancelled.
                await self._write(())
                if not self._is_pressing():
                    break
        except LeaseLostError:
            logger.debug("frames of a turn came too late: its lease is lost")
        except Exception:
            logger.exception("frames of a turn could not be written: this attempt is given up")
        finally:
            self._flushing = None
            self._make_room()
            if self._pending and not self._tick and not self._is_done:
                self._tick = self._ticks.after_next(self._flush_at)

    @property
    def _is_done(self) -> bool:
        return self._attempt.is_over and not self._attempt.is_asleep

    def _is_pressing(self) -> bool:
        """Whether what waits should not linger."""
        return (
            self._is_urgent
            or len(self._pending) >= FLUSH_FRAMES
            or self._pending_bytes >= FLUSH_BYTES
        )

    def _take(self) -> tuple[list[Frame], list[int], list[AppendFrames | Restart]]:
        frames, self._pending = self._pending, []
        epoch = self._attempt.lease.epoch
        if frames and frames[0].epoch != epoch:
            # Appended while the attempt slept; a cursor names the epoch that wrote the frame.
            frames = [frame._replace(epoch=epoch) for frame in frames]
        sizes, self._sizes = self._sizes, []
        builders, self._rows = self._rows, []
        self._full_bytes = self._pending_bytes = 0
        self._is_urgent = False
        self._make_room()
        rows: list[AppendFrames | Restart] = []
        for row in builders:
            kind = Restart if row.first_seq == self._restart_seq else AppendFrames
            rows.append(kind(row.first_seq, row.last_seq, row.body()))
            self.log_bytes += row.size_bytes
        return frames, sizes, rows

    def _make_room(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def _publish(self, frames: Sequence[Frame], sizes: Sequence[int]) -> None:
        if not frames:
            return
        self.ring.publish(frames, sizes)
        if self._on_published is not None:
            self._on_published(frames)


def stored_bytes(frames: Iterable[Frame]) -> int:
    """Return about how much `frames` take up in the store."""
    return sum(
        len(frame.data["delta"]) + 3 if frame.kind in DELTA_KINDS else len(str(frame.data))
        for frame in frames
    )
