"""Rows of frames that have joined the one before them: how that is written, and read again.

A line ends between them, which JSON knows nothing of, and which no text within it holds: whoever
reads such a row as a whole gets the frames of all of them.
"""

from __future__ import annotations

import json
from typing import Any, Final, cast

from perdure.core.frames import SEALED_KIND, Frame, decode_row
from perdure.errors import StoreCorruptError

_JOINT: Final = ",\n"


def joining_text(body: str) -> str:
    """Return what stands in place of the last character of a row that `body` joins."""
    return _JOINT + body[1:]


def decode_behind(
    first_seq: int, last_seq: int, epoch: int, body: str, *, after: int, before: int
) -> list[Frame]:
    """Return the frames with a seq greater than `after` of a stored row, and of those in it.

    Of the rows that joined each other only those are read that begin before the seq `before`, and
    come to an end behind `after`: who waits for every token is not to read all of them for each.
    """
    if _JOINT not in body:
        frames = decode_row(first_seq, epoch, body)
        return frames if first_seq > after else [frame for frame in frames if frame.seq > after]
    found: list[list[Frame]] = []
    end_seq = last_seq
    for row in reversed(body[1:-1].split(_JOINT)):
        if end_seq <= after:
            break
        text = f"[{row}]"
        begin_seq = end_seq - _count(first_seq, text) + 1
        if begin_seq < before:
            found.append(decode_row(begin_seq, epoch, text))
        end_seq = begin_seq - 1
    return [frame for frames in reversed(found) for frame in frames if frame.seq > after]


def _count(first_seq: int, text: str) -> int:
    try:
        return sum(map(_frames_of, json.loads(text)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreCorruptError(f"the frames from seq {first_seq} cannot be read") from error


def _frames_of(element: Any) -> int:
    pieces = element.get("d")
    if isinstance(pieces, list):
        return len(cast("list[str]", pieces))
    return element["to"] - element["from"] + 1 if element["k"] == SEALED_KIND else 1
