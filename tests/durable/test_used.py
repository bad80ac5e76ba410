"""What a backend tells of its use within a step is in the ledger, without a word of the caller."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from perdure.backends.protocol import Prompt
from perdure.backends.scripted import ScriptedBackend
from perdure.core import frames
from perdure.core.changes import SettleUsage
from perdure.core.pricing import ModelCall, PriceTable, prices_of
from perdure.core.records import Retry, UsageRecord
from perdure.durable.context import DurableContext
from perdure.durable.runner import run_durable
from perdure.durable.scope import report_usage
from perdure.durable.used import Told, used_together
from perdure.observe.prices import ModelPrice, PriceList
from perdure.store.forwarding import ForwardingStore
from perdure.store.memory import MemoryStore
from perdure.store.priced import with_prices
from perdure.testing.samples import manifest

END = frames.upstream_end("stop")


def used(tokens_in: int, tokens_out: int | None = None, *, model: str = "m") -> frames.Frame:
    return frames.usage(provider="p", model=model, tokens_in=tokens_in, tokens_out=tokens_out)


async def ask(*script: frames.Frame) -> None:
    async for _ in ScriptedBackend([*script, END]).stream(Prompt([])):
        pass


async def ledger(body: Callable[[], Awaitable[None]], *, retry: Retry | None = None) -> UsageRecord:
    """Return the last row that the calls of one step leave."""

    async def task(context: DurableContext) -> None:
        await context.step("ask", body, kind="llm", retry=retry)

    store = MemoryStore()
    await run_durable(store, run_id="run", manifest=manifest(), task=task)
    return (await store.read_details("run")).usage[-1]


def counts(row: UsageRecord) -> tuple[str, str | None, int | None, int | None]:
    return row.state, row.model, row.tokens_in, row.tokens_out


async def test_a_call_is_settled_by_what_its_backend_tells() -> None:
    assert counts(await ledger(lambda: ask(used(7, 3)))) == ("settled", "m", 7, 3)


async def test_two_calls_of_one_step_are_counted_together() -> None:
    async def both() -> None:
        await ask(used(7, 3))
        await ask(used(10, 1))

    assert counts(await ledger(both)) == ("settled", "m", 17, 4)


async def test_a_call_that_tells_nothing_makes_the_sum_unknown() -> None:
    async def both() -> None:
        await ask(used(7, 3))
        await ask(frames.text("no count"))

    assert counts(await ledger(both)) == ("settled", "m", None, None)


async def test_a_step_that_asks_nobody_stays_unknown() -> None:
    async def nobody() -> None:
        pass

    assert counts(await ledger(nobody)) == ("unknown", None, None, None)


async def test_what_is_reported_counts_instead() -> None:
    async def corrected() -> None:
        await ask(used(7, 3))
        report_usage(model="mine", tokens_in=1, tokens_out=1)

    assert counts(await ledger(corrected)) == ("settled", "mine", 1, 1)


async def test_each_try_has_a_call_of_its_own() -> None:
    tries = iter((True, False))

    async def shaky() -> None:
        await ask(used(7, 3))
        if next(tries):
            raise ConnectionError("the answer was no good")

    row = await ledger(shaky, retry=Retry(tries_max=2, backoff_ms=0))
    assert counts(row) == ("settled", "m", 7, 3)
    assert row.call == 1


@pytest.mark.parametrize(
    ("told", "known"),
    [
        ([{"in": 1, "model": "a"}, {"in": 2, "model": "b"}], SettleUsage(4, tokens_in=3)),
        ([{"in": 1, "cached": 1}, {"in": 2}], SettleUsage(4, tokens_in=3)),
        ([None, {"in": 2, "model": "a"}], SettleUsage(4, model="a")),
        ([{"in": 0, "out": 0}], SettleUsage(4, tokens_in=0, tokens_out=0)),
    ],
)
def test_what_answers_do_not_share_or_do_not_say_is_not_known(
    told: list[Told | None], known: SettleUsage
) -> None:
    assert used_together(4, told) == known


CHEAP = ModelPrice(input=1, output=2)
DEAR = ModelPrice(input=10, output=20)


async def costs(*asked: frames.Frame, prices: PriceTable) -> tuple[int | None, str | None]:
    """Return cost and version of the one row of a step that asks several models."""

    async def both() -> None:
        for each in asked:
            await ask(each)

    async def task(context: DurableContext) -> None:
        await context.step("ask", both, kind="llm")

    store = with_prices(MemoryStore(), prices)
    await run_durable(store, run_id="run", manifest=manifest(), task=task)
    [row] = (await store.read_details("run")).usage
    assert row.currency == (None if row.cost_nanos is None else "USD")
    return row.cost_nanos, row.price_version


async def test_two_models_of_one_step_cost_what_both_cost() -> None:
    prices = PriceList({"cheap": CHEAP, "dear": DEAR}, version="v-1")
    asked = (used(7, 3, model="cheap"), used(10, 1, model="dear"))
    # A millionth of a dollar is a thousand nanos.
    assert await costs(*asked, prices=prices) == ((7 + 6 + 100 + 20) * 1_000, "v-1")


async def test_prices_of_two_tables_are_named_both() -> None:
    other = PriceList({"dear": DEAR}, version="v-2")
    prices = PriceList({"cheap": CHEAP}, version="v-1", otherwise=other)
    asked = (used(7, 3, model="cheap"), used(10, 1, model="dear"), used(1, 0, model="cheap"))
    assert await costs(*asked, prices=prices) == ((7 + 6 + 100 + 20 + 1) * 1_000, "v-1, v-2")


@pytest.mark.parametrize(
    "unknown",
    [used(10, 1, model="new"), used(10, model="dear"), frames.text("no count")],
    ids=["no price", "no count", "nothing told"],
)
async def test_what_one_of_two_models_costs_is_not_the_cost_of_both(unknown: frames.Frame) -> None:
    prices = PriceList({"cheap": CHEAP, "dear": DEAR}, version="v-1")
    asked = (used(7, 3, model="cheap"), used(1, 1, model="dear"), unknown)
    assert await costs(*asked, prices=prices) == (None, None)


async def test_amounts_of_two_currencies_are_no_sum() -> None:
    euros = PriceList({"dear": DEAR}, version="v-2", currency="EUR")
    prices = PriceList({"cheap": CHEAP}, version="v-1", otherwise=euros)
    asked = (used(7, 3, model="cheap"), used(10, 1, model="dear"))
    assert await costs(*asked, prices=prices) == (None, None)


async def test_a_store_around_a_priced_one_has_its_prices() -> None:
    prices = PriceList({"cheap": CHEAP}, version="v-1")
    priced = with_prices(MemoryStore(), prices)
    around = prices_of(ForwardingStore(priced.for_tenant("acme")))
    assert around is not None
    assert around.price(ModelCall("cheap", 1, 1)) == prices.price(ModelCall("cheap", 1, 1))
    assert prices_of(MemoryStore()) is None
