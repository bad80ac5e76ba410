"""Prices: what a call costs to the last billionth, or that nobody knows it."""

from __future__ import annotations

import builtins
import random
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import genai_prices
import pytest

from perdure.core.pricing import ModelCall, Price
from perdure.errors import UsageError
from perdure.observe.prices import GenaiPrices, ModelPrice, PriceList

RATES = ModelPrice(input="2.50", output=10, cached=Decimal("1.25"), reasoning="12")


def priced(call: ModelCall, **models: ModelPrice) -> int | None:
    price = PriceList(models or {"m": RATES}, version="1").price(call)
    return None if price is None else price.cost_nanos


def test_tokens_cost_what_a_million_of_their_kind_does() -> None:
    table = PriceList({"m": RATES}, version="2026-11", currency="EUR")
    assert table.price(ModelCall("m", 1_000, 100)) == Price(3_500_000, "EUR", "2026-11")


def test_cached_and_reasoning_tokens_are_parts_and_have_prices_of_their_own() -> None:
    call = ModelCall("m", 1_000, 100, tokens_cached=600, tokens_reasoning=40)
    assert priced(call) == 400 * 2_500 + 600 * 1_250 + 60 * 10_000 + 40 * 12_000


def test_tokens_that_were_written_to_the_cache_may_cost_more() -> None:
    rates = ModelPrice(input=4, output=1, cached=1, cache_written=5)
    call = ModelCall("m", 1_000, 0, tokens_cached=300, tokens_cache_written=200)
    assert priced(call, m=rates) == 500 * 4_000 + 300 * 1_000 + 200 * 5_000
    assert priced(call, m=ModelPrice(input=4, output=1)) == 1_000 * 4_000
    assert priced(call._replace(tokens_cache_written=701)) is None
    table = GenaiPrices(provider="anthropic")
    claude = table.price(call._replace(model="claude-sonnet-4-5"))
    assert claude is not None
    assert claude.cost_nanos == 500 * 3_000 + 300 * 300 + 200 * 3_750


def test_parts_without_a_price_of_their_own_cost_what_the_others_do() -> None:
    call = ModelCall("m", 1_000, 100, tokens_cached=600, tokens_reasoning=40)
    plain = ModelPrice(input="2.50", output="10")
    assert priced(call, m=plain) == priced(ModelCall("m", 1_000, 100), m=plain) == 3_500_000


def test_costs_are_exact_and_rounded_once() -> None:
    a_third_of_a_nano = ModelPrice(input="0.0003333333333", output=0)
    assert priced(ModelCall("m", 1, 0), m=a_third_of_a_nano) == 0
    assert priced(ModelCall("m", 3_000_000, 0), m=a_third_of_a_nano) == 1_000_000
    assert priced(ModelCall("m", 10**12, 0), m=ModelPrice(input="0.1", output=0)) == 10**14


def test_counts_that_contradict_each_other_have_no_price() -> None:
    assert priced(ModelCall("m", 10, 10, tokens_cached=11)) is None
    assert priced(ModelCall("m", 10, 10, tokens_reasoning=11)) is None


def test_a_model_of_a_provider_goes_before_the_model() -> None:
    table = PriceList({"m": RATES, "cheap/m": ModelPrice(input=1, output=1)}, version="1")
    cheap = table.price(ModelCall("m", 1_000_000, 0, provider="cheap"))
    other = table.price(ModelCall("m", 1_000_000, 0, provider="other"))
    assert cheap is not None
    assert other is not None
    assert (cheap.cost_nanos, other.cost_nanos) == (1_000_000_000, 2_500_000_000)


def test_what_is_not_in_the_list_is_asked_of_the_other_one() -> None:
    behind = PriceList({"n": ModelPrice(input=1, output=1)}, version="behind")
    table = PriceList({"m": RATES}, version="1", otherwise=behind)
    price = table.price(ModelCall("n", 1, 1))
    assert price is not None
    assert price.version == "behind"
    assert table.price(ModelCall("o", 1, 1)) is None
    assert behind.price(ModelCall("o", 1, 1)) is None


@pytest.mark.parametrize("amount", ["", "much", "-1", "nan", "Infinity", 0.15, True, None, [1]])
def test_a_price_that_is_no_exact_number_is_refused(amount: Any) -> None:
    with pytest.raises(UsageError, match="a price of 'm'"):
        PriceList({"m": ModelPrice(input=amount, output=1)}, version="1")


def test_a_list_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(
        'version = "2026-11"\ncurrency = "EUR"\n'
        '[models."m"]\ninput = 0.1\noutput = "0.2"\ncached = 0\n'
    )
    price = PriceList.read(path).price(ModelCall("m", 3_000_000, 0, tokens_cached=1_000_000))
    assert price == Price(200_000_000, "EUR", "2026-11")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version",
        'version = "1"',
        'version = "1"\nmodels = 3',
        'version = "1"\n[models.m]\ninput = 1',
        'version = "1"\n[models.m]\ninput = 1\noutput = "much"',
        'version = "1"\n[models.m]\ninput = 1\noutput = 1\nthinking = 1',
        "[models.m]\ninput = 1\noutput = 1",
    ],
)
def test_a_file_that_is_no_list_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match="price"):
        PriceList.read(path)
    with pytest.raises(UsageError, match=r"nothing\.toml"):
        PriceList.read(tmp_path / "nothing.toml")


def test_the_package_knows_prices_of_today_and_of_cached_tokens() -> None:
    table = GenaiPrices()
    whole = table.price(ModelCall("gpt-4o", 1_000, 100, provider="openai"))
    assert whole is not None
    assert (whole.cost_nanos, whole.currency) == (3_500_000, "USD")
    assert whole.version.startswith("genai-prices 0.")
    cached = table.price(ModelCall("gpt-4o", 1_000, 100, provider="openai", tokens_cached=400))
    assert cached is not None
    assert cached.cost_nanos == 3_000_000


def test_reasoning_tokens_are_priced_once() -> None:
    table = GenaiPrices(provider="openai")
    plain = table.price(ModelCall("o1", 1_000, 1_000))
    thinking = table.price(ModelCall("o1", 1_000, 1_000, tokens_reasoning=600))
    assert plain == thinking
    assert plain is not None
    assert plain.cost_nanos == 75_000_000


def test_a_call_is_priced_by_the_time_it_was_made() -> None:
    table = GenaiPrices(provider="openai")
    early = table.price(ModelCall("o3", 1_000, 0, at="2025-05-01T00:00:00.000Z"))
    late = table.price(ModelCall("o3", 1_000, 0, at="2025-07-01T00:00:00.000Z"))
    assert early is not None
    assert late is not None
    assert (early.cost_nanos, late.cost_nanos) == (10_000_000, 2_000_000)


@pytest.mark.parametrize(
    "call",
    [
        ModelCall("no-such-model", 1, 1, provider="openai"),
        ModelCall("no-such-model", 1, 1),
        ModelCall("gpt-4o", 1, 1, provider="my-own-server"),
        ModelCall("gpt-4o", 1, 1, provider="openai", tokens_cached=2),
        ModelCall("gpt-4o", 1, 1, provider="openai", tokens_reasoning=2),
        ModelCall("voyage-multilingual-2", 1, 1, provider="voyageai"),
    ],
    ids=["model", "model without provider", "provider", "cached", "reasoning", "no output price"],
)
def test_what_the_package_does_not_know_has_no_price(call: ModelCall) -> None:
    assert GenaiPrices().price(call) is None


def test_without_the_package_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "genai_prices":
            raise ModuleNotFoundError(name)
        return whole(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'perdure\[prices\]'"):
        GenaiPrices()


def test_every_model_of_the_package_costs_to_the_billionth_what_the_package_says() -> None:
    """Most prices are asked of it once and multiplied from then on; no call may tell."""
    table, chance = GenaiPrices(), random.Random(1)
    models = [
        (provider.id, model.id)
        for provider in genai_prices.data_snapshot.get_snapshot().providers
        for model in provider.models
    ]
    priced = 0
    for provider, model in models * 2:
        tokens_in, tokens_out = chance.choice([0, 5, 1_000, 250_000]), chance.choice([0, 7, 900])
        month, hour = chance.randint(1, 12), chance.randint(0, 23)
        call = ModelCall(
            model,
            tokens_in,
            tokens_out,
            provider,
            chance.choice([None, 0, tokens_in // 3]),
            chance.choice([None, 0, tokens_out // 2]),
            f"202{chance.choice('456')}-{month:02}-11T{hour:02}:40:00.000Z",
            chance.choice([None, 0, tokens_in // 5]),
        )
        price = table.price(call)
        if price is not None:
            usage = genai_prices.Usage(
                input_tokens=call.tokens_in,
                output_tokens=call.tokens_out,
                cache_read_tokens=call.tokens_cached,
                cache_write_tokens=call.tokens_cache_written,
                output_reasoning_tokens=call.tokens_reasoning,
            )
            at = datetime.fromisoformat(call.at or "")
            said = genai_prices.calc_price(
                usage, model, provider_id=provider, genai_request_timestamp=at
            )
            assert price.cost_nanos == int((said.total_price * 10**9).to_integral_value()), call
            priced += 1
    assert priced > len(models)
