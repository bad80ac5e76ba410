"""A clock that stands still until a test moves it."""

from __future__ import annotations

from typing import Final

from perdure.core.effects import iso_time

START_MS: Final = 1_769_850_307_042
"""2026-01-31T09:05:07.042Z, an ordinary moment."""


class ManualClock:
    """Milliseconds since the epoch, moved by hand; a store takes it as its `clock`."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        """Return the moment in milliseconds since the epoch."""
        return self.now_ms

    def advance(self, ms: int) -> None:
        """Move on by `ms` milliseconds."""
        self.now_ms += ms

    def iso(self, later_ms: int = 0) -> str:
        """Return the moment `later_ms` from now in the form in which stores keep moments."""
        return iso_time(self.now_ms + later_ms)
