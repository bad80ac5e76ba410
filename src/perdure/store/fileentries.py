"""What the log of a run says: the operations that were accepted, and what each does to the run.

An operation is applied by the very functions that memory applies, first when it is accepted and
then whenever the log is read. So it holds everything that its outcome depends on: the moment, and
whatever was drawn at random.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from perdure.core import changes, draft, transitions
from perdure.core.changes import Change, SettleUsage
from perdure.core.jsonvalue import decode_value
from perdure.core.records import DeliveryRecord, JsonValue, Lease, RunRecord
from perdure.core.rundata import RunData
from perdure.errors import StoreCorruptError
from perdure.store.memorydata import Grant, MemoryData


class Create(NamedTuple):
    """Begin a run, in the queue."""

    run: RunRecord
    manifest_text: str


class Requeue(NamedTuple):
    """Put a failed or parked run back into the queue."""

    handler: str


class Write(NamedTuple):
    """One fenced write."""

    lease: Lease
    changes: Sequence[Change]


class Renew(NamedTuple):
    """Move the deadline of the lease."""

    lease_expires_at: str


class Emit(NamedTuple):
    """Record an event."""

    key: str
    payload_text: str


class Stop(NamedTuple):
    """Ask the run to stop."""


class ClaimDelivery(NamedTuple):
    """Claim the first waiting delivery."""

    handler: str
    token: str


class SettleDelivery(NamedTuple):
    """Record how a claimed delivery went."""

    position: int
    token: str
    error: str | None


class RetryDelivery(NamedTuple):
    """Make a delivery due at once, also a dead one."""

    position: int


class Settle(NamedTuple):
    """Settle a usage row of an attempt that may be lost."""

    lease: Lease
    usage: SettleUsage


class Expire(NamedTuple):
    """Delete the frames."""


class Delete(NamedTuple):
    """Delete the run: what stands before this is nothing any more."""


Operation = (
    Create
    | Grant
    | Requeue
    | Write
    | Renew
    | Emit
    | Stop
    | ClaimDelivery
    | SettleDelivery
    | RetryDelivery
    | Settle
    | Expire
    | Delete
)

_PARTS: Final[Mapping[str, type]] = {
    part.__name__: part
    for part in (
        *Operation.__args__,
        *changes.Change.__args__,
        Lease,
        RunRecord,
    )
}
_dumps = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def apply(data: RunData | None, operation: Operation, now: str) -> tuple[RunData | None, Any]:
    """Apply an operation that is legal; return the run after it, and what its caller is told."""
    if isinstance(operation, Create):
        return RunData(operation.run, manifest_text=operation.manifest_text), None
    if isinstance(operation, Delete):
        return None, None
    if data is None:
        raise StoreCorruptError(f"a {type(operation).__name__} stands before the run's creation")
    return data, _apply(data, operation, now)


def _apply(data: RunData, operation: Operation, now: str) -> Any:
    match operation:
        case Write(lease, changed):
            return draft.write(data, lease, changed, now)
        case Renew(lease_expires_at):
            data.run = data.run._replace(lease_expires_at=lease_expires_at)
        case Grant():
            MemoryData.grant(data, operation, now)
        case Requeue(handler):
            data.run = transitions.queued_again(data.run, handler=handler, now=now)
        case Emit(key, payload_text):
            data.add_event(key, payload_text, now)
        case Stop():
            data.run = transitions.stop_marked(data.run, now)
        case ClaimDelivery(handler, token):
            return data.claim_delivery(frozenset((handler,)), now, token=token)
        case SettleDelivery(position, token, error):
            delivery = data.deliveries[position]._replace(token=token)
            data.settle_delivery(delivery, now, error)
        case RetryDelivery(position):
            data.retry_delivery(position, now)
        case Settle(lease, usage):
            data.settle(lease, usage, now)
        case Expire():
            data.rows = []
            data.run = data.run._replace(frames_expired_at=now)
        case Create() | Delete():
            raise AssertionError(operation)
    return None


def may_be_due(operation: Operation) -> bool:
    """Return whether there may be work for a worker after this."""
    if isinstance(operation, Write):
        return any(isinstance(change, draft.LEAVING) for change in operation.changes)
    return isinstance(operation, Create | Requeue | Emit | Stop | SettleDelivery | RetryDelivery)


def is_open(data: RunData | None) -> bool:
    """Return whether a worker may have to do something with the run, now or later."""
    if data is None:
        return False
    state = data.run.state
    if state not in transitions.RESTING_STATES:
        return True
    return state in transitions.ENDED_STATES and first_waiting(data) is not None


def first_waiting(data: RunData) -> DeliveryRecord | None:
    """Return the delivery that is next, due or not."""
    waiting = (data.deliveries[position] for position in sorted(data.deliveries))
    return next((delivery for delivery in waiting if delivery.state == "waiting"), None)


def entry_text(now: str, operations: Sequence[Operation]) -> str:
    """Return the line of a log that says what was accepted at one moment."""
    return _dumps([now, *map(_part_to_json, operations)])


def read_entry(text: str) -> tuple[str, list[Operation]]:
    """Return the moment and the operations of a line; StoreCorruptError if it is none."""
    try:
        now, *parts = decode_value(text)
        return now, [cast("Operation", _part_from_json(part)) for part in parts]
    except (KeyError, TypeError, ValueError) as error:
        raise StoreCorruptError(
            f"the log has a line that this version does not know: {error!r:.80}"
        ) from error


def without_frames(text: str) -> str:
    """Return the line with the frames taken out of it."""
    now, operations = read_entry(text)
    return entry_text(now, [_bare(operation) for operation in operations])


def _bare(operation: Operation) -> Operation:
    if not isinstance(operation, Write):
        return operation
    bare = [
        change._replace(body="")
        if isinstance(change, changes.AppendFrames | changes.Restart)
        else change
        for change in operation.changes
    ]
    return operation._replace(changes=bare)


def _part_to_json(part: Any) -> dict[str, JsonValue]:
    """Return a part of an entry as its name and what differs from its defaults."""
    members: dict[str, JsonValue] = {"is": type(part).__name__}
    defaults = part._field_defaults
    for name, value in zip(part._fields, part, strict=True):
        if name not in defaults or value != defaults[name]:
            members[name] = _to_json(value)
    return members


def _to_json(value: Any) -> JsonValue:
    if hasattr(value, "_fields"):
        return _part_to_json(value)
    if isinstance(value, list | tuple):
        return [_part_to_json(part) for part in cast("Sequence[Any]", value)]
    return value


def _part_from_json(members: dict[str, JsonValue]) -> object:
    kind = _PARTS[members.pop("is")]
    return kind(**{name: _from_json(value) for name, value in members.items()})


def _from_json(value: JsonValue) -> Any:
    if isinstance(value, dict):
        return _part_from_json(cast("dict[str, JsonValue]", value))
    if isinstance(value, list):
        return [_part_from_json(part) for part in cast("list[dict[str, JsonValue]]", value)]
    return value
