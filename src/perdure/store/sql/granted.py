"""Claims that were granted: what was asked for, the lease with its run, and that run's end."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Self

from perdure.core.effects import epoch_ms, iso_time
from perdure.core.jsonvalue import decode_value
from perdure.core.recordjson import copied_if_flat, manifest_from_json, outcome_from_json
from perdure.core.records import Claim, Lease, RunManifest, RunRecord
from perdure.core.transitions import state_of
from perdure.store.entry import Opening
from perdure.store.sql.database import Row
from perdure.store.sql.rows import manifest_text_of, owner_of, run_record, step_records


class Wish(NamedTuple):
    """How a caller wants to hold a run."""

    worker_id: str
    lease_ms: int
    token: str
    retry: bool
    lock: str | None = None
    """The liveness lock of the caller."""
    dead: Collection[str] = ()
    """Liveness locks whose holders are dead: a lease of theirs may be taken at once."""


class GrantedLease(Lease):
    """A lease that was granted here, with the run as it stood then.

    Only whoever holds the lease, and a request to stop, changes a run while it holds. A lease that
    was made of this one (`_replace`) knows nothing of the run.
    """

    run: RunRecord | None = None
    manifest: RunManifest | None = None
    """That of the run, once more; None where it has parts within parts."""
    manifest_text: str | None = None
    step_count: int = 0
    """How many steps the run has, as far as its holder has written them."""

    @classmethod
    def of(cls, run: RunRecord, stored_id: str, wish: Wish, manifest_text: str | None) -> Self:
        """Return the lease of a claim by which the run stands as in `run`."""
        granted = cls(stored_id, run.epoch, wish.token, wish.worker_id)
        granted.run, granted.manifest_text = run, manifest_text
        granted.manifest = None if run.manifest is None else copied_if_flat(run.manifest)
        granted.step_count = run.step_count
        return granted

    def has_steps(self, steps: Any) -> None:
        """Note that the run has at least so many steps now."""
        if steps > self.step_count:
            self.step_count = steps


def granted_plainly(lease: Lease) -> GrantedLease | None:
    """Return the lease if it was granted here, with all that is to be said of its run.

    The owner of a session may change while a turn of it is live.
    """
    if not isinstance(lease, GrantedLease) or lease.run is None:
        return None
    return None if lease.run.session_id is not None else lease


def ended_record(lease: Lease, end: Sequence[Any], now: str) -> RunRecord:
    """Return a run whose lease was granted plainly at its end, of which nothing else changed."""
    granted = granted_plainly(lease)
    assert granted is not None
    assert granted.run is not None
    # Another one than the task was given, which may have changed its input.
    manifest, text = granted.manifest, granted.manifest_text
    if manifest is None and text is not None:
        manifest = manifest_from_json(decode_value(text))
    status, refinement, reason, outcome, step_count = end
    return granted.run._replace(
        status=status,
        state=state_of(status, refinement),
        updated_at=now,
        completed_at=now,
        lease_holder_id=None,
        lease_expires_at=None,
        outcome=None if outcome is None else outcome_from_json(decode_value(outcome)),
        step_count=step_count,
        strikes=0,
        reason=reason,
        manifest=manifest,
        stop_requested_at=None,
        live_from=0,
        upstream=None,
    )


def created(opening: Opening, wish: Wish, lists: Mapping[str, list[Row]]) -> Claim:
    """Return the claim of a new run, from the rows of each statement by name."""
    (row,) = lists["create_run"]
    if len(row) == 1:
        run = _inserted(opening, wish, row[0])
    else:
        owner_id = lists["lock_session"][0][0] if "lock_session" in lists else None
        run = run_record(row, owner_id=owner_id)
    lease = GrantedLease.of(run, opening.stored_id, wish, opening.manifest_text)
    return Claim(lease, run, [], 1)


def _inserted(opening: Opening, wish: Wish, now: str) -> RunRecord:
    """Return the run that the shortcut has created: all of it but the time was given."""
    return RunRecord(
        opening.run_id,
        opening.manifest_hash,
        opening.project_id,
        "running",
        "running",
        now,
        now,
        opening.scenario_id,
        lease_holder_id=wish.worker_id,
        lease_expires_at=iso_time(epoch_ms(now) + wish.lease_ms),
        tenant=opening.tenant,
        epoch=1,
        handler=opening.handler,
        manifest=manifest_from_json(decode_value(opening.manifest_text)),
    )


def taken(wish: Wish, lists: Mapping[str, list[Row]]) -> Claim:
    """Return the claim of a known run, from the rows of each statement by name."""
    (row,) = lists["read_run"]
    run = run_record(row, owner_id=owner_of(row))
    steps = step_records(run.run_id, lists["read_steps"])
    lease = GrantedLease.of(run, row[0], wish, manifest_text_of(row))
    return Claim(lease, run, steps, lists["frames_end"][0][0])
