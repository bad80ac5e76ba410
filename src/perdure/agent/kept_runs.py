"""Runs that have nothing to do: they keep what belongs to an agent, and belong to an owner."""

from __future__ import annotations

from contextlib import suppress

from perdure.core.changes import EndRun
from perdure.core.identity import canonical_hash, derive_worker_id
from perdure.core.limits import ID_BYTES_MAX
from perdure.core.records import JsonValue, RunManifest, SessionKey
from perdure.errors import LeaseHeldError, RunNotFoundError, SessionBusyError
from perdure.store.protocol import RunStore


def kept_name(prefix: str, name: str) -> str:
    """Return the id of the run that keeps what is called `name`: the hash of a long name."""
    whole = prefix + name
    return whole if len(whole.encode()) <= ID_BYTES_MAX else prefix + canonical_hash(name)


async def keep_run(
    store: RunStore,
    run_id: str,
    manifest: RunManifest,
    *,
    session: SessionKey | None,
    handler: str | None = None,
) -> None:
    """Begin the run and end it at once, if nobody else does so just now.

    Then it is there, and takes events. No worker ever gets it; `handler` serves to find it among
    others. Raises RunNotFoundError for a session of another owner.
    """
    with suppress(LeaseHeldError, SessionBusyError):
        claim = await store.start_or_resume(
            run_id, manifest, worker_id=derive_worker_id(), handler=handler, session=session
        )
        if claim.lease is not None:
            await store.write(claim.lease, EndRun("completed"))


async def is_there_for(store: RunStore, run_id: str, owner_id: str | None) -> bool:
    """Return whether there is such a run. Raises RunNotFoundError for one of another owner.

    Who names no owner is not the owner of a run that has one.
    """
    run = await store.read_run(run_id)
    if run is not None and run.owner_id not in (None, owner_id):
        raise RunNotFoundError(f"there is no run {run_id!r:.300}")
    return run is not None


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
