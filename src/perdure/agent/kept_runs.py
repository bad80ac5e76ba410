"""Runs that have nothing to do: they keep what belongs to an agent, and belong to an owner."""

from __future__ import annotations

from typing import Final

from perdure.core.changes import EndRun
from perdure.core.identity import derive_worker_id
from perdure.core.records import JsonValue, RunManifest, RunRecord, SessionKey
from perdure.core.transitions import RESTING_STATES
from perdure.durable.retrying import known_manifest
from perdure.durable.traces import KEPT_HANDLER
from perdure.errors import LeaseHeldError, LeaseLostError, RunNotFoundError, SessionBusyError
from perdure.store.protocol import RunStore

LEASE_MS: Final = 2_000
"""Such a run works for two writes only: so soon it is free of a process that is lost."""


async def keep_run(
    store: RunStore,
    run_id: str,
    manifest: RunManifest,
    *,
    session: SessionKey | None,
    handler: str = KEPT_HANDLER,
) -> bool:
    """Begin the run and end it at once; return whether it has ended.

    Then it is there, and takes events. What a lost process left between the two is ended too: the
    run itself, and what else holds the session's place. One that somebody else ends just now is
    there, and False: call again. No worker ever gets it; by `handler` it is found among others,
    also by a clean-up, which ends what a lost process has left.

    Raises RunNotFoundError for a session of another owner, and SessionBusyError, with no run
    begun, while another process that lives has the session's place.
    """
    while True:
        try:
            claim = await store.start_or_resume(
                run_id,
                manifest,
                worker_id=derive_worker_id(),
                lease_ms=LEASE_MS,
                handler=handler,
                session=session,
            )
            if claim.lease is not None:
                await store.write(claim.lease, EndRun("completed"))
        except LeaseHeldError:
            return False
        except LeaseLostError:
            continue  # Another process took it for lost: it ends it, or has.
        except SessionBusyError:
            if session is None or not await _end_lost(store, session.session_id):
                raise
        else:
            return True


async def _end_lost(store: RunStore, session_id: str) -> bool:
    """End what a lost process began in the session and did not end; return whether it did."""
    ended = False
    for run in await store.list_runs(state="running", session_id=session_id):
        if run.manifest is not None:
            known = known_manifest(run.manifest, run.manifest_hash)
            ended |= await keep_run(store, run.run_id, known, session=None)
    return ended


async def run_for(store: RunStore, run_id: str, owner_id: str | None) -> RunRecord | None:
    """Return the run, or None. Raises RunNotFoundError for one of another owner.

    Who names no owner is not the owner of a run that has one.
    """
    run = await store.read_run(run_id)
    if run is not None and run.owner_id not in (None, owner_id):
        raise RunNotFoundError(f"there is no run {run_id!r:.300}")
    return run


def has_ended(run: RunRecord | None) -> bool:
    """Return whether a run that keeps something is as it should be: there, and ended."""
    return run is not None and run.state in RESTING_STATES


async def keep_entry(store: RunStore, run_id: str, keys: str, number: int, entry: JsonValue) -> int:
    """Write an entry of a log, as an event, under the first number from `number` that is free.

    Returns the number; no two writers get the same one. Raises RunNotFoundError.
    """
    while not (await store.emit_event(run_id, entry_key(keys, number), entry))[0]:
        number += 1
    return number


def entry_key(keys: str, number: int) -> str:
    """Return the key of an entry: entries are in the order of their keys."""
    return f"{keys}{number:010d}"
