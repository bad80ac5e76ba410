"""`perdure stop` and `perdure retry`: a word to whoever works on a run, or will."""

from __future__ import annotations

import argparse

from perdure.cli.exits import NO
from perdure.cli.opening import opened, place_of, ran
from perdure.cli.output import print_json
from perdure.cli.runs import run_json
from perdure.core.records import RunRecord
from perdure.core.transitions import ENDED_STATES, RESTING_STATES
from perdure.core.wording import id_of, note_of
from perdure.durable.retrying import retry_run
from perdure.store.upkeep import upkeep_of


def stop(options: argparse.Namespace) -> int:
    """Stop a run; return the exit code."""
    return ran(_stop, options)


async def _stop(options: argparse.Namespace) -> int:
    async with opened(options) as store:
        place = place_of(store, options)
        before = await place.read()
        if before.state in RESTING_STATES:
            return _tell(options, before, _nothing_to_stop(before), code=_code_at_rest(before))
        await place.store.request_stop(place.run_id)
        run = await place.wait_until(
            lambda run: run.state in RESTING_STATES, timeout_ms=options.wait
        )
        now = await upkeep_of(store).now()
    if run.state in RESTING_STATES:
        return _tell(options, run, f"{id_of(run)} is {run.state}")
    return _tell(
        options,
        run,
        f"the stop of {id_of(run)} is recorded; it is {run.state} as yet"
        f"{_because(run, now)}: whoever works on it next ends it",
    )


def _nothing_to_stop(run: RunRecord) -> str:
    if run.state == "parked":
        return (
            f"{id_of(run)} is parked, nobody works on it: `perdure retry` goes on with it, "
            "`perdure delete` removes it"
        )
    return f"{id_of(run)} is {run.state} already"


def _code_at_rest(run: RunRecord) -> int:
    return NO if run.state == "parked" else 0


def retry(options: argparse.Namespace) -> int:
    """Queue a failed or parked run again; return the exit code."""
    return ran(_retry, options)


async def _retry(options: argparse.Namespace) -> int:
    async with opened(options) as store:
        place = place_of(store, options)
        before = await place.read()
        if before.state not in ("failed", "parked"):
            told = f"{id_of(before)} is {before.state}: only what failed or was parked is retried"
            return _tell(options, before, told, code=NO)
        await retry_run(place.store, place.run_id)
        run = await place.wait_until(lambda run: run.state != "queued", timeout_ms=options.wait)
        now = await upkeep_of(store).now()
    if run.state != "queued":
        note = note_of(run, now)
        told = f"{id_of(run)} is {run.state}" + ("" if note is None else f" ({note})")
        return _tell(options, run, f"{told}, in attempt {run.epoch}")
    waited = "" if options.wait == 0 else "; no worker has taken it yet"
    return _tell(
        options,
        run,
        f"{id_of(run)} is queued{waited}: a worker with the handler {run.handler!r} "
        "goes on with it",
    )


def _because(run: RunRecord, now: str) -> str:
    note = note_of(run, now)
    return f" ({note})" if note is not None and run.state not in ENDED_STATES else ""


def _tell(options: argparse.Namespace, run: RunRecord, told: str, *, code: int = 0) -> int:
    if options.json:
        print_json({**run_json(run), "done": code == 0, "note": told})
    else:
        print(told)
    return code
