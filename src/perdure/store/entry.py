"""What a caller brings who opens, claims or queues a run, checked and encoded for any store."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from perdure.core import identity
from perdure.core.jsonvalue import encode_value
from perdure.core.lengths import check_length
from perdure.core.limits import MANIFEST_BYTES_MAX, SEALED_BYTES_MAX
from perdure.core.recordjson import manifest_to_json
from perdure.core.records import JsonValue, RunManifest, SessionKey
from perdure.store.closing import check_open


class SealedManifest(identity.KnownManifest):
    """A manifest whose values were sealed; its run is recognised by the hash of the plain one.

    `known_text` is its JSON, where somebody has encoded it already.
    """

    known_text: str = ""


class SealedPayload(NamedTuple):
    """A payload that was checked, encoded and sealed: JSON text to be stored as it is."""

    text: str


class Opening(NamedTuple):
    """What a caller brings who wants to open or queue a run."""

    stored_id: str
    tenant: str
    run_id: str
    manifest_hash: str
    manifest_text: str
    project_id: str
    scenario_id: str | None
    handler: str | None
    session: SessionKey | None

    @property
    def session_id(self) -> str | None:
        return None if self.session is None else self.session.session_id


def opening_for(
    tenant: str,
    run_id: str,
    manifest: RunManifest,
    *,
    handler: str | None,
    session: SessionKey | None,
) -> Opening:
    """Return what is stored of a caller's opening. Raises UsageError, NotSerializableError."""
    if session is not None:
        identity.check_session_id(session.session_id)
        identity.check_index(session.turn_index, name="turn_index")
        identity.check_index(session.revision, name="revision")
    return Opening(
        stored_id=identity.stored_id(tenant, identity.check_run_id(run_id)),
        tenant=tenant,
        run_id=run_id,
        manifest_hash=identity.manifest_hash(manifest),
        manifest_text=manifest_text(manifest),
        project_id=manifest.project_id,
        scenario_id=manifest.scenario_id,
        handler=handler,
        session=session,
    )


def manifest_text(manifest: RunManifest) -> str:
    """Return what is stored of a manifest. Raises UsageError, NotSerializableError."""
    bytes_max = MANIFEST_BYTES_MAX
    if isinstance(manifest, SealedManifest):
        if manifest.known_text:
            return manifest.known_text
        bytes_max = SEALED_BYTES_MAX
    return encode_value(manifest_to_json(manifest), name="manifest", bytes_max=bytes_max)


def check_claim(handle: Hashable, lease_ms: int) -> None:
    """Raise UsageError for a lease of no length, StoreClosedError if the handle is closing."""
    check_lease(lease_ms)
    check_open(handle)


def check_lease(lease_ms: int) -> None:
    """Raise UsageError unless `lease_ms` is a length of a lease."""
    check_length(lease_ms, name="lease_ms", least=1)


def payload_text(payload: JsonValue | SealedPayload) -> str:
    """Return what is stored of an event's payload. Raises NotSerializableError."""
    if isinstance(payload, SealedPayload):
        return payload.text
    return encode_value(payload, name="payload")
