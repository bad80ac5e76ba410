"""What model calls cost: the sums of a store, priced as they are read where they were not."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Final, NamedTuple, get_args

from perdure.core import identity
from perdure.core.effects import epoch_ms
from perdure.core.pricing import NANOS, ModelCall, Price, PriceTable
from perdure.core.records import UsageRecord
from perdure.core.wire import camel
from perdure.errors import UsageError
from perdure.observe.trace_records import TraceSpan
from perdure.store.ledger import (
    Grouping,
    Tallies,
    UsageEntry,
    UsageQuery,
    UsageSum,
    is_unpriced,
)
from perdure.store.protocol import RunStore
from perdure.store.upkeep import Upkeep, upkeep_of

_OF_CALLS: Final = (
    "state",
    "epoch",
    "call",
    "step_index",
    "provider",
    "request_id",
    "tokens_cache_written",
    "cost_nanos",
    "currency",
    "price_version",
)
"""What of a model call are attributes of its span."""


class UsageSummary(NamedTuple):
    """Sums in groups, the newest first, and the sum of all of them, also of those left out.

    `is_whole` is False where `limit` has left groups out. `priced` is the number of calls whose
    cost was not recorded, and comes from the table.
    """

    sums: Sequence[UsageSum]
    total: UsageSum
    is_whole: bool
    priced: int


async def usage_summary(
    store: RunStore,
    *,
    by: Grouping = "day",
    tenant: str | None = None,
    session_id: str | None = None,
    since: str | None = None,
    until: str | None = None,
    limit: int | None = None,
    prices: PriceTable | None = None,
) -> UsageSummary:
    """Add up the model calls of a store, of all tenants unless `tenant` names one.

    `since` and `until` are moments as they are stored (`2026-01-31T09:05:00.000Z`, or the
    beginning of one): calls that were intended at `since` or later, and before `until`. With
    `prices`, calls without a recorded cost are priced, each at its own time; nothing is written.
    Raises UsageError for a store without `upkeep()`, and for a `by` that is none.
    """
    if by not in get_args(Grouping):
        raise UsageError(f"by must be one of {', '.join(get_args(Grouping))}, not {by!r:.40}")
    upkeep = upkeep_of(store)
    wanted = UsageQuery(tenant, session_id, since, until)
    tallies, all_calls = Tallies(by), Tallies(None)
    more = None if limit is None else limit + 1
    found = await upkeep.sum_usage(by, wanted, limit=more)
    is_whole = limit is None or len(found) <= limit
    tallies.merge(found[:limit])
    if is_whole:
        all_calls.merge(each._replace(key=None, tenant=None) for each in found)
    else:
        all_calls.merge(await upkeep.sum_usage(None, wanted))
    priced = 0
    if prices is not None and any(each.unpriced for each in all_calls.sums()):
        async for entry in _unpriced(upkeep, wanted):
            price = price_of(entry.usage, prices)
            if price is not None:
                priced += 1
                tallies.price(entry, price)
                all_calls.price(entry, price)
    total = next(iter(all_calls.sums()), UsageSum())
    return UsageSummary(tallies.sums(), total, is_whole, priced)


async def run_usage(store: RunStore, run_id: str, *, prices: PriceTable | None = None) -> UsageSum:
    """Return what the model calls of one run of the store's tenant came to, over all attempts.

    With `prices`, calls without a recorded cost are priced. Raises RunNotFoundError.
    """
    stored_id = identity.stored_id(store.tenant, run_id)
    tallies = Tallies("run")
    for usage in (await store.read_details(run_id)).usage:
        entry = UsageEntry(stored_id, store.tenant, None, usage)
        tallies.add([entry])
        price = None if prices is None or not is_unpriced(usage) else price_of(usage, prices)
        if price is not None:
            tallies.price(entry, price)
    return next(iter(tallies.sums()), UsageSum(stored_id, store.tenant))


def price_of(usage: UsageRecord, prices: PriceTable) -> Price | None:
    """Return what the table says that a call costs; None if it, or what the call used, is not
    known.
    """
    if usage.model is None or usage.tokens_in is None or usage.tokens_out is None:
        return None
    return prices.price(
        ModelCall(
            usage.model,
            usage.tokens_in,
            usage.tokens_out,
            provider=usage.provider,
            tokens_cached=usage.tokens_cached,
            tokens_reasoning=usage.tokens_reasoning,
            at=usage.intended_at,
            tokens_cache_written=usage.tokens_cache_written,
        )
    )


def span_of_usage(run_id: str, usage: UsageRecord) -> TraceSpan:
    """Return a model call of the ledger as a span of its run's trace.

    What is not known of it stays so: no zero is made up, and a cost in another currency than
    dollars is among the attributes only. A call that was intended and never settled has no end.
    """
    ended_at = None if usage.settled_at is None else epoch_ms(usage.settled_at)
    begun_at = ended_at if usage.intended_at is None else epoch_ms(usage.intended_at)
    nanos = usage.cost_nanos if usage.currency == "USD" else None
    known = usage._asdict()
    return TraceSpan(
        span_id=f"{run_id}:call:{usage.epoch}:{usage.call}",
        run_id=run_id,
        kind="llm",
        name=usage.model or "model call",
        started_at=begun_at or 0,
        ended_at=ended_at,
        status="ok" if usage.state == "settled" else None,
        attributes={camel(name): known[name] for name in _OF_CALLS if known[name] is not None},
        model=usage.model,
        input_tokens=usage.tokens_in,
        output_tokens=usage.tokens_out,
        cached_tokens=usage.tokens_cached,
        reasoning_tokens=usage.tokens_reasoning,
        cost_usd=None if nanos is None else nanos / NANOS,
    )


async def _unpriced(upkeep: Upkeep, wanted: UsageQuery) -> AsyncGenerator[UsageEntry, None]:
    after: str | None = None
    while True:
        page = await upkeep.find_unpriced(wanted, after=after)
        for entry in page.entries:
            yield entry
        after = page.after
        if after is None:
            return
