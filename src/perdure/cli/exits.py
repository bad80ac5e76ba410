"""What the exit codes of the command mean."""

from __future__ import annotations

from typing import Final

DONE: Final = 0
"""All is well."""
NO: Final = 1
"""The answer is no: a fault was found, the turn failed, or the run is not as it has to be."""
REFUSED: Final = 2
"""It could not begin, or not go on: its arguments, its environment or its store are at fault."""
UNKNOWN: Final = 3
"""There is no such run, session or delivery."""
INTERRUPTED: Final = 130
"""Ctrl-C, or SIGINT. Once `serve` has begun, an interrupt is an orderly end."""
CUT_OFF: Final = 141
"""Whoever read its output has left, as `head` does."""
