"""`perdure ls`: which runs there are."""

from __future__ import annotations

import argparse
import re
from typing import Any, Final

from perdure.cli.arguments import length_ms
from perdure.cli.opening import opened, ran
from perdure.cli.output import as_json, print_json, print_table, when
from perdure.core.effects import epoch_ms, iso_time
from perdure.core.identity import logical_id, stored_id
from perdure.core.records import RunRecord
from perdure.errors import UsageError
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
            since=None if options.since is None else moment_of(options.since, now),
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


def id_of(run: RunRecord) -> str:
    """Return the id that names a run in every command, its tenant included."""
    return stored_id(run.tenant, run.run_id)


def run_json(run: RunRecord) -> dict[str, Any]:
    """Return a run for programs; `id` names it in every command."""
    record = as_json(run, id=id_of(run))
    del record["answer"]
    return record


def note_of(run: RunRecord, now: str) -> str | None:
    """Return what is to be known of a run beside its state, if there is something."""
    if run.state == "running":
        if run.stop_requested_at is not None:
            return "a stop is asked for"
        if run.lease_holder_id is None:
            return "given back, waits for a worker"
        if (run.lease_expires_at or "") <= now:
            return "its worker is gone, waits for another"
        return f"{run.strikes} crashes" if run.strikes else None
    if run.state in ("sleeping", "waiting"):
        what = f"for {run.wake_key}, " if run.wake_key is not None else ""
        until = "due now" if (run.wake_at or "9") <= now else f"until {when(run.wake_at, now)}"
        return f"{what}{until if run.wake_at is not None else 'without end'}"
    return run.reason


_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?Z?)?", re.ASCII)


def moment_of(text: str, now: str) -> str:
    """Return the moment that `24h` ago was, or that a date (UTC) is."""
    if _DATE.fullmatch(text) is not None:
        moment = text.replace(" ", "T").removesuffix("Z")
        try:
            return iso_time(epoch_ms(moment + ("+00:00" if "T" in moment else "T00:00:00+00:00")))
        except ValueError as error:
            raise UsageError(f"--since {text!r} is no date: {error}") from error
    try:
        return iso_time(max(0, epoch_ms(now) - length_ms(text.removesuffix(" ago"))))
    except argparse.ArgumentTypeError:
        raise UsageError(
            f"--since {text!r:.40} is no moment: write 24h, 30d, 2026-01-31 or 2026-01-31T09:05"
        ) from None
