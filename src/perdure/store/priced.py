"""A store that records the cost of a model call with what it used."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Final

from perdure.core.changes import Change, IntendUsage, SettleUsage
from perdure.core.pricing import ModelCall, Price, PriceTable
from perdure.core.records import Lease, Written
from perdure.store.erasure import Erasure, erasure_of
from perdure.store.forwarding import ForwardingStore
from perdure.store.protocol import Renewer, RunStore, ThreadRenewal
from perdure.store.scheduling import Schedules, schedules_of
from perdure.store.upkeep import Upkeep, upkeep_of

logger = logging.getLogger("perdure.prices")

ASKED_MAX: Final = 10_000
"""So many calls are remembered whose answers have not come."""

_Call = tuple[str, int, int]
_Asked = tuple[str | None, str | None]


def with_prices(store: RunStore, prices: PriceTable) -> RunStore:
    """Return `store`, which records costs by `prices`; close the returned one in its stead.

    The cost of a call is fixed when the call is settled, with its currency and the version of the
    table. What has no price stays without a cost, and may be priced when it is read. A table that
    fails is logged, and costs nothing but its answer.
    """
    return _priced(store, _Pricing(prices))


def _priced(store: RunStore, pricing: _Pricing) -> PricedStore:
    return (_ThreadedPricedStore if isinstance(store, ThreadRenewal) else PricedStore)(
        store, pricing
    )


class _Pricing:
    """What calls cost. It remembers which model was asked, where the answer does not say."""

    def __init__(self, prices: PriceTable) -> None:
        self._prices = prices
        self._asked: OrderedDict[_Call, _Asked] = OrderedDict()

    def changed(self, lease: Lease, change: Change) -> Change:
        """Return the change as it is recorded."""
        match change:
            case IntendUsage():
                self._asked[lease.run_id, lease.epoch, change.call] = change.provider, change.model
                while len(self._asked) > ASKED_MAX:
                    self._asked.popitem(last=False)
            case SettleUsage():
                return self.settled(lease, change)
            case _:
                pass
        return change

    def settled(self, lease: Lease, usage: SettleUsage) -> SettleUsage:
        """Return the settlement with its cost, if it is known."""
        asked = self._asked.pop(
            (lease.run_id, usage.epoch or lease.epoch, usage.call), (None, None)
        )
        model = usage.model or asked[1]
        if usage.state != "settled" or usage.cost_nanos is not None or model is None:
            return usage
        if usage.tokens_in is None or usage.tokens_out is None:
            return usage
        call = ModelCall(
            model,
            usage.tokens_in,
            usage.tokens_out,
            provider=usage.provider or asked[0],
            tokens_cached=usage.tokens_cached,
            tokens_reasoning=usage.tokens_reasoning,
            tokens_cache_written=usage.tokens_cache_written,
        )
        price = self.price(call)
        if price is None:
            return usage
        return usage._replace(
            cost_nanos=price.cost_nanos, currency=price.currency, price_version=price.version
        )

    def price(self, call: ModelCall) -> Price | None:
        """Return what the call costs; a table that fails knows no price."""
        try:
            return self._prices.price(call)
        except Exception:
            logger.exception("the price of a call of %r is not recorded", call.model)
            return None


class PricedStore(ForwardingStore):
    """A whole RunStore over another one; `with_prices` makes it."""

    def __init__(self, inner: RunStore, pricing: _Pricing) -> None:
        super().__init__(inner)
        self._pricing = pricing

    async def write(self, lease: Lease, *changes: Change) -> Written:
        priced = [self._pricing.changed(lease, change) for change in changes]
        return await super().write(lease, *priced)

    async def settle_usage(self, lease: Lease, usage: SettleUsage) -> None:
        await super().settle_usage(lease, self._pricing.settled(lease, usage))

    @property
    def prices(self) -> PriceTable | None:
        """The table by which costs are recorded."""
        return self._pricing

    def upkeep(self) -> Upkeep:
        return upkeep_of(self._inner)

    def erasure(self) -> Erasure:
        return erasure_of(self._inner)

    def schedules(self) -> Schedules:
        return schedules_of(self._inner)

    def for_tenant(self, tenant: str) -> PricedStore:
        """Return the view of another tenant, with the same prices."""
        return _priced(self._inner.for_tenant(tenant), self._pricing)


class _ThreadedPricedStore(PricedStore):
    """A priced store over one that renews leases from a thread."""

    def open_renewer(self) -> Renewer:
        return self._open_inner_renewer()
