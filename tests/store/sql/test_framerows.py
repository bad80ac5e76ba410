"""Rows of frames that have joined: what is read of them, from any place and to any place."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from perdure.core.frames import SEALED_KIND, Frame, decode_row, encode_row, event, text
from perdure.errors import StoreCorruptError
from perdure.store.sql.framerows import decode_behind, joining_text


def joined(*bodies: str) -> str:
    first, *others = bodies
    for body in others:
        first = first[:-1] + joining_text(body)
    return first


ROWS = [
    encode_row([text("a", "p1"), text("b", "p1"), text("c", "p2")]),
    encode_row([event({"type": "x", "data": "],\n[{"}), text("\n", "p2")]),
    encode_row([text("d", "p2")]),
]
ENDS = (7, 9, 10)


def seqs(found: Sequence[Frame]) -> list[int]:
    return [frame.seq for frame in found]


def test_they_are_the_frames_of_one_row() -> None:
    apart = [*decode_row(5, 2, ROWS[0]), *decode_row(8, 2, ROWS[1]), *decode_row(10, 2, ROWS[2])]
    assert decode_row(5, 2, joined(*ROWS)) == apart
    assert decode_behind(5, 10, 2, joined(*ROWS), after=4, before=99) == apart


@pytest.mark.parametrize("after", range(3, 12))
@pytest.mark.parametrize("before", range(5, 12))
def test_they_are_read_in_whole_rows_behind_any_place(after: int, before: int) -> None:
    found = decode_behind(5, 10, 2, joined(*ROWS), after=after, before=before)
    begins = (5, 8, 10)
    last = max(
        (end for begin, end in zip(begins, ENDS, strict=True) if begin < before), default=after
    )
    assert seqs(found) == list(range(max(after + 1, 5), last + 1))


def test_sealed_ones_stand_for_as_many_frames_as_they_say() -> None:
    def sealed(first_seq: int, last_seq: int) -> str:
        return json.dumps([{"k": SEALED_KIND, "from": first_seq, "to": last_seq, "v": "***"}])

    body = joined(sealed(1, 4), sealed(5, 5), sealed(6, 9))
    assert seqs(decode_behind(1, 9, 1, body, after=0, before=99)) == [4, 5, 9]
    assert seqs(decode_behind(1, 9, 1, body, after=4, before=6)) == [5]
    assert seqs(decode_behind(1, 9, 1, body, after=7, before=99)) == [9]


@pytest.mark.parametrize("element", ["1", '{"n":1}', '{"k":"sealed"}', "{"])
def test_damage_is_told_as_such(element: str) -> None:
    with pytest.raises(StoreCorruptError, match="from seq 5"):
        decode_behind(5, 10, 2, joined(ROWS[0], f"[{element}]"), after=4, before=99)
