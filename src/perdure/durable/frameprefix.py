"""The frames of a turn that belong to its first steps, to be written as another turn's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from perdure.core.changes import AppendFrames
from perdure.core.frames import DELTA_KINDS, KEPT_KINDS, Frame, RowBuilder
from perdure.core.jsonvalue import encode_value
from perdure.core.limits import FRAME_BYTES_MAX
from perdure.core.records import RunRecord, StepRecord
from perdure.errors import FramesExpiredError
from perdure.store.protocol import RunStore

_ROW_BYTES: Final = 128 * 1024


class FramePrefix(NamedTuple):
    """Frames in order, as the original has numbered them; written, they count from 1."""

    frames: Sequence[Frame]

    @classmethod
    def empty(cls) -> FramePrefix:
        return cls(())

    def frames_to(self, step: StepRecord) -> int | None:
        """Return the new number of the last frame that was written before the step ended."""
        if step.frames_to is None:
            return None
        return sum(1 for frame in self.frames if frame.seq <= step.frames_to)

    def rows(self) -> list[AppendFrames]:
        builders: list[RowBuilder] = []
        for seq, frame in enumerate(self.frames, 1):
            if not builders or builders[-1].size_bytes >= _ROW_BYTES:
                builders.append(RowBuilder(seq))
            if frame.kind in DELTA_KINDS:
                builders[-1].add_delta(frame.kind, frame.data["part"], frame.data["delta"])
            else:
                element = {"k": frame.kind, **frame.data}
                text = encode_value(element, name="frame", bytes_max=FRAME_BYTES_MAX)
                builders[-1].add_element(text)
        return [AppendFrames(row.first_seq, row.last_seq, row.body()) for row in builders]


async def frames_up_to(store: RunStore, run: RunRecord, steps: Sequence[StepRecord]) -> FramePrefix:
    """Return what a reader keeps of the turn at the moment at which the last of `steps` ended.

    Raises FramesExpiredError if frames of theirs are not stored any more.
    """
    last_seq = max((step.frames_to or 0 for step in steps), default=0)
    if last_seq > 0 and run.frames_expired_at is not None:
        raise FramesExpiredError(
            f"the frames of the turn {run.run_id!r} are no longer kept: fork it from step 1"
        )
    kept: list[Frame] = []
    after = 0
    while after < last_seq:
        page = await store.read_frames(run.run_id, after=after)
        if not page:
            break
        for frame in page:
            if frame.seq > last_seq:
                break
            if frame.kind == "restarted":
                # Readers forget what stood before; what stays of it follows.
                kept.clear()
            elif frame.kind in KEPT_KINDS or _ends_a_step(frame):
                kept.append(frame)
        after = page[-1].seq
    return FramePrefix(kept)


def _ends_a_step(frame: Frame) -> bool:
    return frame.kind == "upstream_end" and "step" in frame.data
