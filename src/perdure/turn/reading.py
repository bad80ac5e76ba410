"""Reading a turn: from any frame, live or finished, in this process or of another one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from enum import Enum
from typing import Any, Final, Literal, NamedTuple

from perdure.core import identity
from perdure.core.effects import monotonic_ms
from perdure.core.frames import (
    DELTA_KINDS,
    TERMINAL_KINDS,
    EncodedEvent,
    Frame,
    cursor_mark,
    format_cursor,
    parse_cursor,
    part_frame,
)
from perdure.core.jsonvalue import dumps
from perdure.core.limits import BEAT_MS, HEARTBEAT_MS
from perdure.core.records import RunRecord, StepRecord
from perdure.core.transitions import RESTING_STATES, TERMINAL_STATES
from perdure.durable.ring import Listener, Ring
from perdure.errors import CursorError, FramesExpiredError, RunNotFoundError
from perdure.store.protocol import RunStore
from perdure.turn.ending import answer_of, end_frame
from perdure.turn.identity import ChatTurnIdentity, check_identity, identity_of, run_id_of
from perdure.turn.wire import events
from perdure.turn.wire.codecs import Codec
from perdure.turn.wire.events import Addressee, Dialect, Event

Replay = Literal["frames", "result"]

POLL_MS: Final = 1_000
"""Hints of another process may be lost, so a reader looks by himself at least this often."""
ADRIFT_MS: Final = 2 * BEAT_MS
"""A lease that was not renewed for this long has probably lost its holder."""
_PAGE: Final = 1_000


class Reading(NamedTuple):
    """A turn that may be read from a certain place on.

    `after` is the seq of the last frame the reader has; None: it has nothing. `turn` is who the
    events are addressed to. `find_ring` is asked before each step; what it raises ends the
    reading.
    """

    store: RunStore
    run: RunRecord
    turn: ChatTurnIdentity
    after: int | None
    dialect: Dialect
    replay: Replay
    find_ring: Callable[[], Ring | None]
    heartbeat_ms: int = HEARTBEAT_MS

    @property
    def is_over(self) -> bool:
        """Whether the turn had an answer when the reader came."""
        return self.run.state in TERMINAL_STATES


async def known_turn(store: RunStore, turn: ChatTurnIdentity) -> RunRecord:
    """Return the turn's run, if it is there and the caller's.

    Raises RunNotFoundError; one of somebody else looks as if it were not there.
    """
    run = await store.read_run(run_id_of(check_identity(turn)))
    if run is None or run.session_id is None or run.owner_id not in (None, turn.user_id):
        raise RunNotFoundError(f"there is no turn {turn.turn_index} of session {turn.session_id!r}")
    return run


async def open_reading(
    store: RunStore,
    run: RunRecord,
    *,
    after: str | None,
    find_ring: Callable[[], Ring | None],
    turn: ChatTurnIdentity | None = None,
    dialect: Dialect = "perdure",
    replay: Replay = "frames",
) -> Reading:
    """Return the reading of `run` behind the cursor `after`.

    `turn` None: as the run itself knows it, which one of a TypeScript worker does not. Raises
    CursorError (malformed, of another turn, or behind the last frame), FramesExpiredError (the
    frames are no longer kept: read the finished turn instead) and TooManyReadersError.
    """
    seq = None if after is None else await _check_cursor(store, run, after)
    if run.state not in RESTING_STATES and (ring := find_ring()) is not None:
        ring.check_room()
    return Reading(store, run, turn or identity_of(run), seq, dialect, replay, find_ring)


async def _check_cursor(store: RunStore, run: RunRecord, after: str) -> int:
    stored = identity.stored_id(run.tenant, run.run_id)
    epoch, seq = parse_cursor(after, cursor_mark(stored))
    if run.frames_expired_at is not None:
        raise FramesExpiredError("the frames of this turn are no longer kept")
    if seq == 0:
        known = 1
    else:
        frames = await store.read_frames(run.run_id, after=seq - 1, limit=1)
        if not frames:
            raise CursorError(f"the cursor {after!r} lies behind the last frame of the turn")
        known = frames[0].epoch
    if epoch != known:
        raise CursorError(f"the cursor {after!r} names an attempt that has no such frame")
    return seq


async def is_at_end(reading: Reading) -> bool:
    """Return whether the reader has everything of a turn that nobody works on any more."""
    if reading.after is None or reading.run.state not in RESTING_STATES:
        return False
    rest = await reading.store.read_frames(reading.run.run_id, after=reading.after, limit=1)
    return not rest


async def lines(reading: Reading, codec: Codec) -> AsyncGenerator[bytes, None]:
    """Yield the encoded events of a reading, several at a time, with heartbeats in between.

    Ends only behind the turn's end, which for a reader who has everything is at once. Raises
    RunNotFoundError if the turn is deleted meanwhile. Never ends in the middle.
    """
    writer = _Writer(reading, codec)
    if reading.after is None:
        yield writer.started()
        if reading.is_over:
            steps = await reading.store.read_steps(reading.run.run_id)
            yield writer.replay(steps, await _last_frame(reading, steps))
            return
    tail = Tail(reading)
    try:
        async with aclosing(tail.follow()) as batches:
            async for batch in batches:
                if isinstance(batch, Silence):
                    encoded = writer.silence(batch)
                else:
                    encoded = writer.frames(batch)
                if encoded:
                    yield encoded
    finally:
        tail.leave()
    if tail.ended_as is not None and not await tail.has_end():
        steps = await reading.store.read_steps(reading.run.run_id)
        yield writer.ending_of_others(tail.ended_as, steps)


async def _last_frame(reading: Reading, steps: Sequence[StepRecord]) -> Frame | None:
    frames_to = steps[0].frames_to if steps else None
    if frames_to is None:
        return None
    frames = await reading.store.read_frames(reading.run.run_id, after=frames_to - 1, limit=1)
    return frames[-1] if frames else None


class Silence(Enum):
    """What a reader may be told while there is nothing to read."""

    HEARTBEAT = "heartbeat"
    RECOVERING = "recovering"


class Tail:
    """A reader's place in a turn that may still grow."""

    def __init__(self, reading: Reading) -> None:
        self.ended_as: RunRecord | None = None
        """The run, once it was found at rest with nothing behind the reader's place."""
        self._reading = reading
        self._store = reading.store
        self._run_id = reading.run.run_id
        self._after = max(reading.after or 0, reading.run.live_from - 1)
        self._has_shown_end: bool | None = None
        self._entered: Ring | None = None
        self._listener = Listener()
        self._looked_ms = 0.0
        self._lease: str | None = None
        self._renewed_ms = monotonic_ms()
        self._is_adrift = False

    async def follow(self) -> AsyncGenerator[Sequence[Frame] | Silence, None]:
        """Yield persisted frames in order until the turn's end.

        In between: a heartbeat when nothing came for 15 s, and once that nobody works on the turn.
        """
        told_adrift = False
        heartbeat_ms = self._reading.heartbeat_ms
        heard_ms = monotonic_ms()
        while self.ended_as is None:
            patience_ms = max(1.0, heard_ms + heartbeat_ms - monotonic_ms())
            frames = await self._next(patience_ms)
            if frames:
                self._after, heard_ms = frames[-1].seq, monotonic_ms()
                self._is_adrift = told_adrift = False
                if frames[-1].kind in TERMINAL_KINDS:
                    await self._look_for_end(has_end=True)
                shown = [
                    frame
                    for frame in frames
                    if frame.kind not in TERMINAL_KINDS or self._is_shown(frame)
                ]
                self._has_shown_end = bool(shown) and shown[-1].kind in TERMINAL_KINDS
                if shown:
                    yield shown
            elif self._is_adrift and not told_adrift:
                told_adrift = True
                yield Silence.RECOVERING
            elif monotonic_ms() - heard_ms >= heartbeat_ms:
                heard_ms = monotonic_ms()
                yield Silence.HEARTBEAT

    def _is_shown(self, end: Frame) -> bool:
        """An end that a retry has gone on behind is none: whoever believed it would leave."""
        return self.ended_as is not None and end.seq == self._after

    def leave(self) -> None:
        """Count this reader out of the ring that it follows."""
        self._listener.close()
        if self._entered is not None:
            self._entered.leave()
            self._entered = None

    async def has_end(self) -> bool:
        """Return whether the last frame that the reader has is the turn's end.

        Of what was shown here the store is not asked: the turn may be deleted by now.
        """
        if self._has_shown_end is not None:
            return self._has_shown_end
        last = await self._store.read_frames(self._run_id, after=self._after - 1, limit=1)
        return bool(last) and last[0].kind in TERMINAL_KINDS

    async def _next(self, patience_ms: float) -> Sequence[Frame]:
        """Return what stands behind the reader's place, after waiting for it for a while."""
        ring = self._enter(self._reading.find_ring())
        if ring is None or not ring.reaches(self._after):
            return await self._stored(patience_ms)
        frames = ring.since(self._after)
        if frames:
            return frames
        if ring.closed:
            return await self._stored(patience_ms)
        if await self._listener.wait(ring, patience_ms) and ring.reaches(self._after):
            return ring.since(self._after)
        return ()

    def _enter(self, ring: Ring | None) -> Ring | None:
        """Follow the ring of the attempt that goes on here, or that went on here last."""
        if ring is not None and ring is not self._entered:
            ring.enter()
            self.leave()
            self._entered = ring
        return self._entered

    async def _stored(self, patience_ms: float) -> Sequence[Frame]:
        frames = await self._store.read_frames(self._run_id, after=self._after, limit=_PAGE)
        if frames:
            return frames
        if monotonic_ms() - self._looked_ms >= POLL_MS:
            self._looked_ms = monotonic_ms()
            await self._look_for_end()
        if self.ended_as is None:
            # In the reader's own task: a store remembers for each what it has been told of.
            timeout_ms = round(min(patience_ms, POLL_MS))
            await self._store.wait_for_change(self._run_id, timeout_ms=max(1, timeout_ms))
        return ()

    async def _look_for_end(self, *, has_end: bool = False) -> None:
        """Note that the turn is over, unless a retry went on behind the end.

        Raises RunNotFoundError if it was deleted; who has its end by then has all.
        """
        run = await self._store.read_run(self._run_id)
        if run is None and has_end:
            self.ended_as = self._reading.run
            return
        if run is None:
            raise RunNotFoundError(f"the run {self._run_id!r} was deleted")
        if run.state in RESTING_STATES and not await self._store.read_frames(
            self._run_id, after=self._after, limit=1
        ):
            self.ended_as = run
        self._watch_lease(run)

    def _watch_lease(self, run: RunRecord) -> None:
        """Note whether anybody works on the turn: a lease was given back, or is not renewed.

        Of a turn that only another runtime has claimed nobody knows: there leases are long, and
        renewed by nobody.
        """
        if run.lease_expires_at != self._lease:
            self._lease, self._renewed_ms = run.lease_expires_at, monotonic_ms()
        unrenewed_ms = monotonic_ms() - self._renewed_ms
        is_held = run.lease_holder_id is not None and unrenewed_ms < ADRIFT_MS
        self._is_adrift = run.state == "running" and run.epoch > 0 and not is_held


class _Writer:
    """Encodes what one reader sees."""

    def __init__(self, reading: Reading, codec: Codec) -> None:
        run, turn = reading.run, reading.turn
        self._codec = codec
        self._has_cursors = codec.has_cursors
        self._shows_result = reading.replay == "result"
        self._mark = cursor_mark(identity.stored_id(run.tenant, run.run_id))
        self._state = run.state
        self._to = Addressee(
            turn.tenant_id,
            turn.session_id,
            turn.turn_index,
            dialect=reading.dialect,
            replayed=reading.is_over,
            revision=turn.revision,
        )

    def started(self) -> bytes:
        return self._codec.encode(events.started(self._to), format_cursor(1, 0, self._mark))

    def silence(self, silence: Silence) -> bytes:
        """Encode what is said while there is nothing to say; mostly nothing."""
        if silence is Silence.HEARTBEAT:
            return self._codec.heartbeat()
        if self._to.dialect == "reference":
            return b""
        return self._codec.encode(events.recovering(self._to), None)

    def frames(self, frames: Sequence[Frame]) -> bytes:
        """Encode frames; the cursor of each stands at its last event.

        A reader that breaks off before that event must get the frame again.
        """
        mark, encode = self._mark, self._codec.frame
        cursor: str | None = None
        pieces: list[str] = []
        for frame in frames:
            if self._has_cursors:
                cursor = format_cursor(frame.epoch, frame.seq, mark)
            if frame.kind in DELTA_KINDS:
                pieces.append(encode(events.delta_text(frame), cursor))
            elif isinstance(frame.data, EncodedEvent):
                pieces.append(encode(frame.data.text, cursor))
            elif told := events.events_of(frame, self._to):
                pieces.append(self._told(told, cursor))
        return "".join(pieces).encode()

    def replay(self, steps: Sequence[StepRecord], last: Frame | None) -> bytes:
        """Encode a finished turn from its parts.

        Only the last line has a cursor: whoever breaks off before begins anew.
        """
        answer = answer_of(steps)
        parts: Any = answer.get("parts")
        if parts is None or self._shows_result:
            told: list[Event] = [events.result(str(answer.get("finalText", "")))]
        else:
            told = [
                event for part in parts for event in events.events_of(part_frame(part), self._to)
            ]
        told += events.events_of(end_frame(self._state, answer.get("finishReason")), self._to)
        cursor = None if last is None else format_cursor(last.epoch, last.seq, self._mark)
        return self._told(told, cursor).encode()

    def ending_of_others(self, run: RunRecord, steps: Sequence[StepRecord]) -> bytes:
        """Encode the end of a turn that another runtime has ended, without a frame that says so."""
        if run.state in TERMINAL_STATES:
            text = str(answer_of(steps).get("finalText", ""))
            told = (events.result(text), *events.events_of(Frame(0, 0, run.state, {}), self._to))
        else:
            told = events.refused(
                self._to, code=run.reason or "internal", message="The turn failed.", retryable=True
            )
        return self._told(told, None).encode()

    def _told(self, told: Sequence[Event], cursor: str | None) -> str:
        """Return the lines of the events that one frame stands for; the last has its cursor."""
        frame = self._codec.frame
        last = frame(dumps(told[-1]), cursor)
        if len(told) == 1:
            return last
        return "".join([*(frame(dumps(event), None) for event in told[:-1]), last])
