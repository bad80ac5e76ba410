"""Runs that have nothing to do: they keep what belongs to an agent, and belong to an owner."""

from __future__ import annotations

from contextlib import suppress

from perdure.core.changes import EndRun
from perdure.core.identity import derive_worker_id
from perdure.core.records import RunManifest, SessionKey
from perdure.errors import LeaseHeldError, RunNotFoundError, SessionBusyError
from perdure.store.protocol import RunStore


async def keep_run(
    store: RunStore, run_id: str, manifest: RunManifest, *, session: SessionKey | None
) -> None:
    """Begin the run and end it at once, if nobody else does so just now.

    Then it is there, and takes events. Raises RunNotFoundError for a session of another owner.
    """
    with suppress(LeaseHeldError, SessionBusyError):
        claim = await store.start_or_resume(
            run_id, manifest, worker_id=derive_worker_id(), session=session
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
