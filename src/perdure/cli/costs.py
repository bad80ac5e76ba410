"""`perdure costs`: what model calls used and cost, and of how many that is not known."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

from perdure.cli.opening import opened, ran
from perdure.cli.output import as_json, faint, print_json, print_table
from perdure.cli.pricing import prices_of
from perdure.core.pricing import NANOS
from perdure.core.wording import moment_of
from perdure.observe.ledger import UsageSummary, usage_summary
from perdure.store.ledger import UsageSum
from perdure.store.upkeep import upkeep_of

_NUMBERS: Final = ("CALLS", "TOKENS IN", "CACHED", "WRITTEN", "TOKENS OUT", "REASONING", "COST")
_NAMELESS: Final = {"session": "(in no session)", "model": "(not named)"}
_MICROS: Final = NANOS // 1_000_000


def costs(options: argparse.Namespace) -> int:
    """Add up the costs; return the exit code."""
    return ran(_costs, options)


async def _costs(options: argparse.Namespace) -> int:
    prices = prices_of(options.prices)
    async with opened(options) as store:
        now = await upkeep_of(store).now()
        since, until = (
            None if text is None else moment_of(text, now, name=name)
            for text, name in ((options.since, "--since"), (options.until, "--until"))
        )
        summary = await usage_summary(
            store,
            by=options.by,
            tenant=options.tenant,
            session_id=options.session,
            since=since,
            until=until,
            limit=None if options.all else options.limit,
            prices=prices,
        )
    if options.json:
        for each in summary.sums:
            print_json(as_json(each, by=options.by))
    else:
        _print(summary, options.by, is_priced=prices is not None)
    return 0


def _print(summary: UsageSummary, by: str, *, is_priced: bool) -> None:
    if not summary.total.calls:
        print("no calls")
        return
    has_tenants = by in ("run", "session") and any(each.tenant for each in summary.sums)
    names = [*([_name(each, by)] for each in summary.sums), ["total"]]
    tenants = [*([each.tenant or "(default)"] for each in summary.sums), [""]]
    lines = [*summary.sums, summary.total]
    numbers = _aligned([_numbers(each) for each in lines])
    rows = [
        [*name, *(tenant if has_tenants else ()), *number, _note(each)]
        for name, tenant, number, each in zip(names, tenants, numbers[1:], lines, strict=True)
    ]
    heads = [by.upper(), *(["TENANT"] if has_tenants else ()), *numbers[0], "NOTE"]
    print_table(heads, rows)
    for text in _remarks(summary, is_priced=is_priced):
        print(faint(text))


def _name(each: UsageSum, by: str) -> str:
    if by == "tenant" and each.key == "":
        return "(default)"
    return each.key if each.key is not None else _NAMELESS[by]


def _numbers(each: UsageSum) -> list[str]:
    tokens = (
        each.tokens_in,
        each.tokens_cached,
        each.tokens_cache_written,
        each.tokens_out,
        each.tokens_reasoning,
    )
    told = ["-" if number is None else f"{number:,}" for number in tokens]
    return [f"{each.calls:,}", *told, _cost(each)]


def _cost(each: UsageSum) -> str:
    if not each.cost_nanos:
        return "unknown"
    known = " + ".join(_money(nanos, name) for name, nanos in each.cost_nanos.items())
    return f"at least {known}" if each.unpriced else known


def _money(nanos: int, currency: str) -> str:
    """Return a cost to the millionth, never less than there is."""
    micros = -(-nanos // _MICROS)
    return f"{micros // 1_000_000:,}.{micros % 1_000_000:06d} {currency}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the heads and the rows, each column as wide as its widest number."""
    table = [list(_NUMBERS), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in table]


def _note(each: UsageSum) -> str:
    unpriced = each.unpriced - each.unknown - each.running
    uncounted = each.uncounted - each.unknown - each.running
    counts = (
        (each.unknown, "unknown"),
        (each.running, "under way"),
        (uncounted, "without tokens"),
        (unpriced - max(uncounted, 0), "without a price"),
    )
    return ", ".join(f"{number:,} {what}" for number, what in counts if number > 0)


def _remarks(summary: UsageSummary, *, is_priced: bool) -> list[str]:
    """Return what must be known to read the table right."""
    total = summary.total
    remarks: list[str] = []
    if not summary.is_whole:
        remarks.append("… and more: --limit N, or --all. The total is of all of them.")
    if total.unknown:
        remarks.append("unknown: no answer was recorded, so the call may have been billed or not.")
    if summary.priced:
        remarks.append(f"{summary.priced:,} of the costs were not recorded with their calls.")
    if total.price_versions:
        remarks.append(f"Prices are those of {', '.join(total.price_versions)}.")
    if total.unpriced > total.unknown + total.running and not is_priced:
        remarks.append("pip install 'perdure[prices]' knows what many models cost.")
    return remarks
