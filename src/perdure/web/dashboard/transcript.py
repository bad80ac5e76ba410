"""What was said in a turn, and the newest frames of its stream."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, cast

from perdure.core.frames import DELTA_KINDS, Frame, fold_parts
from perdure.core.records import JsonValue, RunRecord, StepRecord
from perdure.core.transitions import TERMINAL_STATES
from perdure.observe.credentials import mask_text, shown
from perdure.store.protocol import RunStore
from perdure.turn.ending import answer_of
from perdure.web.views import part_view

FRAMES_SHOWN: Final = 200
"""So many of the newest frames are listed."""


TEXT_SHOWN: Final = 300
"""So many characters of a frame are shown."""


class Line(NamedTuple):
    """One frame, or several neighbouring deltas of one part, up to the seq `seq`."""

    seq: int
    epoch: int
    kind: str
    pieces: int
    text: str


class Transcript(NamedTuple):
    """A turn as people read it. `frames_gone`: they are no longer kept."""

    message: JsonValue
    parts: Sequence[Mapping[str, JsonValue]]
    lines: Sequence[Line]
    frames_gone: bool


async def transcript_of(
    store: RunStore, run: RunRecord, steps: Sequence[StepRecord]
) -> Transcript | None:
    """Return what was said in a run that is a turn; None for one that is none."""
    if run.session_id is None or run.turn_index is None:
        return None
    frames = await _frames(store, run)
    if run.state in TERMINAL_STATES:
        parts = answer_of(steps).get("parts", [])
    else:
        parts = fold_parts(frames)
    told = cast("Sequence[Mapping[str, JsonValue]]", shown([part_view(part) for part in parts]))
    return Transcript(
        message=None if run.manifest is None else run.manifest.input.get("userMessage"),
        parts=told,
        lines=lines_of(frames)[-FRAMES_SHOWN:],
        frames_gone=run.frames_expired_at is not None,
    )


async def _frames(store: RunStore, run: RunRecord) -> list[Frame]:
    frames: list[Frame] = []
    after = max(0, run.live_from - 1)
    while page := await store.read_frames(run.run_id, after=after):
        frames.extend(page)
        after = page[-1].seq
    return frames


def lines_of(frames: Sequence[Frame]) -> list[Line]:
    """Return the lines of a list of frames, in which neighbouring deltas are one."""
    lines: list[Line] = []
    part: JsonValue = None
    for frame in frames:
        if frame.kind not in DELTA_KINDS:
            lines.append(Line(frame.seq, frame.epoch, frame.kind, 1, _told(frame.data)))
            part = None
            continue
        text = str(frame.data["delta"])
        last = lines[-1] if lines else None
        same = last is not None and part == frame.data["part"] and last.epoch == frame.epoch
        if last is not None and same and last.kind == frame.kind and len(last.text) < 200:
            lines[-1] = last._replace(seq=frame.seq, pieces=last.pieces + 1, text=last.text + text)
        else:
            lines.append(Line(frame.seq, frame.epoch, frame.kind, 1, text))
        part = frame.data["part"]
    return [line._replace(text=mask_text(line.text)) for line in lines]


def _told(data: Mapping[str, JsonValue]) -> str:
    known = {name: value for name, value in data.items() if value is not None}
    text = json.dumps(shown(known), ensure_ascii=False)
    return text if len(text) <= TEXT_SHOWN else f"{text[: TEXT_SHOWN - 1]}…"
