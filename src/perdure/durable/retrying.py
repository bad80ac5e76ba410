"""Trying again what failed or was parked, by whoever looks after a store."""

from __future__ import annotations

from perdure.core.identity import derive_worker_id, manifest_hash
from perdure.core.records import Claim, RunManifest, RunRecord, SessionKey
from perdure.core.wording import id_of
from perdure.errors import RunNotFoundError, UsageError
from perdure.store.entry import SealedManifest
from perdure.store.protocol import RunStore


async def retry_run(store: RunStore, run_id: str) -> RunRecord:
    """Queue a failed or parked run again, for a worker that has its handler; return it.

    It goes on behind its recorded steps. A run in another state is returned as it is. Raises
    RunNotFoundError, and UsageError for a run that no stranger can go on with.
    """
    run = await store.read_run(run_id)
    if run is None:
        raise RunNotFoundError(f"there is no run {run_id!r}")
    if run.state not in ("failed", "parked"):
        return run
    handler, manifest = _what_goes_on(run)
    return await store.enqueue(
        run_id, manifest, handler=handler, session=_session_of(run), retry=True
    )


def _what_goes_on(run: RunRecord) -> tuple[str, RunManifest]:
    """Return the handler and the manifest by which a stranger can go on with the run."""
    if run.handler is None or run.manifest is None:
        raise UsageError(
            f"no worker can go on with {id_of(run)!r}: it was begun by a call that names no "
            "handler. Make the same call again with retry=True"
        )
    return run.handler, known_manifest(run.manifest, run.manifest_hash)


def known_manifest(manifest: RunManifest, plain_hash: str) -> RunManifest:
    """Return the manifest of a stored run as one by which the store recognises that run."""
    if manifest_hash(manifest) == plain_hash:
        return manifest
    # Its values are sealed: it is recognised by the hash of the plain ones.
    return SealedManifest.of(manifest, plain_hash)


async def claim_as_stored(store: RunStore, run: RunRecord) -> Claim:
    """Claim a run for its own handler, as whoever has only its record. Raises LeaseHeldError."""
    assert run.manifest is not None
    return await store.start_or_resume(
        run.run_id,
        known_manifest(run.manifest, run.manifest_hash),
        worker_id=derive_worker_id(),
        handler=run.handler,
    )


def _session_of(run: RunRecord) -> SessionKey | None:
    if run.session_id is None or run.turn_index is None:
        return None
    return SessionKey(run.session_id, run.turn_index, run.revision, run.owner_id)
