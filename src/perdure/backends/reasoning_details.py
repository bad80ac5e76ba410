"""Thoughts that a router tells in pieces of several kinds, joined as the model made them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from perdure.backends.fields import string_of
from perdure.core.records import JsonValue

FIELD: Final = "reasoning_details"
"""The field of a delta that has them, and of the message in which they are wanted back."""

_TEXTS: Final = ("text", "summary")
"""What is written piece by piece; of any other field the last value counts."""


class ReasoningDetails:
    """The details of one answer, in the order in which they began.

    What is said to be of one type, index and id is one detail. An encrypted one comes whole, and
    a signature behind the text that it signs.
    """

    def __init__(self) -> None:
        self.whole: list[dict[str, JsonValue]] = []

    def add(self, piece: Mapping[str, JsonValue]) -> None:
        """Take in a piece. Raises ValueError for one whose text is none."""
        detail = next((each for each in reversed(self.whole) if _is_one(each, piece)), None)
        if detail is None:
            self.whole.append(dict(piece))
            return
        for name, value in piece.items():
            if name in _TEXTS:
                detail[name] = string_of(detail.get(name)) + string_of(value)
            elif value is not None:
                detail[name] = value


def thought_in(pieces: Iterable[Mapping[str, JsonValue]]) -> str:
    """Return what the pieces say to a reader. Raises ValueError."""
    return "".join(string_of(piece.get(name)) for piece in pieces for name in _TEXTS)


def _is_one(detail: Mapping[str, JsonValue], piece: Mapping[str, JsonValue]) -> bool:
    ids = {each["id"] for each in (detail, piece) if each.get("id") is not None}
    return (
        "data" not in piece
        and detail.get("type") == piece.get("type")
        and detail.get("index") == piece.get("index")
        and len(ids) < 2
    )
