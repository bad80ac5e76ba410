"""A uvicorn server that cuts live streams when it is told to stop, instead of waiting for them."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable
from types import FrameType
from typing import Final

from starlette.types import ASGIApp

try:
    import uvicorn
    from uvicorn.protocols.http.auto import AutoHTTPProtocol
except ImportError as error:
    raise ImportError("the server needs uvicorn: pip install 'perdure[serve]'") from error


GRACE_S: Final = 1
"""How long connections may take to close, once streams are cut, before turns are given back."""


_NO_NEWS: Final = (
    "without completing response",
    "Invalid HTTP request received",
    "Unsupported upgrade request",
    "No supported WebSocket library",
)
_BAD_REQUEST: Final = {
    "code": "bad_request",
    "message": "This is not a request that HTTP/1.1 knows.",
    "hint": "Correct the request line and the headers.",
}


def _refuse(protocol: asyncio.Protocol, _reason: str) -> None:
    """Answer what is no request in the form that all errors have, in place of plain text."""
    body = json.dumps({"error": _BAD_REQUEST}, separators=(",", ":")).encode()
    head = (
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    transport: asyncio.Transport = vars(protocol)["transport"]
    transport.write(head.encode() + body)
    transport.close()


_JsonProtocol: Final = type("_JsonProtocol", (AutoHTTPProtocol,), {"send_400_response": _refuse})


class StreamingServer(uvicorn.Server):
    """Serves `app`; at the first signal `close_streams` is called, before anything waits.

    uvicorn waits for open responses and only then ends the app's lifespan, in which turns are
    given back: with a live stream that would never happen. Answers that are not streams get
    GRACE_S. A second signal calls `hurry` and waits for nothing. The signal is not raised again
    afterwards, so that whoever started the server can tidy up.
    """

    def __init__(
        self, app: ASGIApp, *, close_streams: Callable[[], None], hurry: Callable[[], None]
    ) -> None:
        config = uvicorn.Config(
            app,
            lifespan="on",
            access_log=False,
            log_level="warning",
            timeout_graceful_shutdown=GRACE_S,
            server_header=False,
            ws="none",
            http=_JsonProtocol,
        )
        super().__init__(config)
        self._close_streams = close_streams
        self._hurry = hurry
        self._loop: asyncio.AbstractEventLoop | None = None
        logging.getLogger("uvicorn.error").addFilter(self._is_news)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        told = self._close_streams
        if self.should_exit:
            self.force_exit = True
            told = self._hurry
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(told)

    async def serve_on(self, listener: socket.socket) -> None:
        """Serve the bound socket until a signal."""
        self._loop = asyncio.get_running_loop()
        await self.serve(sockets=[listener])

    def _is_news(self, record: logging.LogRecord) -> bool:
        """A stream that is cut on purpose is none, nor is what some client sends."""
        message = record.getMessage()
        return not any(piece in message for piece in _NO_NEWS)
