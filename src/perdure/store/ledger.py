"""The ledger of model calls: what is asked of it, and what it adds up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from perdure.core.pricing import Price
from perdure.core.records import UsageRecord

Grouping = Literal["run", "session", "tenant", "day", "model"]
GROUPINGS: Final[tuple[Grouping, ...]] = ("day", "session", "tenant", "run", "model")

UNKNOWN_CURRENCY: Final = "?"
"""Stands for the currency of a cost that was recorded without one."""

_COUNTS: Final = (
    "calls",
    "settled",
    "unknown",
    "running",
    "uncounted",
    "unpriced",
)
_TOKENS: Final = (
    "tokens_in",
    "tokens_out",
    "tokens_cached",
    "tokens_reasoning",
    "tokens_cache_written",
)
_OF_TENANTS: Final = ("run", "session", "tenant")
_DAY: Final = len("2026-01-31")


class UsageQuery(NamedTuple):
    """Which model calls are wanted: those that have everything that is not None here.

    `since` and `until` are moments as they are stored: intended at `since` or later, and before
    `until`. A session is one of a tenant: name both, and it is found by its index.
    """

    tenant: str | None = None
    session_id: str | None = None
    since: str | None = None
    until: str | None = None


class UsageEntry(NamedTuple):
    """One model call and whose it is; `run_id` is a stored id."""

    run_id: str
    tenant: str
    session_id: str | None
    usage: UsageRecord


class UsagePage(NamedTuple):
    """One page of a search for calls; `after` goes on behind it, None: that was all.

    A page may be empty and yet not the last.
    """

    entries: Sequence[UsageEntry]
    after: str | None


class UsageSum(NamedTuple):
    """What some model calls came to. Sums are of what is known; the counts beside say how much
    is not.

    `key` is the stored id of a run, a session, a tenant, a day (UTC) or a model; None: the calls
    that have none. `tenant` is None where the calls of several are in one sum. Of the calls,
    `settled` have an answer, `unknown` may have been billed and never will be known, `running` are
    under way. Tokens are those of the calls of which they were told, None where nobody told any:
    an unknown number is no zero. `uncounted` calls said not both how many tokens went in and came
    out. `cost_nanos` are billionths by currency, `unpriced` the calls that are not in them,
    `price_versions` the versions of the tables that priced the others, by name. `first_at` and
    `last_at` are the moments at which the first and the last call were about to be made.
    """

    key: str | None = None
    tenant: str | None = None
    calls: int = 0
    settled: int = 0
    unknown: int = 0
    running: int = 0
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_cached: int | None = None
    tokens_reasoning: int | None = None
    tokens_cache_written: int | None = None
    uncounted: int = 0
    cost_nanos: Mapping[str, int] = MappingProxyType({})
    unpriced: int = 0
    first_at: str | None = None
    last_at: str | None = None
    price_versions: tuple[str, ...] = ()


def group_of(entry: UsageEntry, by: Grouping | None) -> tuple[str | None, str | None]:
    """Return the key and the tenant of the sum that a call belongs to."""
    keys: Mapping[str | None, str | None] = {
        "run": entry.run_id,
        "session": entry.session_id,
        "tenant": entry.tenant,
        "day": (entry.usage.intended_at or "")[:_DAY],
        "model": entry.usage.model,
    }
    return keys.get(by), entry.tenant if by in _OF_TENANTS else None


def is_wanted(entry: UsageEntry, wanted: UsageQuery) -> bool:
    """Return whether the call is one of the wanted."""
    at = entry.usage.intended_at or ""
    return (
        wanted.tenant in (None, entry.tenant)
        and wanted.session_id in (None, entry.session_id)
        and (wanted.since is None or at >= wanted.since)
        and (wanted.until is None or at < wanted.until)
    )


def is_unpriced(usage: UsageRecord) -> bool:
    """Return whether the call has no cost, and all that a price table asks for."""
    return (
        usage.state == "settled"
        and usage.cost_nanos is None
        and None not in (usage.model, usage.tokens_in, usage.tokens_out)
    )


class Tallies:
    """Sums of calls that are counted one by one, in groups."""

    def __init__(self, by: Grouping | None) -> None:
        self._by: Grouping | None = by
        self._tallies: dict[tuple[str | None, str | None], Tally] = {}

    def add(self, entries: Iterable[UsageEntry]) -> None:
        """Count more calls."""
        for entry in entries:
            self._of(group_of(entry, self._by)).add(entry.usage)

    def merge(self, sums: Iterable[UsageSum]) -> None:
        """Count the calls of other sums by the same groups."""
        for each in sums:
            self._of((each.key, each.tenant)).merge(each)

    def price(self, entry: UsageEntry, price: Price) -> None:
        """Add the cost of a call that was counted without; one of no group is left out."""
        tally = self._tallies.get(group_of(entry, self._by))
        if tally is not None:
            tally.price(price)

    def sums(self, limit: int | None = None) -> list[UsageSum]:
        """Return what was counted so far, by the latest call, the newest first, then by key."""
        sums = [tally.sum() for tally in self._tallies.values()]
        sums.sort(key=lambda each: (each.key or "", each.tenant or ""))
        sums.sort(key=lambda each: each.last_at or "", reverse=True)
        return sums if limit is None else sums[: max(limit, 0)]

    def _of(self, group: tuple[str | None, str | None]) -> Tally:
        return self._tallies.setdefault(group, Tally(group))


class Tally:
    """One sum that grows."""

    def __init__(self, group: tuple[str | None, str | None]) -> None:
        self._group = group
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._tokens: dict[str, int] = {}
        self._costs: dict[str, int] = {}
        self._versions: set[str] = set()
        self._first: str | None = None
        self._last: str | None = None

    def add(self, usage: UsageRecord) -> None:
        """Count one more call."""
        counts = self._counts
        counts["calls"] += 1
        counts["running" if usage.state == "intended" else usage.state] += 1
        for name in _TOKENS:
            self._use(name, getattr(usage, name))
        counts["uncounted"] += usage.tokens_in is None or usage.tokens_out is None
        counts["unpriced"] += usage.cost_nanos is None
        if usage.cost_nanos is not None:
            self._cost(usage.currency, usage.cost_nanos)
            self._versions.update(() if usage.price_version is None else (usage.price_version,))
        self._saw(usage.intended_at, usage.intended_at)

    def merge(self, other: UsageSum) -> None:
        """Count the calls of another sum."""
        for name in _COUNTS:
            self._counts[name] += getattr(other, name)
        for name in _TOKENS:
            self._use(name, getattr(other, name))
        for currency, nanos in other.cost_nanos.items():
            self._cost(currency, nanos)
        self._versions.update(other.price_versions)
        self._saw(other.first_at, other.last_at)

    def price(self, price: Price) -> None:
        """Add the cost of a call that was counted without one."""
        if self._counts["unpriced"]:
            self._counts["unpriced"] -= 1
            self._cost(price.currency, price.cost_nanos)
            self._versions.add(price.version)

    def sum(self) -> UsageSum:
        """Return what was counted so far."""
        key, tenant = self._group
        return UsageSum(
            key,
            tenant,
            **self._counts,
            **self._tokens,
            cost_nanos=dict(sorted(self._costs.items())),
            first_at=self._first,
            last_at=self._last,
            price_versions=tuple(sorted(self._versions)),
        )

    def _use(self, name: str, tokens: int | None) -> None:
        """Add tokens; what nobody has told stays unknown."""
        if tokens is not None:
            self._tokens[name] = self._tokens.get(name, 0) + tokens

    def _cost(self, currency: str | None, nanos: int) -> None:
        name = currency or UNKNOWN_CURRENCY
        self._costs[name] = self._costs.get(name, 0) + nanos

    def _saw(self, first: str | None, last: str | None) -> None:
        if first is not None:
            self._first = min(self._first or first, first)
        if last is not None:
            self._last = max(self._last or last, last)
