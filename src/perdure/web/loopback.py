"""What protects an anonymous service on loopback from pages of other sites."""

from __future__ import annotations

import ipaddress
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from perdure.errors import PerdureError
from perdure.web.requests import media_type_of
from perdure.web.responses import Forbidden, UnsupportedMediaType, error_answer

_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9a-zA-Z.-]+))(?::[0-9]{1,5})?")


class LoopbackGuard:
    """Refuses requests that a page of another site made the user's browser send.

    A name that was rebound to loopback shows in `Host`, another site in `Origin` or
    `Sec-Fetch-Site`. Programs other than browsers send neither of the latter.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            refusal = _refusal(scope["method"], headers)
            error: PerdureError | None = None if refusal is None else Forbidden(refusal)
            error = error or _wrong_type(scope["method"], headers)
            if error is not None:
                await error_answer(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _refusal(method: str, headers: Headers) -> str | None:
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not is_loopback_host(hosts[0]):
        return f"the header Host names {', '.join(hosts)!r:.60}, not a loopback address"
    for origin in headers.getlist("origin"):
        if origin.lower().partition("://")[2] != hosts[0].lower():
            return f"the request comes from the origin {origin!r:.60}"
    if not all(site in ("none", "same-origin") for site in headers.getlist("sec-fetch-site")):
        # A link on another site may lead here: that page does not get to see the answer.
        is_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if not is_link or headers.get("sec-fetch-dest") != "document":
            return "the request comes from another site"
    return None


def _wrong_type(method: str, headers: Headers) -> PerdureError | None:
    """Refuse a change whose body is of a type that a form or a plain fetch could send."""
    if method in ("GET", "HEAD", "OPTIONS"):
        return None
    for content_type in headers.getlist("content-type"):
        if media_type_of(content_type) != "application/json":
            return UnsupportedMediaType(
                f"the content type must be application/json, not {content_type!r:.60}"
            )
    return None


def is_loopback_host(host: str) -> bool:
    """Return whether a header Host names this machine, by whatever port."""
    match = _HOST.fullmatch(host)
    return match is not None and is_loopback(match[1] or match[2])


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches the address or name."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
