"""Answers: JSON, errors that name the way out, and streams that a leaving client cannot hurt."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

from perdure.core import effects
from perdure.durable.alarm import Alarm
from perdure.errors import OverloadedError, PerdureError
from perdure.turn.ending import summary_of

try:
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Message, Receive, Scope, Send
except ImportError as error:
    raise ImportError("an endpoint needs Starlette: pip install 'perdure[serve]'") from error

logger = logging.getLogger("perdure.web")

WRITE_STALL_MS: Final = 30_000
"""A client that takes nothing for this long is cut off; its turn goes on."""

STATUS_OF: Final[Mapping[str, int]] = {
    "bad_request": 400,
    "attachments_not_shown": 422,
    "bad_cursor": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "lease_held": 409,
    "manifest_mismatch": 409,
    "session_busy": 409,
    "parked": 409,
    "stopped": 409,
    "frames_expired": 410,
    "value_too_large": 413,
    "unsupported_media_type": 415,
    "not_serializable": 422,
    "too_many_readers": 429,
    "too_many_turns": 429,
    "overloaded": 503,
    "store_busy": 503,
    "store_closed": 503,
    "store_full": 503,
    "store_unavailable": 503,
}
RETRY_AFTER_S: Final = 1
RETRY_AFTER_S_OF: Final[Mapping[str, int]] = {"too_many_turns": 5}
"""Where it takes longer until there is room."""
PIECE_BYTES: Final = 64 * 1024
"""So much is written at one go: a slow client who takes piece after piece has not stalled."""

STREAM_HEADERS: Final[Mapping[str, str]] = {
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}
"""What keeps proxies from holding tokens back."""


class Unauthorized(PerdureError):
    """Nobody is known to have asked.

    An endpoint of yours may raise it too: `answer_error` answers 401 with its message.
    """

    code = "unauthorized"
    hint = "Send the credentials that this service asks for."


class Forbidden(PerdureError):
    """This request may not be made from there."""

    code = "forbidden"
    hint = "Open the service under the address it was started with."


class UnsupportedMediaType(PerdureError):
    """The body has another content type than JSON."""

    code = "unsupported_media_type"
    hint = "Send the header `Content-Type: application/json`."


def json_answer(
    value: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return `value` as JSON in ASCII."""
    known = {"cache-control": "no-store", **(headers or {})}
    body = json.dumps(value, separators=(",", ":"))
    return Response(body, status, known, media_type="application/json")


def error_answer(error: PerdureError, *, turn: str | None = None) -> Response:
    """Return the JSON form of an error: code, message, hint, and where the `turn` is instead."""
    status = STATUS_OF.get(error.code, 500)
    headers: dict[str, str] = {}
    # What this process cannot do, another one may.
    if status == 503 or (error.retryable and status in (409, 429)):
        headers["retry-after"] = str(RETRY_AFTER_S_OF.get(error.code, RETRY_AFTER_S))
    told = {"code": error.code, "message": str(error), "hint": error.hint}
    # What is refused at the door is no fault: whoever sends too much does not fill the log.
    if status >= 500 and not isinstance(error, OverloadedError):
        ref = effects.new_reference()
        logger.error("a request failed (reference %s)", ref, exc_info=error)
        told |= {"message": f"{summary_of(error)} Its reference is {ref}."}
    if turn is not None:
        told["turn"] = headers["location"] = turn
    return json_answer({"error": told}, status=status, headers=headers)


async def answer_error(_request: Request, error: Exception) -> Response:
    """Answer a request that raised a PerdureError, as `perdure serve` does; for an app of yours.

    `Starlette(routes=…, exception_handlers={PerdureError: answer_error})`: the status fits the
    error (404 not found, 409 busy or another message, 400 a wrong cursor, 503 with Retry-After …),
    and the body is `{"error": {"code", "message", "hint"}}`. Registered for `Exception` as well, it
    answers whatever else is raised with 500 and a reference to the log.
    """
    return error_answer(error) if isinstance(error, PerdureError) else unexpected_answer(error)


def unexpected_answer(error: Exception) -> Response:
    """Return what a client is told of an error of ours: only where it is logged."""
    ref = effects.new_reference()
    logger.error("a request failed (reference %s)", ref, exc_info=error)
    told = {
        "code": "internal",
        "message": f"Something went wrong. Its reference is {ref}.",
        "hint": "Look for the reference in the server's log.",
    }
    return json_answer({"error": told}, status=500)


def refusal_answer(refused: HTTPException) -> Response:
    """Return the JSON form of what the router refuses: no such path, no such method."""
    code, hint = REFUSALS.get(refused.status_code, OTHER_REFUSAL)
    told = {"code": code, "message": refused.detail, "hint": hint}
    return json_answer({"error": told}, status=refused.status_code, headers=refused.headers)


OTHER_REFUSAL: Final = ("refused", "Correct the request.")
REFUSALS: Final[Mapping[int, tuple[str, str]]] = {
    401: ("unauthorized", Unauthorized.hint),
    403: ("forbidden", Forbidden.hint),
    404: ("not_found", "Check the path: this service has none of that name."),
    405: ("method_not_allowed", "Use a method that the header Allow names."),
    408: ("request_timeout", "Send the request again, with its body at once."),
    503: ("shutting_down", "Send the request again, here or to another server."),
}


class StreamAnswer(Response):
    """A body that is written as it comes, to a client who may leave, stall or be cut off.

    It only reads: that it ends early ends nothing else. A stream that does not come to its own
    end is never closed cleanly, so that no client takes half an answer for a whole one.
    """

    def __init__(
        self,
        lines: AsyncGenerator[bytes, None],
        *,
        status: int,
        content_type: str,
        closing: asyncio.Event,
        counted: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        write_stall_ms: float = WRITE_STALL_MS,
    ) -> None:
        self._counted = counted
        self._lines = lines
        self._closing = closing
        self._write_stall_ms = write_stall_ms
        self._has_stalled = False
        self.status_code = status
        self.background = None
        self.init_headers({"content-type": content_type, **STREAM_HEADERS})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await send(self._start())
            await send({"type": "http.response.body", "body": b""})
            return
        with self._counted():
            await self._stream(receive, send)

    async def _stream(self, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        pump = loop.create_task(self._pump(send))
        waits = [loop.create_task(_until_gone(receive)), loop.create_task(self._closing.wait())]
        try:
            await asyncio.wait((pump, *waits), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (pump, *waits):
                task.cancel()
            await asyncio.gather(pump, *waits, return_exceptions=True)
        if self._has_stalled:
            logger.warning("a stream was cut: nothing was taken for %d ms", self._write_stall_ms)
        elif not pump.cancelled() and (error := pump.exception()) is not None:
            logger.warning("a stream was cut: %r", error)

    def _start(self) -> Message:
        return {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }

    async def _pump(self, send: Send) -> None:
        await send(self._start())
        pump = asyncio.current_task()
        assert pump is not None

        def cut() -> None:
            self._has_stalled = True
            pump.cancel()

        stall = Alarm(cut)
        try:
            # Closed at once: until it is, the reader counts as one of the turn's.
            async with contextlib.aclosing(self._lines) as lines:
                async for chunk in lines:
                    for begin in range(0, len(chunk), PIECE_BYTES):
                        stall.set(self._write_stall_ms)
                        await send(_body(chunk[begin : begin + PIECE_BYTES]))
                    stall.clear()
            stall.set(self._write_stall_ms)
            await send(_body(b"", is_last=True))
        finally:
            stall.close()


def _body(piece: bytes, *, is_last: bool = False) -> Message:
    return {"type": "http.response.body", "body": piece, "more_body": not is_last}


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
