"""Texts in pieces: whoever cuts them in the middle of a character, no reader sees it."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from perdure.backends.pieces import Pieces, whole_characters
from perdure.core.frames import reasoning, text


def told(pieces: Sequence[str], kind: str = "text") -> list[str]:
    reader = Pieces()
    add = reader.text if kind == "text" else reader.reasoning
    return [frame.data["delta"] for piece in pieces for frame in add(piece)]


def utf_16_pieces(written: str) -> list[str]:
    """Return a text as who counts in UTF-16 cuts it: one unit each."""
    units = written.encode("utf-16-le")
    places = range(0, len(units), 2)
    return [units[at : at + 2].decode("utf-16-le", "surrogatepass") for at in places]


@given(st.text())
def test_a_text_that_is_cut_anywhere_is_told_in_whole_characters(written: str) -> None:
    for kind in ("text", "reasoning"):
        pieces = told(utf_16_pieces(written), kind)
        assert "".join(pieces) == written
        assert all(piece.encode() for piece in pieces)


@given(st.lists(st.text(st.characters(categories=["Cs", "L"]))))
def test_what_is_told_can_always_be_encoded(pieces: list[str]) -> None:
    for piece in told(pieces):
        piece.encode()


def test_a_half_of_one_kind_of_text_waits_beside_the_other_kind() -> None:
    reader = Pieces()
    found = [*reader.text("a\ud83d"), *reader.reasoning("hm"), *reader.text("")]
    assert found == [text("a"), reasoning("hm")]
    assert list(reader.text("\udc4b")) == [text("👋")]


def test_a_half_that_stays_alone_is_replaced_or_at_the_end_left_out() -> None:
    assert told(["\ud83d", "a", "\udc4b", "b\ud83d"]) == ["\ufffda", "\ufffd", "b"]
    assert whole_characters("\ud83d\udc4b \udc4b") == "👋 \ufffd"
