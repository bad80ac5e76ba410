"""Lengths of time that callers give: whole milliseconds, up to 100 years."""

from __future__ import annotations

from typing import Final

from perdure.errors import UsageError

LENGTH_MAX_MS: Final = 100 * 365 * 24 * 60 * 60 * 1_000
"""No store can name a moment behind the year 9999."""


def check_length(length_ms: object, *, name: str, least: int = 0) -> None:
    """Raise UsageError unless `length_ms` is a whole number of milliseconds, up to 100 years."""
    if type(length_ms) is not int or not least <= length_ms <= LENGTH_MAX_MS:
        raise UsageError(
            f"{name} must be an integer from {least} to {LENGTH_MAX_MS}, not {length_ms!r:.40}"
        )
