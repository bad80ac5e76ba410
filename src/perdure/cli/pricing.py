"""Which prices an option `--prices` means."""

from __future__ import annotations

from importlib.util import find_spec

from perdure.core.pricing import PriceTable
from perdure.observe.prices import GenaiPrices, PriceList


def prices_of(which: str) -> PriceTable | None:
    """Return the table: `auto` is that of genai-prices, None where it is not installed; `off` is
    None; anything else is the name of a file with prices, which goes before that package.

    Raises UsageError for a file that is no list of prices.
    """
    if which == "off":
        return None
    package = GenaiPrices() if find_spec("genai_prices") is not None else None
    return package if which == "auto" else PriceList.read(which, otherwise=package)
