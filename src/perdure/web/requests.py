"""Reading requests: every part is checked, and a refusal names the part."""

from __future__ import annotations

import re
from typing import Final, NamedTuple, cast
from urllib.parse import quote, unquote_to_bytes

from starlette.requests import Request

from perdure.core import identity
from perdure.core.jsonvalue import encode_value, parse_json
from perdure.core.limits import BODY_BYTES_MAX, MANIFEST_BYTES_MAX
from perdure.core.records import JsonValue
from perdure.errors import UsageError, ValueTooLargeError
from perdure.turn.wire.events import Dialect
from perdure.web.responses import UnsupportedMediaType

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_DIGITS_MAX: Final = 16
_RECORD_BYTES_MAX: Final = MANIFEST_BYTES_MAX - 16 * 1024
"""The rest of a manifest is for the ids, each of which stands in it several times."""
_FIELDS: Final = ("turnIndex", "message", "model", "retry")


class Submission(NamedTuple):
    """The body of a submit."""

    turn_index: int
    message: str
    model: str | None
    retry: bool


class Format(NamedTuple):
    """How a client wants its stream."""

    wire: str
    dialect: Dialect


def session_id_of(request: Request) -> str:
    """Return the session id of the path: printable, at most 200 bytes, without a slash."""
    text = str(request.path_params["session_id"])
    path: str = request.scope["path"]
    raw: bytes = request.scope.get("raw_path") or quote(path).encode()
    pieces, raw_pieces = path.split("/"), raw.partition(b"?")[0].split(b"/")
    # In the decoded path, a slash of the id looks like one of the route.
    if len(pieces) != len(raw_pieces) or not text.isprintable():
        raise UsageError("the session id in the path must be printable text without a slash")
    raw_id = raw_pieces[pieces.index(text)]
    if _BAD_ESCAPE.search(raw_id):
        raise UsageError("the session id in the path has a % without two hex digits behind it")
    try:
        unquote_to_bytes(raw_id).decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError("the session id in the path is not UTF-8") from None
    return identity.check_session_id(text)


def turn_index_of(request: Request) -> int:
    """Return the turn index of the path."""
    text = request.path_params["turn_index"]
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX):
        raise UsageError(f"the turn index in the path must be a number from 0 on, not {text!r:.40}")
    return identity.check_index(int(text), name="the turn index in the path")


def format_of(request: Request) -> Format:
    """Return the wire and dialect that a client asks for."""
    query = request.query_params
    dialect = query.get("wire", "perdure")
    if dialect not in ("perdure", "reference"):
        raise UsageError(f"the query's `wire` must be 'reference' or absent, not {dialect!r:.40}")
    envelope = query.get("envelope", "0")
    if envelope not in ("0", "1"):
        raise UsageError(f"the query's `envelope` must be 0 or 1, not {envelope!r:.40}")
    told: Dialect = "reference" if dialect == "reference" else "perdure"
    if "text/event-stream" in request.headers.get("accept", ""):
        return Format("sse", told)
    return Format("envelope" if envelope == "1" else "ndjson", told)


def cursor_of(request: Request) -> str | None:
    """Return the cursor behind which a client wants to go on, if it has one."""
    # An EventSource comes back to the address it began with: its header is the newer of the two.
    return request.headers.get("last-event-id") or request.query_params.get("after") or None


async def submission_of(request: Request) -> Submission:
    """Return the checked body of a submit. Raises UsageError, ValueTooLargeError."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise UnsupportedMediaType(
            f"the content type must be application/json, not {content_type!r}"
        )
    sent: object = parse_json(await _read_body(request), name="body")
    if not isinstance(sent, dict):
        raise UsageError("the body must be an object")
    body = cast("dict[str, JsonValue]", sent)
    for field in body:
        if field not in _FIELDS:
            raise UsageError(f"there is no field {field!r:.60} (known: {', '.join(_FIELDS)})")
    for field in ("turnIndex", "message"):
        if field not in body:
            raise UsageError(f"the field `{field}` is missing")
    message, model, retry = body["message"], body.get("model"), body.get("retry", False)
    if not isinstance(message, str) or not message:
        raise UsageError("the field `message` must be a text that is not empty")
    if model is not None and (not isinstance(model, str) or not model):
        raise UsageError("the field `model` must be a text, or null")
    # The record escapes what is not ASCII, so it may be too long though the body was not.
    together = [message, model]
    encode_value(together, name="`message` and `model` together", bytes_max=_RECORD_BYTES_MAX)
    if not isinstance(retry, bool):
        raise UsageError("the field `retry` must be true or false")
    index = identity.check_index(body["turnIndex"], name="the field `turnIndex`")
    return Submission(index, message, model, retry)


async def _read_body(request: Request) -> bytes:
    """Read the body, and refuse one that is too long as soon as that is known."""
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and int(declared) > BODY_BYTES_MAX:
        raise ValueTooLargeError(f"the body is over {BODY_BYTES_MAX} bytes")
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > BODY_BYTES_MAX:
            raise ValueTooLargeError(f"the body is over {BODY_BYTES_MAX} bytes")
        pieces.append(piece)
    return b"".join(pieces)
