"""Reading the fields of what a provider sends: of the right type, or refused."""

from __future__ import annotations

import json
import math
from typing import TypeGuard

from perdure.backends.provider_error import fields_of, is_object
from perdure.core.records import JsonValue


def arguments_of(written: str) -> JsonValue:
    """Return what a model wrote as arguments: JSON if it is, else the text itself."""
    if not written.strip():
        return {}
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
