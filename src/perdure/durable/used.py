"""What the backends that one step asked say that they used, as the usage of its model call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from perdure.core.changes import SettleUsage
from perdure.core.pricing import ModelCall, Price, PriceTable
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


def used_together(
    call: int, told: Sequence[Told | None], prices: PriceTable | None = None
) -> SettleUsage:
    """Return what several answers used, None being one of which nothing is told (yet).

    A count that one of them does not say is not known of all; neither is a name in which they
    differ, so that nothing is priced as what it is not. At least one has told something. Where
    they differ, `prices` says what each has cost: the sum is the cost, if all of them are known.
    """
    known = [each for each in told if each is not None]
    used: dict[str, Any] = {}
    for field, name in _NAMES.items():
        first, *others = (each.get(name) for each in known)
        used[field] = first if all(other == first for other in others) else None
    for field, name in _COUNTS.items():
        counts = [each[name] for each in known if each.get(name) is not None]
        used[field] = sum(counts) if len(counts) == len(told) else None
    whole = SettleUsage(call, **used)
    differ = len({(each.get("provider"), each.get("model")) for each in known}) > 1
    return _priced(whole, told, prices) if prices is not None and differ else whole


def _priced(whole: SettleUsage, told: Sequence[Told | None], prices: PriceTable) -> SettleUsage:
    """Return the use with the sum of what each answer has cost, if that is known of all."""
    costs = [None if each is None else _cost_of(each, prices) for each in told]
    known = [each for each in costs if each is not None]
    if len(known) < len(costs) or len({each.currency for each in known}) != 1:
        return whole
    versions = dict.fromkeys(each.version for each in known)
    return whole._replace(
        cost_nanos=sum(each.cost_nanos for each in known),
        currency=known[0].currency,
        price_version=", ".join(versions),
    )


def _cost_of(told: Told, prices: PriceTable) -> Price | None:
    model, tokens_in, tokens_out = told.get("model"), told.get("in"), told.get("out")
    if model is None or tokens_in is None or tokens_out is None:
        return None
    return prices.price(
        ModelCall(
            model,
            tokens_in,
            tokens_out,
            provider=told.get("provider"),
            tokens_cached=told.get("cached"),
            tokens_reasoning=told.get("reasoning"),
            tokens_cache_written=told.get("cache_written"),
        )
    )
