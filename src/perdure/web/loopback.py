"""What protects an anonymous service on loopback from pages of other sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from perdure.web.responses import Forbidden, error_answer

LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


class LoopbackGuard:
    """Refuses requests that a page of another site made the user's browser send.

    A name that was rebound to loopback shows in `Host`, another site in `Origin` or
    `Sec-Fetch-Site`. Programs other than browsers send neither of the latter.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = {
                name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
            }
            refusal = _refusal(headers)
            if refusal is not None:
                await error_answer(Forbidden(refusal))(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _refusal(headers: Mapping[str, str]) -> str | None:
    host = headers.get("host", "")
    if _name(host) not in LOOPBACK_NAMES:
        return f"the header Host names {host!r:.60}, not a loopback address"
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        return f"the request comes from the origin {origin!r:.60}"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return "the request comes from another site"
    return None


def _name(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
