"""Reading bodies: JSON that somebody sent, every field checked, with no framework in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, cast, get_args

from perdure.core import identity
from perdure.core.jsonvalue import encode_value, parse_json
from perdure.core.limits import MANIFEST_BYTES_MAX
from perdure.core.records import JsonValue
from perdure.errors import UsageError
from perdure.turn.attachments import Attachment, attachments_from_json, attachments_to_json
from perdure.turn.owning import Busy

_RECORD_BYTES_MAX: Final = MANIFEST_BYTES_MAX - 16 * 1024
"""The rest of a manifest is for the ids, each of which stands in it several times."""
_FIELDS: Final = (
    "turnIndex",
    "message",
    "model",
    "attachments",
    "retry",
    "revision",
    "regenerate",
    "busy",
)


_DECISION_FIELDS: Final = ("event", "approved", "reason", "arguments")


class Decision(NamedTuple):
    """The body that decides a call; `event` is that of the request."""

    event: str
    approved: bool
    reason: str | None = None
    arguments: Mapping[str, JsonValue] | None = None


class Submission(NamedTuple):
    """The body of a submit."""

    turn_index: int
    message: str | None
    model: str | None
    retry: bool
    revision: int = 0
    regenerate: bool = False
    busy: Busy | None = None
    attachments: Sequence[Attachment] | None = None


def message_in(body: bytes) -> str:
    """Return the `message` of a JSON body, for an endpoint of yours; its other fields are yours.

    Raises UsageError that names what is wrong (no JSON, no object, no such text), and
    ValueTooLargeError.
    """
    message = _text(_object_in(body), "message")
    if message is None:
        raise UsageError("the field `message` is missing")
    return message


def submission_in(sent: bytes) -> Submission:
    """Return the checked body of a submit. Raises UsageError, ValueTooLargeError."""
    body = _object_in(sent, _FIELDS)
    if "turnIndex" not in body:
        raise UsageError("the field `turnIndex` is missing")
    index = identity.check_index(body["turnIndex"], name="the field `turnIndex`")
    revision = identity.check_index(body.get("revision", 0), name="the field `revision`")
    retry, regenerate = _flag(body, "retry"), _flag(body, "regenerate")
    if regenerate and (retry or "revision" in body):
        raise UsageError("the field `regenerate` goes without `revision` and `retry`")
    message = _text(body, "message")
    if message is None and not regenerate:
        raise UsageError("the field `message` is missing (only `regenerate` goes without it)")
    model = _text(body, "model")
    # The record escapes what is not ASCII, so it may be too long though the body was not.
    attachments = _attachments(body)
    together = [message, model, body.get("attachments")]
    encode_value(together, name="message, model and attachments", bytes_max=_RECORD_BYTES_MAX)
    busy = body.get("busy")
    if busy is not None and busy not in get_args(Busy):
        raise UsageError("the field `busy` must be 'reject', 'queue' or 'replace'")
    return Submission(index, message, model, retry, revision, regenerate, busy, attachments)


def decision_in(sent: bytes) -> Decision:
    """Return the checked body that decides a call. Raises UsageError, ValueTooLargeError."""
    body = _object_in(sent, _DECISION_FIELDS)
    event = _text(body, "event")
    if event is None or "approved" not in body:
        raise UsageError(f"the field `{'event' if event is None else 'approved'}` is missing")
    approved, arguments = _flag(body, "approved"), body.get("arguments")
    if arguments is not None and not isinstance(arguments, dict):
        raise UsageError("the field `arguments` must be an object")
    if arguments is not None and not approved:
        raise UsageError("the field `arguments` goes only with an `approved` that is true")
    return Decision(
        identity.check_event_key(event),
        approved,
        _text(body, "reason"),
        cast("Mapping[str, JsonValue] | None", arguments),
    )


def _attachments(body: Mapping[str, JsonValue]) -> Sequence[Attachment] | None:
    """Return the attachments of a body, each checked; None: it does not say."""
    if body.get("attachments") is None:
        return None
    attachments = attachments_from_json(body["attachments"], name="the field attachments")
    attachments_to_json(attachments)
    return attachments


def _flag(body: Mapping[str, JsonValue], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise UsageError(f"the field `{name}` must be true or false")
    return value


def _text(body: Mapping[str, JsonValue], name: str) -> str | None:
    value = body.get(name)
    if value is not None and (not isinstance(value, str) or not value):
        raise UsageError(f"the field `{name}` must be a text that is not empty")
    return value


def _object_in(body: bytes, known: Sequence[str] = ()) -> Mapping[str, JsonValue]:
    """Return the object that a body is, with no other fields than those `known`, if it says any."""
    sent: object = parse_json(body, name="body")
    if not isinstance(sent, dict):
        raise UsageError("the body must be an object")
    found = cast("Mapping[str, JsonValue]", sent)
    for field in found:
        if known and field not in known:
            raise UsageError(f"there is no field {field!r:.60} (known: {', '.join(known)})")
    return found
