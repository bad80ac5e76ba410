"""`perdure delete` and `perdure gc`: what goes, at once or in time."""

from __future__ import annotations

import argparse
import sys

from perdure.cli.exits import NO
from perdure.cli.opening import opened, place_of, ran
from perdure.cli.output import print_json
from perdure.core.identity import check_tenant
from perdure.core.records import RunRecord
from perdure.core.transitions import RESTING_STATES
from perdure.durable.erasing import Erased, erase_run, erase_session, erase_user, stop_for_good
from perdure.durable.retention import collect_garbage
from perdure.errors import SessionBusyError, UsageError
from perdure.store.erasure import erasure_of
from perdure.store.protocol import RunStore


def delete(options: argparse.Namespace) -> int:
    """Delete a run, a session or all of a user; return the exit code."""
    named = [options.run_id, options.session, options.user]
    if sum(name is not None for name in named) != 1:
        raise UsageError("name one thing that is to be deleted: a RUN, --session or --user")
    return ran(_delete_run if options.run_id is not None else _erase, options)


async def _delete_run(options: argparse.Namespace) -> int:
    if options.stop:
        raise UsageError("--stop is for sessions and users: stop a run with `perdure stop`")
    async with opened(options) as store:
        place = place_of(store, options)
        run = await place.read()
        if run.state not in (*RESTING_STATES, "queued"):
            told = f"{place.stored_id} is {run.state}: `perdure stop {place.stored_id}` first"
            return _tell(options, told, runs=0, code=NO)
        if not _is_sure(options, f"delete {place.stored_id} ({run.state}) with all that is its?"):
            return _tell(options, "nothing was deleted", runs=0, code=NO)
        deleted = await erase_run(place.store, place.run_id)
        if options.scrub:
            await erasure_of(place.store).scrub(whole=True)
    return _tell(options, f"{place.stored_id} is deleted", runs=int(deleted))


async def _erase(options: argparse.Namespace) -> int:
    what = (
        f"the session {options.session}"
        if options.session is not None
        else f"every session of the user {options.user}"
    )
    async with opened(options) as whole:
        store = whole.for_tenant(check_tenant(options.tenant or ""))
        if not _is_sure(options, f"delete {what} with all that belongs to it?"):
            return _tell(options, "nothing was deleted", runs=0, code=NO)
        try:
            erased = await _erased(store, options)
        except SessionBusyError as error:
            way_out = "wait for whoever works on it" if options.stop else "or add --stop"
            return _tell(options, f"{error}, {way_out}", runs=0, code=NO)
        if options.scrub:
            await erasure_of(store).scrub(whole=True)
    sessions, turns = _number(erased.sessions, "session"), _number(erased.turns, "turn")
    return _tell(options, f"deleted: {sessions} with {turns}", runs=erased.turns)


async def _erased(store: RunStore, options: argparse.Namespace) -> Erased:
    async def stop(run: RunRecord) -> None:
        await stop_for_good(store, run)

    if options.session is not None:
        return await erase_session(store, options.session, stop=stop if options.stop else None)
    return await erase_user(store, options.user, stop=stop if options.stop else None)


def _is_sure(options: argparse.Namespace, question: str) -> bool:
    """Ask, where somebody is there to answer."""
    if options.yes:
        return True
    if options.json or not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked: add --yes to delete it")
    print(f"{question} [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _tell(options: argparse.Namespace, told: str, *, runs: int, code: int = 0) -> int:
    if options.json:
        print_json({"done": code == 0, "runs": runs, "note": told})
    else:
        print(told)
    return code


def gc(options: argparse.Namespace) -> int:
    """Delete what need not be kept; return the exit code."""
    return ran(_gc, options)


async def _gc(options: argparse.Namespace) -> int:
    async with opened(options) as store:
        frames, runs = await collect_garbage(
            store,
            frames_after_ms=options.frames_after,
            runs_after_ms=options.runs_after,
            dry_run=options.dry_run,
        )
    if options.json:
        print_json({"dryRun": options.dry_run, "frames": frames, "runs": runs})
        return 0
    told = "would be deleted" if options.dry_run else "deleted"
    print(f"{told}: the frames of {_number(frames, 'turn')}, and {_number(runs, 'run')}")
    return 0


def _number(count: int, thing: str) -> str:
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"
