"""Reading the fields of what a provider sends: of the right type, or refused."""

from __future__ import annotations

import json
import math
from typing import Final, TypeGuard

from perdure.backends.pieces import whole_characters
from perdure.backends.provider_error import fields_of, is_object
from perdure.core.records import JsonValue

CUT: Final = frozenset({"length", "content_filter"})
"""Finish reasons of an answer that was cut off, maybe within its last call."""


def arguments_of(written: str, *, is_cut: bool = False) -> JsonValue:
    """Return what a model wrote as arguments: JSON if it is, else the text itself.

    Nothing is written for a tool without arguments, and where the answer `is_cut` off before
    them: then it stays what it is, so that nobody takes it for a call with none.
    """
    written = whole_characters(written)
    if not written.strip():
        return written if is_cut else {}
    try:
        return json.loads(written, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError):
        return written


def is_json(written: str) -> bool:
    """Tell whether a text is JSON."""
    try:
        json.loads(written)
    except (ValueError, RecursionError):
        return False
    return True


def object_of(value: JsonValue) -> dict[str, JsonValue]:
    """Return an object, an empty one for null. Raises ValueError."""
    if value is None:
        return {}
    if not is_object(value):
        raise ValueError("an object was expected")
    return value


def objects_of(value: JsonValue) -> list[dict[str, JsonValue]]:
    """Return a list of objects, an empty one for null. Raises ValueError."""
    if value is None:
        return []
    if not _is_list(value):
        raise ValueError("a list was expected")
    return [object_of(item) for item in value]


def string_of(value: JsonValue) -> str:
    """Return a text, '' for null. Raises ValueError."""
    if not isinstance(value, str | None):
        raise ValueError("a text was expected")
    return value or ""


def count_of(counted: JsonValue, path: tuple[str, ...]) -> int | None:
    """Return the count that stands at `path`; None if there is none."""
    for key in path:
        counted = fields_of(counted).get(key)
    is_count = isinstance(counted, int) and not isinstance(counted, bool) and counted >= 0
    return counted if is_count else None


def _finite(written: str) -> float:
    number = float(written)
    if not math.isfinite(number):
        raise ValueError(f"{written} is not JSON")
    return number


def _is_list(value: JsonValue) -> TypeGuard[list[JsonValue]]:
    return isinstance(value, list)
