"""What commands print: columns and relative times for people, JSON lines for programs."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from perdure.observe.credentials import mask_text, shown

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_CONTROLS_OF_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_COLOURS: Final[Mapping[str, str]] = {
    "completed": "32",
    "delivered": "32",
    "ok": "32",
    "running": "36",
    "failed": "31",
    "dead": "31",
    "lost": "31",
    "fault": "31",
    "parked": "33",
    "warning": "33",
    "waiting": "33",
    "stopped": "2",
}


def print_json(record: Mapping[str, Any]) -> None:
    """Print one line for a program, without secrets: ASCII, so that no text can break it."""
    print(json.dumps(shown(dict(record)), separators=(",", ":")))


def as_json(record: Any, **more: Any) -> dict[str, Any]:
    """Return a record as a JSON object with the names of the HTTP service (`turnIndex`)."""
    members = {_camel(name): _value(value) for name, value in record._asdict().items()}
    return {**more, **members}


def _value(value: Any) -> Any:
    return as_json(value) if hasattr(value, "_asdict") else value


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


def print_table(header: Sequence[str] | None, rows: Iterable[Sequence[object]]) -> None:
    """Print rows in aligned columns; a terminal gets lines cut to its width."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    if header is not None:
        cells.insert(0, list(header))
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for number, line in enumerate(cells):
        text = "  ".join(map(_padded, line, widths)).rstrip()
        if room is not None and _width(text) > room:
            text = text[: max(room - 1, 1)] + "…"
        print(emphasised(text) if header and number == 0 else _coloured(text, line))


def _padded(cell: str, width: int) -> str:
    return cell + " " * (width - _width(cell))


def print_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one pair a line; a value that is None is left out."""
    known = [(name, one_line(value)) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        print(_coloured(f"{name.ljust(width)}  {value}", [value.split(" ")[0]]))


def one_line(value: object) -> str:
    """Return a value as text that stays within its line; nothing in it steers a terminal.

    What looks like a credential is masked.
    """
    if value is None:
        return "-"
    text = mask_text(value if isinstance(value, str) else str(value))
    return _CONTROLS.sub(lambda found: _escaped(found[0]), text)


def harmless(text: str) -> str:
    """Return text whose lines stay lines, and of which nothing steers a terminal."""
    return _CONTROLS_OF_TEXT.sub(lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    return {"\n": "⏎", "\r": "⏎", "\t": " "}.get(character, "\N{REPLACEMENT CHARACTER}")


def shortened(value: Any, room: int = 60) -> str:
    """Return a stored value as JSON, without secrets, cut to `room` characters."""
    text = json.dumps(shown(value), ensure_ascii=False)
    return text if len(text) <= room else f"{text[: room - 1]}…"


def print_mark(mark: str, text: str) -> None:
    """Print a line that opens with a word such as `ok` or `fault`, in its colour."""
    print(_coloured(f"{mark.ljust(8)} {text}", [mark]))


def has_colours() -> bool:
    """Whether the output is a terminal that may be coloured."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def emphasised(text: str) -> str:
    """Return `text` in bold, where there are colours."""
    return f"\x1b[1m{text}\x1b[0m" if has_colours() else text


def faint(text: str) -> str:
    """Return `text` paler than the rest, where there are colours."""
    return f"\x1b[2m{text}\x1b[0m" if has_colours() else text


def struck(text: str) -> str:
    """Return `text` struck out, where there are colours."""
    return f"\x1b[2;9m{text}\x1b[0m" if has_colours() else text


def _coloured(text: str, cells: Sequence[str]) -> str:
    """Return a line with its state in its colour."""
    if not has_colours():
        return text
    for cell in cells:
        if cell in _COLOURS:
            return re.sub(rf"\b{cell}\b", f"\x1b[{_COLOURS[cell]}m{cell}\x1b[0m", text, count=1)
    return text


def _width(text: str) -> int:
    """Return how many columns the text takes in a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
