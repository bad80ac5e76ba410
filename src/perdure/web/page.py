"""The chat page: files of this package, under a policy that allows nothing else."""

from __future__ import annotations

import mimetypes
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

FILES: Final = (
    "index.html",
    "app.js",
    "approvals.js",
    "chats.js",
    "elements.js",
    "lines.js",
    "markdown.js",
    "stream.js",
    "turn.js",
    "style.css",
    "icon.svg",
    "vendor/markdown-it.mjs",
)
HEADERS: Final = {
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def page_routes() -> list[BaseRoute]:
    """Return the routes of the page and its files, read once."""
    folder = files("perdure.web") / "static"
    routes: list[BaseRoute] = []
    for name in FILES:
        path = "/" if name == "index.html" else f"/static/{name}"
        routes.append(
            Route(
                path, _file(name, folder.joinpath(*name.split("/")).read_bytes()), methods=["GET"]
            )
        )
    return routes


def _file(name: str, data: bytes) -> Callable[[Request], Awaitable[Response]]:
    media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"

    async def answer(_: Request) -> Response:
        return Response(data, headers=HEADERS, media_type=media_type)

    return answer
