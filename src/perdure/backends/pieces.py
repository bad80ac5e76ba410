"""Texts that arrive in pieces, which some providers cut in the middle of a character."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from perdure.core import frames
from perdure.core.frames import Frame

_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class Pieces:
    """Makes frames of pieces, and puts characters together again that two pieces share.

    Whoever counts in UTF-16 may cut an emoji in two. Such a half can be neither printed nor
    encoded, and a text that was stored in between differs from the one that comes again. A half
    waits for the other one; at the end of the answer it is left out.
    """

    def __init__(self) -> None:
        self._text = ""
        self._reasoning = ""

    def text(self, piece: str) -> Iterator[Frame]:
        """Yield what is said with this piece; nothing for an empty one."""
        told, self._text = _split(self._text + piece)
        if told:
            yield frames.text(told)

    def reasoning(self, piece: str) -> Iterator[Frame]:
        """Yield what is thought with this piece; nothing for an empty one."""
        told, self._reasoning = _split(self._reasoning + piece)
        if told:
            yield frames.reasoning(told)


def whole_characters(text: str) -> str:
    """Return a text whose halves of characters are joined; one that is alone becomes U+FFFD."""
    if text.isascii() or _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _split(text: str) -> tuple[str, str]:
    """Return the whole characters of a text, and the half of one at its end."""
    if text.isascii():
        return text, ""
    half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
    return whole_characters(text[:-1] if half else text), half
