"""The summary of a store's model calls: every call is in it, and unknown is not zero."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from perdure.core.changes import IntendUsage, SettleUsage
from perdure.core.limits import LEASE_MS
from perdure.core.pricing import ModelCall, Price
from perdure.core.records import SessionKey, UsageRecord
from perdure.errors import RunNotFoundError, UsageError
from perdure.observe.ledger import price_of, run_usage, span_of_usage, usage_summary
from perdure.observe.prices import ModelPrice, PriceList
from perdure.store.forwarding import ForwardingStore
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.testing import ManualClock
from perdure.testing.samples import ended, hold, manifest

TABLE = PriceList({"m": ModelPrice(input=1, output=2)}, version="1", currency="EUR")
HOUR_MS = 3_600_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["memory:", "sqlite:{}/runs.db", "file:{}/runs"])
async def store(
    request: pytest.FixtureRequest, clock: ManualClock, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunStore]:
    url = cast("str", request.param).format(tmp_path_factory.mktemp("ledger"))
    store = await open_store(url, clock=clock)
    yield store
    await store.close()


def used(call: int = 0, *, tokens: int = 1_000, **more: Any) -> SettleUsage:
    settled = SettleUsage(call, model="m", tokens_in=tokens, tokens_out=tokens)
    return settled._replace(**more)


async def answered(store: RunStore, run_id: str, *settled: SettleUsage, turn: int = 0) -> None:
    lease = await hold(store, run_id, session=SessionKey("s", turn))
    await store.write(lease, *(IntendUsage(each.call) for each in settled))
    await store.write(lease, *settled, ended("completed"))


async def test_an_empty_store_has_no_calls(store: RunStore) -> None:
    summary = await usage_summary(store, prices=TABLE)
    assert (list(summary.sums), summary.total.calls, summary.is_whole) == ([], 0, True)


async def test_what_was_not_priced_is_priced_as_it_is_read(store: RunStore) -> None:
    paid = used(1, cost_nanos=7, currency="EUR")
    await answered(store, "a", used(0), paid, used(2, model="x"), SettleUsage(3, "unknown"))
    before = await usage_summary(store, by="model")
    assert (before.priced, before.total.unpriced, dict(before.total.cost_nanos)) == (
        0,
        3,
        {"EUR": 7},
    )
    summary = await usage_summary(store, by="model", prices=TABLE)
    assert summary.priced == 1
    assert (summary.total.calls, summary.total.unpriced) == (4, 2)
    assert dict(summary.total.cost_nanos) == {"EUR": 3_000_007}
    models = {each.key: (dict(each.cost_nanos), each.unpriced) for each in summary.sums}
    assert models == {"m": ({"EUR": 3_000_007}, 0), "x": ({}, 1), None: ({}, 1)}
    assert await usage_summary(store, by="model") == before


async def test_many_calls_are_priced_over_all_pages(store: RunStore) -> None:
    for number in range(3):
        settled = [used(call) for call in range(700)]
        await answered(store, f"run-{number}", *settled, turn=number)
    summary = await usage_summary(store, by="run", prices=TABLE)
    assert (summary.priced, summary.total.unpriced) == (2_100, 0)
    assert dict(summary.total.cost_nanos) == {"EUR": 2_100 * 3_000_000}
    assert [dict(each.cost_nanos)["EUR"] for each in summary.sums] == [2_100_000_000] * 3


async def test_the_total_is_of_all_groups_also_of_those_left_out(
    store: RunStore, clock: ManualClock
) -> None:
    for number in range(3):
        await answered(store, f"run-{number}", used(tokens=10**number), turn=number)
        clock.advance(1)
    summary = await usage_summary(store, by="run", limit=2, prices=TABLE)
    assert [each.key for each in summary.sums] == ["run-2", "run-1"]
    assert (summary.total.tokens_in, summary.is_whole) == (111, False)
    assert dict(summary.total.cost_nanos) == {"EUR": 3 * 111_000}
    assert [dict(each.cost_nanos) for each in summary.sums] == [{"EUR": 300_000}, {"EUR": 30_000}]
    whole = await usage_summary(store, by="run", limit=3, prices=TABLE)
    assert (len(whole.sums), whole.is_whole, whole.total) == (3, True, summary.total)


async def test_it_is_of_a_tenant_a_session_and_a_time_where_these_are_named(
    store: RunStore, clock: ManualClock
) -> None:
    moments: list[str] = []
    for number, tenant in enumerate(("", "acme", "acme")):
        moments.append(clock.iso())
        await answered(store.for_tenant(tenant), "a" * (number + 1), used(), turn=number)
        clock.advance(HOUR_MS)

    async def calls(**wanted: Any) -> int:
        return (await usage_summary(store, **wanted, prices=TABLE)).priced

    assert await calls() == 3
    assert await calls(tenant="acme") == 2
    assert await calls(tenant="acme", since=moments[2]) == 1
    assert await calls(until=moments[1]) == 1
    assert await calls(tenant="", session_id="s") == 1
    assert await calls(session_id="other") == 0


async def test_a_call_is_priced_by_the_time_it_was_made(
    store: RunStore, clock: ManualClock
) -> None:
    asked: list[ModelCall] = []

    class Asked:
        def price(self, call: ModelCall) -> Price | None:
            asked.append(call)
            return None

    at = clock.iso()
    parts = {"tokens_cached": 3, "tokens_reasoning": 4, "tokens_cache_written": 5}
    await answered(store, "a", used(provider="p", **parts))
    summary = await usage_summary(store, prices=Asked())
    assert asked == [ModelCall("m", 1_000, 1_000, "p", 3, 4, at, 5)]
    assert (summary.priced, summary.total.unpriced) == (0, 1)


async def test_a_run_is_added_up_over_all_of_its_attempts(
    store: RunStore, clock: ManualClock
) -> None:
    acme = store.for_tenant("acme")
    await acme.write(await hold(acme, "run"), IntendUsage(0, model="m"))
    clock.advance(LEASE_MS)
    lease = await hold(acme, "run", worker_id="bob")
    await acme.write(lease, IntendUsage(0), IntendUsage(1))
    await acme.write(lease, used(0), used(1, cost_nanos=7, currency="EUR"))
    found = await run_usage(acme, "run", prices=TABLE)
    assert (found.key, found.tenant) == ("@acme/run", "acme")
    assert (found.calls, found.settled, found.unknown, found.unpriced) == (3, 2, 1, 1)
    assert dict(found.cost_nanos) == {"EUR": 3_000_007}
    assert dict((await run_usage(acme, "run")).cost_nanos) == {"EUR": 7}
    [sum_of_store] = (await usage_summary(store, by="run", prices=TABLE)).sums
    assert found == sum_of_store
    with pytest.raises(RunNotFoundError):
        await run_usage(store, "run")
    await store.enqueue("quiet", manifest(), handler="h")
    assert (await run_usage(store, "quiet")).calls == 0


def test_a_call_that_is_not_known_has_no_price() -> None:
    whole = UsageRecord(1, 0, "settled", model="m", tokens_in=1, tokens_out=1)
    price = price_of(whole, TABLE)
    assert price is not None
    assert price.cost_nanos == 3_000
    for name in ("model", "tokens_in", "tokens_out"):
        lacking: dict[str, Any] = {name: None}
        assert price_of(whole._replace(**lacking), TABLE) is None


async def test_a_call_is_a_span_of_its_run_with_what_the_ledger_says(store: RunStore) -> None:
    paid = used(1, cost_nanos=2_500_000, currency="USD", provider="acme", tokens_cached=3)
    await answered(store, "a", used(0, cost_nanos=7, currency="EUR"), paid)
    details = await store.read_details("a")
    euros, dollars = [span_of_usage("a", each) for each in details.usage]
    assert (dollars.kind, dollars.name, dollars.status) == ("llm", "m", "ok")
    assert (dollars.input_tokens, dollars.output_tokens, dollars.cached_tokens) == (1000, 1000, 3)
    assert (dollars.cost_usd, euros.cost_usd) == (0.0025, None)
    assert dollars.ended_at is not None
    assert dollars.ended_at >= dollars.started_at > 0
    assert dollars.attributes is not None
    assert dollars.attributes["provider"] == "acme"
    assert euros.attributes is not None
    assert (euros.attributes["costNanos"], euros.attributes["currency"]) == (7, "EUR")
    assert dollars.span_id != euros.span_id


def test_a_call_that_nobody_heard_of_again_is_a_span_without_an_end_and_without_zeros() -> None:
    usage = UsageRecord(3, 0, "intended", intended_at="2026-05-10T00:00:00.000Z")
    span = span_of_usage("a", usage)
    assert (span.span_id, span.started_at) == ("a:call:3:0", 1_778_371_200_000)
    assert (span.status, span.ended_at, span.cost_usd, span.input_tokens) == (None,) * 4
    assert span.attributes == {"state": "intended", "epoch": 3, "call": 0}


async def test_a_store_without_upkeep_has_no_summary(store: RunStore) -> None:
    with pytest.raises(UsageError, match="ForwardingStore"):
        await usage_summary(cast("RunStore", ForwardingStore(store)))
