"""What the model calls of a run come to, where what is unknown stays unknown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from perdure.core.records import UsageRecord
from perdure.core.wording import cost_text as cost_text


class Sum(NamedTuple):
    """A sum of what is known, and of how many calls nothing is."""

    known: int
    unknown: int

    def __str__(self) -> str:
        if not self.unknown:
            return f"{self.known:,}"
        return f"at least {self.known:,}" if self.known else "unknown"


class UsageSums(NamedTuple):
    """The sums over all calls of a run; `costs` by currency."""

    calls: int
    tokens_in: Sum
    tokens_out: Sum
    tokens_cached: Sum
    tokens_cache_written: Sum
    tokens_reasoning: Sum
    costs: Sequence[str]
    unpriced: int
    price_versions: Sequence[str]


def sums_of(usage: Sequence[UsageRecord]) -> UsageSums:
    """Return what the calls come to."""
    costs: dict[str, int] = {}
    for call in usage:
        if call.cost_nanos is not None:
            currency = call.currency or "?"
            costs[currency] = costs.get(currency, 0) + call.cost_nanos
    return UsageSums(
        calls=len(usage),
        tokens_in=_sum(call.tokens_in for call in usage),
        tokens_out=_sum(call.tokens_out for call in usage),
        tokens_cached=_sum(call.tokens_cached for call in usage),
        tokens_cache_written=_sum(call.tokens_cache_written for call in usage),
        tokens_reasoning=_sum(call.tokens_reasoning for call in usage),
        costs=[cost_text(nanos, currency) for currency, nanos in sorted(costs.items())],
        unpriced=sum(call.cost_nanos is None for call in usage),
        price_versions=sorted({call.price_version for call in usage if call.price_version}),
    )


def _sum(values: Iterable[int | None]) -> Sum:
    listed = list(values)
    known = [value for value in listed if value is not None]
    return Sum(sum(known), len(listed) - len(known))
