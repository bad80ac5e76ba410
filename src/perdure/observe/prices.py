"""Price tables: your own list, and the one of the package genai-prices."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from perdure.core.effects import iso_time, system_clock
from perdure.core.pricing import NANOS, ModelCall, Price, PriceTable
from perdure.errors import UsageError

Amount = Decimal | int | str
"""An exact number; a text such as '0.15' is one, a float is not."""

_MILLION: Final = 1_000_000
_MODELS_MAX: Final = 1_000
"""So many names of models are remembered, of which some may be made up."""


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
        self._snapshot: object = None
        self._models: dict[tuple[str | None, str], Any] = {}
        """What the package has found for a provider and a model; None: no such model."""
        self._linear: dict[int, _Linear | None] = {}
        """By the id of a set of prices (which is kept): what it comes to, if it has no tiers."""

    def price(self, call: ModelCall) -> Price | None:
        """Return what the call costs; None for a model, or tokens of it, without a price."""
        if not _fits(call):
            return None
        at = datetime.fromisoformat(call.at or iso_time(system_clock()))
        try:
            found = self._found(call, at)
        except ValueError:
            return None
        if found is None:
            return None
        price = found.model.get_prices(at)
        # What has no price is left out of the total there, which makes it free.
        if (call.tokens_in and price.input_mtok is None) or (
            call.tokens_out and price.output_mtok is None
        ):
            return None
        linear = self._linear_of(price, call, at)
        try:
            total = self._ask(call, at).total_price if linear is None else linear.cost(call)
        except (LookupError, ValueError):
            return None
        return _price(total, "USD", self._version(found.auto_update_timestamp))

    def _found(self, call: ModelCall, at: datetime) -> Any:
        """Return what the package knows of the model; it looks through all of them for that."""
        snapshot = self._package.data_snapshot.get_snapshot()
        if snapshot is not self._snapshot:
            self._snapshot, self._models, self._linear = snapshot, {}, {}
        key = call.provider or self._provider, call.model
        if key not in self._models:
            if len(self._models) == _MODELS_MAX:
                self._models.clear()
            try:
                self._models[key] = self._ask(call, at)
            except LookupError:
                self._models[key] = None
        return self._models[key]

    def _linear_of(self, price: Any, call: ModelCall, at: datetime) -> _Linear | None:
        """Return what these prices come to for any call; None: they change with its size."""
        if id(price) not in self._linear:

            def total(tokens_in: int, tokens_out: int, *parts: int) -> Decimal:
                cached, reasoning, written = (*parts, 0, 0, 0)[:3]
                asked = call._replace(
                    tokens_in=tokens_in,
                    tokens_out=tokens_out,
                    tokens_cached=cached,
                    tokens_reasoning=reasoning,
                    tokens_cache_written=written,
                )
                return cast(Decimal, self._ask(asked, at).total_price)

            amounts = cast("dict[str, object]", vars(price)).values()
            is_flat = all(each is None or isinstance(each, Decimal) for each in amounts)
            try:
                self._linear[id(price)] = _Linear.probed(total) if is_flat else None
            except ValueError:
                self._linear[id(price)] = None
        return self._linear[id(price)]

    def _ask(self, call: ModelCall, at: datetime) -> Any:
        return self._package.calc_price(
            self._package.Usage(
                input_tokens=call.tokens_in,
                output_tokens=call.tokens_out,
                cache_read_tokens=call.tokens_cached,
                cache_write_tokens=call.tokens_cache_written,
                output_reasoning_tokens=call.tokens_reasoning,
            ),
            call.model,
            provider_id=call.provider or self._provider,
            genai_request_timestamp=at,
        )

    def _version(self, updated_at: datetime | None) -> str:
        version = f"genai-prices {self._package.__version__}"
        return version if updated_at is None else f"{version} of {updated_at:%Y-%m-%d}"


class _Linear(NamedTuple):
    """Prices that are the same for each token: what a call costs, and what each token adds.

    The package asks itself more of each call than to add is worth, and sums have millions.
    """

    call: Decimal
    token_in: Decimal
    token_out: Decimal
    cached: Decimal
    written: Decimal
    reasoning: Decimal

    @classmethod
    def probed(cls, total: Callable[..., Decimal]) -> _Linear | None:
        """Return the prices by which `total` adds up; None if it is not by such ones.

        It gets tokens in and out, and of them the cached, the reasoning and the written ones.
        """
        many = _MILLION
        call, all_in, all_out = total(0, 0), total(many, 0), total(0, many)
        linear = cls(
            call,
            (all_in - call) / many,
            (all_out - call) / many,
            (total(many, 0, many) - all_in) / many,
            (total(many, 0, 0, 0, many) - all_in) / many,
            (total(0, many, 0, many) - all_out) / many,
        )
        mixed = ModelCall(
            "",
            many,
            many // 2,
            tokens_cached=many // 4,
            tokens_reasoning=many // 8,
            tokens_cache_written=many // 16,
        )
        asked = total(many, many // 2, many // 4, many // 8, many // 16)
        return linear if linear.cost(mixed) == asked else None

    def cost(self, call: ModelCall) -> Decimal:
        return (
            self.call
            + self.token_in * call.tokens_in
            + self.token_out * call.tokens_out
            + self.cached * (call.tokens_cached or 0)
            + self.written * (call.tokens_cache_written or 0)
            + self.reasoning * (call.tokens_reasoning or 0)
        )


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
