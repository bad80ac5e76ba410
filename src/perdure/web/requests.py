"""Reading requests: every part is checked, and a refusal names the part."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote, unquote_to_bytes

from perdure.core import identity
from perdure.core.limits import BODY_BYTES_MAX
from perdure.errors import UsageError, ValueTooLargeError
from perdure.turn.identity import ChatTurnIdentity
from perdure.turn.wire.events import Dialect

try:
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
except ImportError as error:
    raise ImportError("an endpoint needs Starlette: pip install 'perdure[serve]'") from error

from perdure.web.bodies import Decision, Submission, decision_in, message_in, submission_in
from perdure.web.responses import UnsupportedMediaType

T = TypeVar("T")

BODY_WAIT_MS: Final = 30_000
"""A body that is not there by then is not waited for."""

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_INDEX = re.compile("0|[1-9][0-9]{0,15}", re.ASCII)
_QUALITY = re.compile("0(?:\\.[0-9]{0,3})?|1(?:\\.0{0,3})?", re.ASCII)
_NDJSON: Final = "application/x-ndjson"


class Format(NamedTuple):
    """How a client wants its stream."""

    wire: str
    dialect: Dialect


NO_SLASH: Final = "the path has an encoded slash (%2F): no session id and no turn index has one"


def has_encoded_slash(request: Request) -> bool:
    """Return whether a piece of the path holds a slash, which looks like one of the route."""
    path: str = request.scope["path"]
    return path.count("/") != _raw_path(request).count(b"/")


def _raw_path(request: Request) -> bytes:
    raw: bytes = request.scope.get("raw_path") or quote(request.scope["path"]).encode()
    return raw.partition(b"?")[0]


def session_id_of(request: Request) -> str:
    """Return the path's `{session_id}`: printable, at most 200 bytes, without a slash.

    Raises UsageError that names what is wrong.
    """
    text = str(request.path_params["session_id"])
    if has_encoded_slash(request):
        raise UsageError(NO_SLASH)
    if not text.isprintable():
        raise UsageError("the session id in the path must be printable text without a slash")
    path: str = request.scope["path"]
    raw_id = _raw_path(request).split(b"/")[path.split("/").index(text)]
    if _BAD_ESCAPE.search(raw_id):
        raise UsageError("the session id in the path has a % without two hex digits behind it")
    try:
        unquote_to_bytes(raw_id).decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError("the session id in the path is not UTF-8") from None
    return identity.check_session_id(text)


def turn_index_of(request: Request) -> int:
    """Return the path's `{turn_index}`, a number from 0 on. Raises UsageError."""
    text = request.path_params["turn_index"]
    # One turn has one address: no sign, no leading zeros.
    if not _INDEX.fullmatch(text):
        raise UsageError(f"the turn index in the path must be a number from 0 on, not {text!r:.40}")
    return identity.check_index(int(text), name="the turn index in the path")


def turn_address(request: Request, turn: ChatTurnIdentity) -> str:
    """Return the path of a turn of the session that a request is about."""
    session = _raw_path(request).rpartition(b"/turns")[0].decode("ascii", "replace")
    query = f"?revision={turn.revision}" if turn.revision else ""
    return f"{session}/turns/{turn.turn_index}{query}"


def revision_of(request: Request) -> int | None:
    """Return the revision of the query; None: whichever is meant."""
    text = request.query_params.get("revision")
    if text is None:
        return None
    if not _INDEX.fullmatch(text):
        raise UsageError(f"the query's `revision` must be a number from 0 on, not {text!r:.40}")
    return identity.check_index(int(text), name="the query's `revision`")


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
    accepted = _accepted(request)
    events, lines = (accepted.get(kind, 0.0) for kind in ("text/event-stream", _NDJSON))
    if events > 0 and events >= lines:
        return Format("sse", told)
    return Format("envelope" if envelope == "1" else "ndjson", told)


def _accepted(request: Request) -> dict[str, float]:
    """Return how much a client wants each media type that it names; 0 is not at all."""
    accepted: dict[str, float] = {}
    for item in ",".join(request.headers.getlist("accept")).split(","):
        media_type, *parameters = (piece.strip().lower() for piece in item.split(";"))
        quality = "1"
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                quality = value.strip()
        if not _QUALITY.fullmatch(quality):
            raise UsageError(f"the header Accept has a wrong quality: {quality!r:.20}")
        accepted[media_type] = float(quality)
    return accepted


def stops_first(request: Request) -> bool:
    """Return whether a deletion shall stop what is in flight first."""
    stop = request.query_params.get("stop", "0")
    if stop not in ("0", "1"):
        raise UsageError(f"the query's `stop` must be 0 or 1, not {stop!r:.40}")
    return stop == "1"


def cursor_of(request: Request) -> str | None:
    """Return the cursor behind which a client wants to go on, if it has one."""
    # An EventSource comes back to the address it began with: its header is the newer of the two.
    return request.headers.get("last-event-id") or request.query_params.get("after") or None


def media_type_of(content_type: str) -> str:
    """Return what a header Content-Type names, without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def _nobody(_size: int) -> None:
    """Be told of a piece, and do nothing."""


async def submission_of(request: Request, received: Callable[[int], None] = _nobody) -> Submission:
    """Return the checked body of a submit; `received` is told the size of each piece.

    Raises UsageError, ValueTooLargeError.
    """
    return submission_in(await _read_body(request, received))


async def decision_of(request: Request, received: Callable[[int], None] = _nobody) -> Decision:
    """Return the checked body that decides a call. Raises what `submission_of` raises."""
    return decision_in(await _read_body(request, received))


async def message_of(request: Request) -> str:
    """Return the `message` of a JSON body, for an endpoint of yours; its other fields are yours.

    Raises a PerdureError that names what is wrong (no JSON, no object, no such text, another
    content type, too long), which `answer_error` answers with 4xx.
    """
    return message_in(await _read_body(request))


async def _read_body(request: Request, received: Callable[[int], None] = _nobody) -> bytes:
    """Read a body of JSON, and refuse one that is too long as soon as that is known."""
    content_type = media_type_of(request.headers.get("content-type", ""))
    if content_type != "application/json":
        raise UnsupportedMediaType(
            f"the content type must be application/json, not {content_type!r}"
        )
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and float(declared) > BODY_BYTES_MAX:
        raise ValueTooLargeError(f"the body is over {BODY_BYTES_MAX} bytes")
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > BODY_BYTES_MAX:
            raise ValueTooLargeError(f"the body is over {BODY_BYTES_MAX} bytes")
        received(len(piece))
        pieces.append(piece)
    return b"".join(pieces)


async def in_time(reading: Coroutine[Any, Any, T], closing: asyncio.Event) -> T:
    """Return what a client sends, unless that takes too long, or longer than the service."""
    loop = asyncio.get_running_loop()
    read, closed = loop.create_task(reading), loop.create_task(closing.wait())
    try:
        await asyncio.wait(
            (read, closed), timeout=BODY_WAIT_MS / 1_000, return_when=asyncio.FIRST_COMPLETED
        )
        if read.done() and not closing.is_set():
            return read.result()
    finally:
        read.cancel()
        closed.cancel()
    if closing.is_set():
        raise HTTPException(503, "The service shuts down.", {"retry-after": "1"})
    raise HTTPException(408, f"The body did not come within {BODY_WAIT_MS} ms.")
