"""The pages of the documentation, cut into what tests look at."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent.parent
PAGES: Final = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

_FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """One fenced block. `output` is the block behind it, if that one shows what it prints."""

    page: Path
    line: int
    words: list[str]
    text: str
    output: str | None

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = page.read_text("utf-8")
    found = list(_FENCE.finditer(text))
    blocks: list[Block] = []
    for index, match in enumerate(found):
        following = found[index + 1] if index + 1 < len(found) else None
        output = None
        if following is not None and following[1].split() == ["text", "output"]:
            output = following[2]
        line = text.count("\n", 0, match.start()) + 1
        blocks.append(Block(page, line, match[1].split(), match[2], output))
    return blocks


def prose_of(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", page.read_text("utf-8"))


def links_of(page: Path) -> list[str]:
    """Return what a page links to, images included."""
    return _LINK.findall(prose_of(page))


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that the headings of a page make."""
    return {anchor(heading) for heading in _HEADING.findall(prose_of(page))}


def anchor(heading: str) -> str:
    """Return the anchor of a heading: lower case, without signs, hyphens for spaces."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def relative_name(page: Path) -> str:
    """Return the name of a page within the repository."""
    return page.relative_to(ROOT).as_posix()
