"""Price tables: your own list, and the one of the package genai-prices."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final, cast

from perdure.core.pricing import NANOS, ModelCall, Price, PriceTable
from perdure.errors import UsageError

Amount = Decimal | int | str
"""An exact number; a text such as '0.15' is one, a float is not."""

_MILLION: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrice:
    """What a million tokens of a model cost.

    `cached` is for the tokens of the input that the provider had in its cache, `cache_written` for
    those that it has put there, `reasoning` for those of the output that were spent on reasoning;
    None: they cost what the others do.
    """

    input: Amount
    output: Amount
    cached: Amount | None = None
    reasoning: Amount | None = None
    cache_written: Amount | None = None


class PriceList:
    """A price table of your own, for what no other one knows, or for what you really pay.

    `models` are looked up by the name that the provider gives in its answer, then by
    `<provider>/<name>`, the latter first. What is not in the list is asked of `otherwise`.
    `version` is recorded with each cost. Raises UsageError for an amount that is no exact number
    from 0 on.
    """

    def __init__(
        self,
        models: Mapping[str, ModelPrice],
        *,
        version: str,
        currency: str = "USD",
        otherwise: PriceTable | None = None,
    ) -> None:
        self._rates = {name: _Rates(name, price) for name, price in models.items()}
        self._version = version
        self._currency = currency
        self._otherwise = otherwise

    @classmethod
    def read(cls, path: str | Path, *, otherwise: PriceTable | None = None) -> PriceList:
        """Return the list of a TOML file: `version`, `currency`, and a table `[models."NAME"]`
        for each model with the amounts of a ModelPrice.

        Raises UsageError that names what is wrong with the file.
        """
        try:
            document = tomllib.loads(Path(path).read_text("utf-8"), parse_float=str)
            models = {name: ModelPrice(**price) for name, price in document["models"].items()}
            version, currency = document["version"], document.get("currency", "USD")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"no list of prices can be read from {str(path)!r}: {error}"
            ) from error
        return cls(models, version=version, currency=currency, otherwise=otherwise)

    def price(self, call: ModelCall) -> Price | None:
        """Return what the call costs by this list, or else by the other one."""
        rates = self._rates.get(f"{call.provider}/{call.model}") or self._rates.get(call.model)
        if rates is not None:
            return _price(rates.cost(call), self._currency, self._version) if _fits(call) else None
        return None if self._otherwise is None else self._otherwise.price(call)


class GenaiPrices:
    """The prices in US dollars that the package genai-prices knows, at the time of each call.

    A call that names no provider is one of `provider`, or else of the provider that the package
    finds by the model's name. Raises ImportError without `pip install 'perdure[prices]'`.
    """

    def __init__(self, *, provider: str | None = None) -> None:
        try:
            import genai_prices
        except ModuleNotFoundError as error:
            raise ImportError("prices need genai-prices: pip install 'perdure[prices]'") from error
        self._package = genai_prices
        self._provider = provider

    def price(self, call: ModelCall) -> Price | None:
        """Return what the call costs; None for a model, or tokens of it, without a price."""
        if not _fits(call):
            return None
        usage = self._package.Usage(
            input_tokens=call.tokens_in,
            output_tokens=call.tokens_out,
            cache_read_tokens=call.tokens_cached,
            cache_write_tokens=call.tokens_cache_written,
            output_reasoning_tokens=call.tokens_reasoning,
        )
        try:
            found = self._package.calc_price(
                usage,
                call.model,
                provider_id=call.provider or self._provider,
                genai_request_timestamp=None
                if call.at is None
                else datetime.fromisoformat(call.at),
            )
        except (LookupError, ValueError):
            return None
        price = found.model_price
        # What has no price is left out of the total there, which makes it free.
        if (call.tokens_in and price.input_mtok is None) or (
            call.tokens_out and price.output_mtok is None
        ):
            return None
        return _price(found.total_price, "USD", self._version(found.auto_update_timestamp))

    def _version(self, updated_at: datetime | None) -> str:
        version = f"genai-prices {self._package.__version__}"
        return version if updated_at is None else f"{version} of {updated_at:%Y-%m-%d}"


class _Rates:
    """What one token of each kind costs."""

    def __init__(self, model: str, price: ModelPrice) -> None:
        self._input = _amount(model, price.input)
        self._output = _amount(model, price.output)
        self._cached = _amount(model, price.cached, self._input)
        self._written = _amount(model, price.cache_written, self._input)
        self._reasoning = _amount(model, price.reasoning, self._output)

    def cost(self, call: ModelCall) -> Decimal:
        cached, written, reasoning = _parts(call)
        return (
            self._input * (call.tokens_in - cached - written)
            + self._cached * cached
            + self._written * written
            + self._output * (call.tokens_out - reasoning)
            + self._reasoning * reasoning
        )


def _fits(call: ModelCall) -> bool:
    """Return whether the counts agree: the parts are not more than the whole."""
    cached, written, reasoning = parts = _parts(call)
    return min(parts) >= 0 and cached + written <= call.tokens_in and reasoning <= call.tokens_out


def _parts(call: ModelCall) -> tuple[int, int, int]:
    """Return the tokens that were cached, written to the cache, and spent on reasoning."""
    return call.tokens_cached or 0, call.tokens_cache_written or 0, call.tokens_reasoning or 0


def _price(cost: Decimal, currency: str, version: str) -> Price:
    return Price(int((cost * NANOS).to_integral_value()), currency, version)


def _amount(model: str, value: Amount | None, otherwise: Decimal | None = None) -> Decimal:
    """Return what one token costs, of what a million does; or else `otherwise`, if it is given."""
    if value is None and otherwise is not None:
        return otherwise
    try:
        amount = None if type(value) in (bool, float) else Decimal(cast("Any", value))
    except (InvalidOperation, TypeError, ValueError):
        amount = None
    if amount is None or not amount.is_finite() or amount < 0:
        raise UsageError(
            f"a price of {model!r:.80} is {value!r:.40}, and must be a number from 0 on: "
            "an int, a Decimal or a text such as '0.15'"
        )
    return amount / _MILLION
