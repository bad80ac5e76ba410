"""Reading a turn: from any frame, live or finished, in this process or of another one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from perdure.core import identity
from perdure.core.effects import monotonic_ms
from perdure.core.frames import (
    TERMINAL_KINDS,
    Frame,
    cursor_mark,
    format_cursor,
    parse_cursor,
    part_frame,
)
from perdure.core.limits import HEARTBEAT_MS
from perdure.core.records import JsonValue, RunRecord
from perdure.durable.journal import Ring
from perdure.errors import CursorError, FramesExpiredError, RunNotFoundError
from perdure.store.protocol import RunStore
from perdure.turn.identity import ChatTurnIdentity, check_identity, identity_of, run_id_of
from perdure.turn.wire import events
from perdure.turn.wire.codecs import Codec
from perdure.turn.wire.events import Addressee, Dialect

Replay = Literal["frames", "result"]

POLL_MS: Final = 1_000
"""Hints of another process may be lost, so a reader looks by himself at least this often."""
_PAGE: Final = 1_000


class Reading(NamedTuple):
    """A turn that may be read from a certain place on.

    `after` is the seq of the last frame the reader has; None: it has nothing.
    """

    store: RunStore
    run: RunRecord
    after: int | None
    dialect: Dialect
    replay: Replay
    find_ring: Callable[[], Ring | None]
    heartbeat_ms: int = HEARTBEAT_MS

    @property
    def is_over(self) -> bool:
        """Whether the turn had an answer when the reader came."""
        return self.run.state in ("completed", "stopped")


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
    dialect: Dialect = "perdure",
    replay: Replay = "frames",
) -> Reading:
    """Return the reading of `run` behind the cursor `after`.

    Raises CursorError (malformed, of another turn, or behind the last frame) and
    FramesExpiredError (the frames are no longer kept: read the finished turn instead).
    """
    seq = None if after is None else await _check_cursor(store, run, after)
    return Reading(store, run, seq, dialect, replay, find_ring)


async def _check_cursor(store: RunStore, run: RunRecord, after: str) -> int:
    stored = identity.stored_id(run.tenant, run.run_id)
    seq = parse_cursor(after, cursor_mark(stored))
    if run.frames_expired_at is not None:
        raise FramesExpiredError(f"the frames of the turn {run.run_id!r} are no longer kept")
    if seq > 0 and not await store.read_frames(run.run_id, after=seq - 1, limit=1):
        raise CursorError(f"the cursor {after!r} lies behind the last frame of the turn")
    return seq


async def is_at_end(reading: Reading) -> bool:
    """Return whether the reader has everything of a turn that is over."""
    if not reading.is_over or reading.after is None:
        return False
    rest = await reading.store.read_frames(reading.run.run_id, after=reading.after, limit=1)
    return not rest


async def lines(reading: Reading, codec: Codec) -> AsyncIterator[bytes]:
    """Yield the encoded events of a reading, several at a time, with heartbeats in between.

    Ends only behind the turn's end; a turn that is parked or deleted while it is followed ends by
    what it says, or by RunNotFoundError. Never ends in the middle.
    """
    to = _addressee(reading)
    if reading.after is None:
        yield codec.encode(events.started(to), _cursor(reading, 1, 0))
        if reading.is_over:
            yield await _replay_parts(reading, codec, to)
            return
    async for batch in follow(reading):
        if batch is None:
            beat = codec.heartbeat()
            if beat:
                yield beat
        else:
            encoded = _encode(reading, codec, to, batch)
            if encoded:
                yield encoded


async def follow(reading: Reading) -> AsyncIterator[Sequence[Frame] | None]:
    """Yield persisted frames in order until the turn's end; None when nothing came for 15 s."""
    run_id = reading.run.run_id
    after = max(reading.after or 0, reading.run.live_from - 1)
    heard_ms = monotonic_ms()
    entered: Ring | None = None
    try:
        while True:
            ring = reading.find_ring()
            if ring is not None and ring is not entered:
                ring.enter()
                if entered is not None:
                    entered.leave()
                entered = ring
            frames = await _next_frames(reading, ring, after)
            if frames:
                after, heard_ms = frames[-1].seq, monotonic_ms()
                ended = frames[-1].kind in TERMINAL_KINDS
                over = ended and await _is_settled(reading.store, run_id, after)
                told = _still_true(frames, is_over=over)
                if told:
                    yield told
                if over:
                    return
            elif monotonic_ms() - heard_ms >= reading.heartbeat_ms:
                heard_ms = monotonic_ms()
                yield None
    finally:
        if entered is not None:
            entered.leave()


def _still_true(frames: Sequence[Frame], *, is_over: bool) -> Sequence[Frame]:
    """Return what a reader should still be told of `frames`.

    What stands before a restart is to be forgotten anyway. An end behind which a retry went on is
    none: a client that believed it would leave.
    """
    for index in range(len(frames) - 1, -1, -1):
        if frames[index].kind == "restarted":
            frames = frames[index:]
            break
    if frames[-1].kind in TERMINAL_KINDS and not is_over:
        return frames[:-1]
    return frames


async def _next_frames(reading: Reading, ring: Ring | None, after: int) -> Sequence[Frame]:
    """Return what stands behind `after`, after waiting for it for a while."""
    store, run_id = reading.store, reading.run.run_id
    if ring is not None and ring.reaches(after):
        frames = ring.since(after)
        if frames or ring.closed:
            return frames or await _poll(reading, after)
        await ring.wait(reading.heartbeat_ms)
        return ring.since(after) if ring.reaches(after) else ()
    frames_stored = await store.read_frames(run_id, after=after, limit=_PAGE)
    return frames_stored or await _poll(reading, after)


async def _poll(reading: Reading, after: int) -> Sequence[Frame]:
    """Wait for frames of another process. Raises RunNotFoundError if the run is gone."""
    store, run_id = reading.store, reading.run.run_id
    waiting = asyncio.ensure_future(store.wait_for_change(run_id, timeout_ms=POLL_MS))
    try:
        # Listening begins before looking, so that nothing falls in between.
        await asyncio.sleep(0)
        frames = await store.read_frames(run_id, after=after, limit=_PAGE)
        if frames:
            return frames
        if await store.read_run(run_id) is None:
            raise RunNotFoundError(f"the run {run_id!r} was deleted")
        await waiting
    finally:
        waiting.cancel()
    return await store.read_frames(run_id, after=after, limit=_PAGE)


async def _is_settled(store: RunStore, run_id: str, last_seq: int) -> bool:
    """Return whether the terminal frame is the turn's end: a retry may have gone on behind it."""
    run = await store.read_run(run_id)
    if run is None:
        return True
    if run.state in ("running", "queued"):
        return False
    return not await store.read_frames(run_id, after=last_seq, limit=1)


# Encoding.


def _addressee(reading: Reading) -> Addressee:
    turn = identity_of(reading.run)
    return Addressee(
        turn.tenant_id,
        turn.session_id,
        turn.turn_index,
        dialect=reading.dialect,
        replayed=reading.is_over,
    )


def _cursor(reading: Reading, epoch: int, seq: int) -> str:
    stored = identity.stored_id(reading.run.tenant, reading.run.run_id)
    return format_cursor(epoch, seq, cursor_mark(stored))


def _encode(reading: Reading, codec: Codec, to: Addressee, frames: Sequence[Frame]) -> bytes:
    mark = cursor_mark(identity.stored_id(reading.run.tenant, reading.run.run_id))
    pieces: list[bytes] = []
    for frame in frames:
        told = events.events_of(frame, to)
        # A reader that breaks off before the last event of a frame must get the frame again.
        pieces.extend(codec.encode(event, None) for event in told[:-1])
        if told:
            pieces.append(codec.encode(told[-1], format_cursor(frame.epoch, frame.seq, mark)))
    return b"".join(pieces)


async def _replay_parts(reading: Reading, codec: Codec, to: Addressee) -> bytes:
    """Return a finished turn from its parts. Only its last line has a cursor: whoever breaks off
    before begins anew."""
    steps = await reading.store.read_steps(reading.run.run_id)
    answer: Mapping[str, JsonValue] = {}
    if steps and isinstance(steps[0].result, dict):
        answer = steps[0].result
    pieces: list[bytes] = []
    parts: Any = answer.get("parts")
    if parts is None or reading.replay == "result":
        pieces.append(codec.encode(events.result(str(answer.get("finalText", ""))), None))
    else:
        for part in parts:
            pieces.extend(
                codec.encode(event, None) for event in events.events_of(part_frame(part), to)
            )
    last = await _last_frame(reading)
    cursor = None if last is None else _cursor(reading, last.epoch, last.seq)
    kind = "completed" if reading.replay == "result" else reading.run.state
    ending = events.events_of(Frame(0, 0, kind, {}), to)
    pieces.append(codec.encode(ending[-1], cursor))
    return b"".join(pieces)


async def _last_frame(reading: Reading) -> Frame | None:
    steps = await reading.store.read_steps(reading.run.run_id)
    frames_to = steps[0].frames_to if steps else None
    if frames_to is None:
        return None
    frames = await reading.store.read_frames(reading.run.run_id, after=frames_to - 1, limit=1)
    return frames[-1] if frames else None
