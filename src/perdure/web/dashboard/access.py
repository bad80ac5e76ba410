"""Who may see the dashboard, how much of it, and whence a change may come."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from urllib.parse import urlsplit

from perdure.core.identity import logical_id
from perdure.errors import RunNotFoundError
from perdure.store.protocol import RunStore

try:
    from starlette.requests import Request
except ImportError as error:
    raise ImportError("the dashboard needs Starlette: pip install 'perdure[serve]'") from error

from perdure.web.requests import media_type_of
from perdure.web.responses import Forbidden, Unauthorized, UnsupportedMediaType


class Viewer(NamedTuple):
    """Somebody who may see the dashboard.

    `tenant` None: the runs of all tenants; '' is the default one. Who does not see values sees
    states, names, moments and counts, but no message, answer, input, result, payload or text of an
    error. Who may act may stop, retry and fork every run that he sees.
    """

    tenant: str | None = None
    sees_values: bool = False
    may_act: bool = False


AuthorizeViewer = Callable[[Request], Viewer | Awaitable[Viewer | None] | None]


async def viewer_of(authorize: AuthorizeViewer, request: Request) -> Viewer:
    """Return who asks. Raises Unauthorized."""
    known = authorize(request)
    viewer = await known if inspect.isawaitable(known) else known
    if viewer is None:
        raise Unauthorized("nobody is known to have made this request")
    return viewer


def check_may_act(viewer: Viewer) -> None:
    """Raise Forbidden for somebody who may only look."""
    if not viewer.may_act:
        raise Forbidden("you may look at runs here, not change them")


def check_own_page(request: Request) -> None:
    """Raise unless a page of this very dashboard has made the request, as a script does.

    Browsers say where a request comes from; whoever does not say so is no page of ours.
    """
    headers = request.headers
    sites = headers.getlist("sec-fetch-site")
    if sites:
        if sites != ["same-origin"]:
            raise Forbidden("the request comes from another site")
    else:
        origins, hosts = headers.getlist("origin"), headers.getlist("host")
        if not origins or [urlsplit(origin).netloc for origin in origins] != hosts:
            raise Forbidden("the request does not say that it comes from this dashboard")
    content_type = media_type_of(headers.get("content-type", ""))
    if content_type != "application/json":
        raise UnsupportedMediaType(
            f"the content type must be application/json, not {content_type!r:.60}"
        )


class Place(NamedTuple):
    """A run by its logical id, and the view of its tenant."""

    store: RunStore
    run_id: str


def place_of(store: RunStore, viewer: Viewer, run_id: str) -> Place:
    """Return the run of a stored id. Raises RunNotFoundError for one of another tenant."""
    tenant, logical = logical_id(run_id)
    if viewer.tenant not in (None, tenant) or not logical:
        raise RunNotFoundError(f"there is no run {run_id!r:.300}")
    return Place(store.for_tenant(tenant), logical)
