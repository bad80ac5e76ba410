"""Rows of the ledger of model calls, and the place of a call among all."""

from __future__ import annotations

from collections.abc import Iterable

from perdure.store.ledger import UNKNOWN_CURRENCY, Grouping, Tallies, UsageEntry, UsageSum
from perdure.store.sql.database import Row
from perdure.store.sql.rows import usage_record


def sums_of(by: Grouping | None, rows: Iterable[Row]) -> list[UsageSum]:
    """Return the sums, each of which has a row for every currency and version of prices."""
    tallies = Tallies(by)
    tallies.merge(_sum_of(row) for row in rows)
    return tallies.sums()


def _sum_of(row: Row) -> UsageSum:
    key, tenant, currency, version, *counts, cost_nanos, unpriced, first_at, last_at = row
    # The names of the columns between are those of the record.
    named = dict(zip(UsageSum._fields[2:12], counts, strict=True))
    by_currency = {} if cost_nanos is None else {currency or UNKNOWN_CURRENCY: cost_nanos}
    return UsageSum(
        key,
        tenant,
        **named,
        cost_nanos=by_currency,
        unpriced=unpriced,
        first_at=first_at,
        last_at=last_at,
        price_versions=() if version is None or cost_nanos is None else (version,),
    )


NewestGroup = tuple[str, str]
"""The key and the tenant of a group."""


class NewestGroups:
    """Finds the `most` groups that have the newest calls, in calls that come newest first."""

    def __init__(self, by: Grouping, most: int) -> None:
        self.edge: tuple[str, str, int, int] = ("9", "", 0, 0)
        """The place of the last call."""
        self.has_nameless = False
        """A call of no group came, of which there may be any number."""
        self._column = 0 if by == "run" else 2
        self._most = most
        self._last: dict[NewestGroup, str] = {}
        self._oldest = ""

    @property
    def groups(self) -> list[NewestGroup]:
        found = sorted(self._last)
        found.sort(key=lambda group: self._last[group], reverse=True)
        return found[: self._most]

    def take(self, rows: Iterable[Row]) -> bool:
        """Look at more calls; return whether those behind them are of older groups only."""
        for row in rows:
            run_id, tenant, _, at, epoch, call = row
            key = row[self._column]
            if len(self._last) >= self._most and at < self._oldest:
                return True
            if key is None:
                self.has_nameless = True
                return False
            if (key, tenant) not in self._last:
                self._last[key, tenant] = self._oldest = at
            self.edge = at, run_id, epoch, call
        return False


def usage_entry(row: Row) -> UsageEntry:
    """Return a call and whose it is."""
    run_id, tenant, session_id, *usage = row
    return UsageEntry(run_id, tenant, session_id, usage_record(tuple(usage)))


def after_text(entry: UsageEntry) -> str:
    """Return the place of a call as text."""
    usage = entry.usage
    return f"{usage.intended_at} {usage.epoch} {usage.call} {entry.run_id}"


def place_of(after: str | None) -> tuple[str, str, int, int]:
    """Return the place that such a text tells: moment, run, epoch and call."""
    if after is None:
        return "", "", 0, 0
    moment, epoch, call, run_id = after.split(" ", 3)
    return moment, run_id, int(epoch), int(call)
