"""What a model call costs: the question, the answer, and who is asked."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol, cast

NANOS: Final = 1_000_000_000
"""So many nanos are one unit of a currency."""
_USD_DIGITS: Final = 12
"""No price is so small that the rest would count."""


class ModelCall(NamedTuple):
    """A model call as a price depends on it.

    `tokens_cached` were read from the provider's cache and `tokens_cache_written` written there;
    both are part of `tokens_in`, as `tokens_reasoning` are of `tokens_out`. None is unknown. `at`
    is the moment of the call as it is stored, None: now.
    """

    model: str
    tokens_in: int
    tokens_out: int
    provider: str | None = None
    tokens_cached: int | None = None
    tokens_reasoning: int | None = None
    at: str | None = None
    tokens_cache_written: int | None = None


class Price(NamedTuple):
    """What a call costs, in billionths of the currency, and by which version of which table."""

    cost_nanos: int
    currency: str
    version: str


class PriceTable(Protocol):
    """Who knows prices."""

    def price(self, call: ModelCall) -> Price | None:
        """Return what the call costs; None if that is not known. It neither waits nor guesses."""
        ...


def usd_sum(first: float, second: float) -> float:
    """Return what two amounts come to, without the error of binary fractions.

    Ten times 0.1 is 1.0, so that a limit of 1.0 is reached by it.
    """
    return round(first + second, _USD_DIGITS)


def prices_of(store: object) -> PriceTable | None:
    """Return the table by which a store records costs; None if it records none."""
    return cast("PriceTable | None", getattr(store, "prices", None))
