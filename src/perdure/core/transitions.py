"""The life of a run as one table: what each command does in each phase.

Everything that changes the state of a run is decided here. Memory applies these functions, SQL
repeats them in its statements, and the contract suite asks each store for every cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, cast

from perdure.core.records import RunRecord, RunState, RunStatus

Phase = Literal[
    "none",  # there is no such run
    "queued",
    "held",  # running under a lease that has not lapsed
    "lapsed",  # running, the deadline of its lease has passed: its holder may be dead
    "released",  # running without a lease: drained, or never begun
    "sleeping",
    "waiting",
    "parked",
    "completed",
    "stopped",
    "failed",
]

Command = Literal[
    "claim",
    "claim_retry",
    "write",  # by whoever holds the epoch and token that stand on the run
    "renew",
    "stop",
    "enqueue",
    "enqueue_retry",
    "delete",
    "delete_frames",
]

Verdict = Literal[
    "create",  # a new run, epoch 1 (claim) or queued (enqueue)
    "grant",  # the caller gets the lease: epoch + 1
    "read",  # a pure read, no lease
    "held",  # LeaseHeldError
    "apply",  # the write, or the renewal, happens
    "lost",  # LeaseLostError, nothing is written; a renewal leaves the run out of its answer
    "mark",  # the stop is recorded for the holder, or for whoever claims next
    "keep",  # nothing changes, the run is returned
    "queue",  # back to the queue, strikes 0
    "remove",
    "refuse",  # UsageError
    "unknown",  # RunNotFoundError, or False for a deletion
]

_TABLE: Final = """
phase      claim   claim_retry  write  renew  stop     enqueue  enqueue_retry  delete  delete_frames
none       create  create       lost   lost   unknown  create   create         unknown unknown
queued     grant   grant        lost   lost   mark     keep     keep           remove  refuse
held       held    held         apply  apply  mark     keep     keep           refuse  refuse
lapsed     grant   grant        apply  apply  mark     keep     keep           refuse  refuse
released   grant   grant        lost   lost   mark     keep     keep           refuse  refuse
sleeping   grant   grant        lost   lost   mark     keep     keep           refuse  refuse
waiting    grant   grant        lost   lost   mark     keep     keep           refuse  refuse
parked     read    grant        lost   lost   mark     keep     queue          remove  refuse
completed  read    read         lost   lost   keep     keep     keep           remove  remove
stopped    read    read         lost   lost   keep     keep     keep           remove  remove
failed     read    grant        lost   lost   keep     keep     queue          remove  refuse
"""


def _read(table: str) -> dict[Phase, dict[Command, Verdict]]:
    header, *rows = (line.split() for line in table.strip().splitlines())
    life = {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}
    return cast("dict[Phase, dict[Command, Verdict]]", life)


LIFE: Final[Mapping[Phase, Mapping[Command, Verdict]]] = _read(_TABLE)

TERMINAL_STATES: Final = frozenset({"completed", "stopped"})
"""No command leaves these but deletion."""
ENDED_STATES: Final = frozenset({"completed", "stopped", "failed"})
"""What makes the deliveries of a run count."""
RESTING_STATES: Final = frozenset({"completed", "stopped", "failed", "parked"})
"""What no worker touches by itself, and what frees a session for its next turn."""

_STATUS: Final[Mapping[RunState, RunStatus]] = {
    "queued": "pending",
    "running": "running",
    "sleeping": "suspended",
    "waiting": "suspended",
    "parked": "suspended",
    "completed": "completed",
    "stopped": "completed",
    "failed": "failed",
}


def status_of(state: RunState) -> RunStatus:
    """Return the reference's coarser word for `state`."""
    return _STATUS[state]


def state_of(status: RunStatus, refinement: str | None) -> RunState:
    """Return the state that a stored status and its refinement name.

    A TypeScript worker changes the status alone, so a refinement counts only beside the status
    that it belongs to.
    """
    for state, belongs_to in _STATUS.items():
        if state == refinement and belongs_to == status:
            return state
    if status == "pending":
        return "queued"
    if status == "suspended":
        return "waiting"
    return status


def lease_is_live(run: RunRecord, now: str) -> bool:
    """Return whether somebody holds the run at the moment `now` of the store's clock."""
    return run.lease_holder_id is not None and (run.lease_expires_at or "") > now


def phase_of(run: RunRecord | None, now: str) -> Phase:
    """Return the phase of `run` at the moment `now` of the store's clock."""
    if run is None:
        return "none"
    if run.state != "running":
        return run.state
    if run.lease_holder_id is None:
        return "released"
    return "held" if lease_is_live(run, now) else "lapsed"


def judge(run: RunRecord | None, command: Command, now: str) -> Verdict:
    """Return what `command` does to `run` at the moment `now`."""
    return LIFE[phase_of(run, now)][command]


def claimed(run: RunRecord, *, worker_id: str, now: str, expires_at: str) -> RunRecord:
    """Return `run` as a granted claim leaves it: the next epoch, and a strike after a crash.

    A lease that was still there had not been given back, so its holder is taken for crashed.
    Only what somebody asked for by hand (failed, parked) starts with a clean slate.
    """
    asked_for = run.state in ("failed", "parked")
    crashed = run.lease_holder_id is not None
    return run._replace(
        epoch=run.epoch + 1,
        strikes=0 if asked_for else run.strikes + crashed,
        stop_requested_at=None if asked_for else run.stop_requested_at,
        lease_holder_id=worker_id,
        lease_expires_at=expires_at,
        status="running",
        state="running",
        reason=None,
        wake_at=None,
        wake_key=None,
        completed_at=None,
        updated_at=now,
    )


def queued_again(run: RunRecord, *, handler: str, now: str) -> RunRecord:
    """Return a failed or parked `run` as its retry leaves it in the queue.

    `handler` is for a run that has none, which only its own caller could have gone on with.
    """
    return run._replace(
        handler=run.handler or handler,
        status="pending",
        state="queued",
        reason=None,
        strikes=0,
        completed_at=None,
        stop_requested_at=None,
        wake_at=None,
        wake_key=None,
        lease_holder_id=None,
        lease_expires_at=None,
        updated_at=now,
    )


def stop_marked(run: RunRecord, now: str) -> RunRecord:
    """Return `run` with the mark of the first stop; a suspended one becomes due at once."""
    asleep = run.state in ("sleeping", "waiting")
    return run._replace(
        stop_requested_at=run.stop_requested_at or now,
        wake_at=now if asleep else run.wake_at,
    )


def suspended(
    run: RunRecord,
    state: Literal["sleeping", "waiting", "parked"],
    *,
    now: str,
    wake_at: str | None,
    wake_key: str | None,
    reason: str | None,
) -> RunRecord:
    """Return `run` asleep, waiting or parked, its lease given back."""
    return run._replace(
        status="suspended",
        state=state,
        reason=reason,
        wake_at=wake_at,
        wake_key=wake_key,
        lease_holder_id=None,
        lease_expires_at=None,
        updated_at=now,
    )


def released(run: RunRecord, now: str) -> RunRecord:
    """Return `run` without a lease, due at once."""
    return run._replace(lease_holder_id=None, lease_expires_at=None, updated_at=now)


def ended(
    run: RunRecord,
    state: Literal["completed", "stopped", "failed"],
    *,
    now: str,
    reason: str | None,
) -> RunRecord:
    """Return `run` at its end, its lease given back, and no strike against it."""
    return run._replace(
        strikes=0,
        status=_STATUS[state],
        state=state,
        reason=reason,
        completed_at=now,
        updated_at=now,
        lease_holder_id=None,
        lease_expires_at=None,
        wake_at=None,
        wake_key=None,
    )


def is_due(run: RunRecord, now: str) -> bool:
    """Return whether a worker should claim `run` at the moment `now`, if its session is free."""
    phase = phase_of(run, now)
    if phase in ("lapsed", "released", "queued"):
        return True
    return phase in ("sleeping", "waiting") and run.wake_at is not None and run.wake_at <= now


def queue_order(run: RunRecord) -> tuple[str, int, int, str]:
    """Return the place of a queued turn among those of its session: the first one begins first."""
    return (run.created_at, run.turn_index or 0, run.revision, run.run_id)
