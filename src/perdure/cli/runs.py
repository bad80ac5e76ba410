"""`perdure ls`: which runs there are."""

from __future__ import annotations

import argparse
from typing import Any, Final

from perdure.cli.opening import opened, ran
from perdure.cli.output import as_json, print_json, print_table
from perdure.core.identity import logical_id, stored_id
from perdure.core.records import RunRecord
from perdure.core.wording import id_of, moment_of, note_of, when
from perdure.store.upkeep import RunQuery, Upkeep, upkeep_of

PAGE: Final = 200
_HEADER: Final = ("RUN", "STATE", "CREATED", "CHANGED", "ATTEMPT", "STEPS", "HANDLER", "NOTE")


def ls(options: argparse.Namespace) -> int:
    """List runs; return the exit code."""
    return ran(_ls, options)


async def _ls(options: argparse.Namespace) -> int:
    async with opened(options) as store:
        upkeep = upkeep_of(store)
        now = await upkeep.now()
        wanted = RunQuery(
            tenant=options.tenant,
            state=options.state,
            session_id=options.session,
            handler=options.handler,
            since=None if options.since is None else moment_of(options.since, now, name="--since"),
        )
        after = None if options.after is None else stored_id(*logical_id(options.after))
        if options.all:
            return await _print_all(upkeep, wanted, after, now, options.json)
        runs = list(await upkeep.find_runs(wanted, after=after, limit=options.limit + 1))
    page, more = runs[: options.limit], len(runs) > options.limit
    _print(page, now, options.json, header=True)
    if not options.json and not page:
        print("no runs")
    if not options.json and more:
        print(f"… and more: perdure ls --after {id_of(page[-1])}")
    return 0


async def _print_all(
    upkeep: Upkeep, wanted: RunQuery, after: str | None, now: str, as_lines: bool
) -> int:
    is_first = True
    while page := list(await upkeep.find_runs(wanted, after=after, limit=PAGE)):
        _print(page, now, as_lines, header=is_first)
        after, is_first = id_of(page[-1]), False
    return 0


def _print(runs: list[RunRecord], now: str, as_lines: bool, *, header: bool) -> None:
    if as_lines:
        for run in runs:
            print_json(run_json(run))
    elif runs:
        print_table(_HEADER if header else None, [_row(run, now) for run in runs])


def _row(run: RunRecord, now: str) -> tuple[object, ...]:
    return (
        id_of(run),
        run.state,
        when(run.created_at, now),
        when(run.updated_at, now),
        run.epoch,
        run.step_count,
        run.handler,
        note_of(run, now) or "",
    )


def run_json(run: RunRecord) -> dict[str, Any]:
    """Return a run for programs; `id` names it in every command."""
    record = as_json(run, id=id_of(run))
    del record["answer"]
    return record
