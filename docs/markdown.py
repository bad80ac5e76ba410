"""Pieces of Markdown, for the pages that are written from the code."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Final

MADE_BY: Final = "<!-- Written by `python -m docs.generate`: change the code, then run it. -->"


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a table."""
    names = list(header)
    lines = [names, ["---"] * len(names)]
    lines.extend([str(cell).replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(title: str, opening: str, *blocks: str) -> str:
    """Return a page whose blocks are set apart by empty lines."""
    pieces = [f"# {title}", MADE_BY, opening, *blocks]
    return "\n\n".join(piece.strip() for piece in pieces) + "\n"


def code(text: str) -> str:
    """Return a block of preformatted text."""
    return f"```text\n{text}\n```"


def in_one_line(text: str) -> str:
    """Return `text` without its line breaks."""
    return " ".join(text.split())


def opening_of(value: object) -> str:
    """Return the first paragraph of a docstring, in one line."""
    return in_one_line((inspect.getdoc(value) or "").split("\n\n")[0])
