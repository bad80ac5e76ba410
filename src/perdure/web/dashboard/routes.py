"""The dashboard's routes, and how an app gets them."""

from __future__ import annotations

import functools
import mimetypes
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from perdure.errors import PerdureError
from perdure.store.protocol import RunStore
from perdure.web.dashboard.access import AuthorizeViewer, Viewer, viewer_of
from perdure.web.dashboard.actions import Actions
from perdure.web.dashboard.pages import Pages
from perdure.web.dashboard.rendering import Rendering

FILES: Final = (
    ("dashboard.css", "dashboard/static/dashboard.css"),
    ("dashboard.js", "dashboard/static/dashboard.js"),
    ("htmx.min.js", "static/vendor/htmx.min.js"),
    ("icon.svg", "static/icon.svg"),
)
"""What the pages load, and where it lies."""
PATH: Final = "/dashboard"

_Handler = Callable[[Request, Viewer], Awaitable[Response]]


def add_dashboard(
    app: Starlette, store: RunStore, *, authorize: AuthorizeViewer, path: str = PATH
) -> None:
    """Give an app (also a FastAPI one) the dashboard over the runs of `store`, at `path`.

    `authorize(request)` says who may see how much, or None (401); it may be a coroutine function,
    and may raise Starlette's HTTPException. Pages read and change nothing; what changes something
    is a POST that only a page of the dashboard can make. Raises UsageError for a store that cannot
    be searched.
    """
    app.router.routes.extend(dashboard_routes(store, authorize=authorize, path=path))


def dashboard_routes(
    store: RunStore, *, authorize: AuthorizeViewer, path: str = PATH
) -> list[BaseRoute]:
    """Return the routes that `add_dashboard` adds."""
    rendering = Rendering(path)
    pages, actions = Pages(store, rendering), Actions(store, path)

    def route(rest: str, handler: _Handler, method: str) -> Route:
        return Route(path + rest, _guarded(handler, authorize, rendering), methods=[method])

    return [
        route("", pages.runs, "GET"),
        route("/run", pages.run, "GET"),
        route("/step", pages.step, "GET"),
        route("/stop", pages.stop, "GET"),
        route("/retry", pages.retry, "GET"),
        route("/fork", pages.fork, "GET"),
        route("/decide", pages.decide, "GET"),
        route("/stop", actions.stop, "POST"),
        route("/retry", actions.retry, "POST"),
        route("/fork", actions.fork, "POST"),
        route("/decide", actions.decide, "POST"),
        *(_file(f"{path}/static/{name}", place) for name, place in FILES),
    ]


def _guarded(
    handler: _Handler, authorize: AuthorizeViewer, rendering: Rendering
) -> Callable[[Request], Awaitable[Response]]:
    """Ask who asks, and turn what goes wrong into a page; nothing of the inside gets out."""

    @functools.wraps(handler)
    async def guarded(request: Request) -> Response:
        try:
            return await handler(request, await viewer_of(authorize, request))
        except PerdureError as error:
            return rendering.refusal(request, error)
        except HTTPException:
            raise
        except ClientDisconnect:
            return Response(status_code=400)  # Nobody is there to read it.
        except Exception as error:
            return rendering.unexpected(request, error)

    return guarded


def _file(path: str, place: str) -> Route:
    data = files("perdure.web").joinpath(*place.split("/")).read_bytes()
    media_type = mimetypes.guess_type(place)[0] or "application/octet-stream"
    headers = {"cache-control": "no-cache", "x-content-type-options": "nosniff"}

    async def answer(_: Request) -> Response:
        return Response(data, headers=headers, media_type=media_type)

    return Route(path, answer, methods=["GET"])
