"""What the backends that one step asked say that they used, as the usage of its model call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from perdure.core.changes import SettleUsage
from perdure.core.records import JsonValue

Told = Mapping[str, JsonValue]
"""The data of a usage frame."""

_NAMES: Final = {"provider": "provider", "model": "model", "request_id": "request"}
_COUNTS: Final = {
    "tokens_in": "in",
    "tokens_out": "out",
    "tokens_cached": "cached",
    "tokens_reasoning": "reasoning",
    "tokens_cache_written": "cache_written",
}


def used_together(call: int, told: Sequence[Told | None]) -> SettleUsage:
    """Return what several answers used, None being one of which nothing is told (yet).

    A count that one of them does not say is not known of all; neither is a name in which they
    differ, so that nothing is priced as what it is not. At least one has told something.
    """
    known = [each for each in told if each is not None]
    used: dict[str, Any] = {}
    for field, name in _NAMES.items():
        first, *others = (each.get(name) for each in known)
        used[field] = first if all(other == first for other in others) else None
    for field, name in _COUNTS.items():
        counts = [each[name] for each in known if each.get(name) is not None]
        used[field] = sum(counts) if len(counts) == len(told) else None
    return SettleUsage(call, **used)
