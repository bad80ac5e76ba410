"""A store with prices records what a call costs when it is settled, and is a whole store."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import cast

import pytest

from perdure.core.changes import IntendUsage, SettleUsage
from perdure.core.limits import LEASE_MS
from perdure.core.pricing import ModelCall, Price
from perdure.core.records import UsageRecord
from perdure.store.forwarding import ForwardingStore
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.opening import open_store
from perdure.store.priced import ASKED_MAX, with_prices
from perdure.store.protocol import RunStore, ThreadRenewal
from perdure.store.upkeep import RunQuery, upkeep_of
from perdure.testing import ManualClock, StoreLab, check_run_store
from perdure.testing.samples import ended, hold


class Tariff:
    """A nano for each token, of models whose name begins with `m`."""

    def __init__(self) -> None:
        self.asked: list[ModelCall] = []

    def price(self, call: ModelCall) -> Price | None:
        self.asked.append(call)
        if call.model == "broken":
            raise ZeroDivisionError("this table is broken")
        if not call.model.startswith("m"):
            return None
        return Price(call.tokens_in + call.tokens_out, "EUR", "t-1")


@pytest.fixture
async def inner() -> AsyncIterator[RunStore]:
    store = await open_store("memory:")
    yield store
    await store.close()


async def usage(store: RunStore, run_id: str = "run") -> list[UsageRecord]:
    return list((await store.read_details(run_id)).usage)


async def test_a_priced_store_passes_the_whole_contract() -> None:
    def new_lab() -> StoreLab:
        data = MemoryData()

        async def open_handle(clock: ManualClock, code_version: str | None) -> RunStore:
            return with_prices(MemoryStore(data, clock=clock, code_version=code_version), Tariff())

        return StoreLab(open_handle)

    assert await check_run_store(new_lab) > 300


async def test_a_call_gets_its_cost_when_it_is_settled(inner: RunStore) -> None:
    store = with_prices(inner, Tariff())
    lease = await hold(store)
    await store.write(lease, IntendUsage(0, model="m"), IntendUsage(1, model="m"))
    await store.write(lease, SettleUsage(0, tokens_in=30, tokens_out=4), ended("completed"))
    await store.settle_usage(lease, SettleUsage(1, tokens_in=5, tokens_out=6))
    costs = [(row.cost_nanos, row.currency, row.price_version) for row in await usage(inner)]
    assert costs == [(34, "EUR", "t-1"), (11, "EUR", "t-1")]


async def test_the_answer_names_the_model_and_else_the_intent(inner: RunStore) -> None:
    table = Tariff()
    store = with_prices(inner, table)
    lease = await hold(store)
    await store.write(lease, IntendUsage(0, provider="p", model="m"), IntendUsage(1, model="m"))
    named = SettleUsage(
        1,
        model="m-2",
        provider="q",
        tokens_in=3,
        tokens_out=2,
        tokens_cached=1,
        tokens_reasoning=0,
        tokens_cache_written=2,
    )
    await store.write(lease, SettleUsage(0, tokens_in=1, tokens_out=1), named)
    assert table.asked == [
        ModelCall("m", 1, 1, provider="p"),
        ModelCall("m-2", 3, 2, "q", tokens_cached=1, tokens_reasoning=0, tokens_cache_written=2),
    ]


async def test_what_is_not_known_stays_unknown(inner: RunStore) -> None:
    store = with_prices(inner, Tariff())
    lease = await hold(store)
    settled = [
        SettleUsage(0, model="x", tokens_in=1, tokens_out=1),
        SettleUsage(1, model="m", tokens_in=1),
        SettleUsage(2, tokens_in=1, tokens_out=1),
        SettleUsage(3, "unknown", model="m"),
    ]
    await store.write(lease, *(IntendUsage(each.call) for each in settled), *settled)
    rows = await usage(inner)
    assert [(row.state, row.cost_nanos) for row in rows] == [
        ("settled", None),
        ("settled", None),
        ("settled", None),
        ("unknown", None),
    ]


async def test_a_cost_that_was_given_is_kept(inner: RunStore) -> None:
    store = with_prices(inner, Tariff())
    lease = await hold(store)
    billed = SettleUsage(0, model="m", tokens_in=1, tokens_out=1, cost_nanos=99, currency="USD")
    await store.write(lease, IntendUsage(0), billed)
    [row] = await usage(inner)
    assert (row.cost_nanos, row.currency, row.price_version) == (99, "USD", None)


async def test_a_broken_table_costs_no_record(
    inner: RunStore, caplog: pytest.LogCaptureFixture
) -> None:
    store = with_prices(inner, Tariff())
    lease = await hold(store)
    with caplog.at_level(logging.ERROR, "perdure.prices"):
        broken = SettleUsage(0, model="broken", tokens_in=1, tokens_out=1)
        await store.write(lease, IntendUsage(0), broken)
    [row] = await usage(inner)
    assert (row.state, row.tokens_in, row.cost_nanos) == ("settled", 1, None)
    assert "'broken'" in caplog.text


async def test_calls_without_an_answer_are_not_remembered_for_ever(inner: RunStore) -> None:
    store = with_prices(inner, Tariff())
    lease = await hold(store)
    for first in range(0, ASKED_MAX + 1, 1_000):
        await store.write(lease, *(IntendUsage(first + n, model="m") for n in range(1_000)))
    oldest, newest = (SettleUsage(n, tokens_in=1, tokens_out=1) for n in (0, ASKED_MAX))
    await store.write(lease, oldest, newest)
    rows = {row.call: row.cost_nanos for row in await usage(inner)}
    assert (rows[0], rows[ASKED_MAX]) == (None, 2)


async def test_a_view_of_a_tenant_has_the_prices_too(inner: RunStore) -> None:
    store = with_prices(inner, Tariff()).for_tenant("acme")
    lease = await hold(store)
    await store.write(lease, IntendUsage(0, model="m"))
    await store.write(lease, SettleUsage(0, tokens_in=1, tokens_out=1))
    assert [row.cost_nanos for row in await usage(inner.for_tenant("acme"))] == [2]
    assert [run.run_id for run in await upkeep_of(store).find_runs(RunQuery())] == ["run"]


async def test_leases_are_renewed_from_a_thread_where_the_store_can(inner: RunStore) -> None:
    store = with_prices(inner, Tariff())
    assert isinstance(store, ThreadRenewal)
    lease = await hold(store)
    renewer = store.open_renewer()
    assert renewer.renew([lease], LEASE_MS) == {lease: False}
    renewer.close()
    bare = cast("RunStore", ForwardingStore(inner))
    assert not isinstance(with_prices(bare, Tariff()), ThreadRenewal)
