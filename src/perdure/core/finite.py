"""Numbers from outside: told from what only looks like one."""

from __future__ import annotations

import math
from typing import TypeGuard


def is_finite(value: object) -> TypeGuard[float]:
    """Return whether `value` is a number that a float can hold; a truth value is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_fraction(value: object) -> TypeGuard[float]:
    """Return whether `value` is a number from 0 to 1."""
    return is_finite(value) and 0 <= value <= 1
