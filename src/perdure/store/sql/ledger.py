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
