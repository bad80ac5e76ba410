"""Pages of the dashboard: templates under a policy that allows no script but our own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from perdure.core import effects
from perdure.core.records import RunRecord
from perdure.core.wording import id_of, length_text, note_of, when
from perdure.errors import PerdureError, RunNotFoundError
from perdure.observe.credentials import mask_text, shown
from perdure.web.dashboard.access import Viewer
from perdure.web.responses import STATUS_OF, logger

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
except ImportError as error:
    raise ImportError("the dashboard needs Jinja2: pip install 'perdure[serve]'") from error

SHOWN_MAX: Final = 20_000
"""So many characters of a value are shown; `perdure show --full` prints all of it."""
HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    # A piece for a script and the whole page have one address.
    "vary": "hx-request",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Rendering:
    """Makes pages that know under which path the dashboard stands."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._templates: Any = Environment(
            loader=PackageLoader("perdure.web.dashboard", "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(
            length_of=length_text,
            when=when,
            pretty=pretty,
            amount=amount,
            key=key_of,
            urlencode_all=partial(quote, safe=""),
        )
        self._templates.globals.update(id_of=id_of, note_of=note_of, took=took)

    def page(
        self,
        request: Request,
        name: str,
        viewer: Viewer | None,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        **facts: Any,
    ) -> Response:
        """Return a page, or only what is in it to a script that asks for it."""
        root = f"{request.scope.get('root_path', '')}{self._path}"
        template = self._templates.get_template(name)
        text = template.render(facts, viewer=viewer, root=root, is_piece=is_piece(request))
        known = {**HEADERS, **(headers or {})}
        return Response(text, status, known, media_type="text/html")

    def refusal(self, request: Request, error: PerdureError) -> Response:
        """Return the page that says what was refused, and the way out."""
        status = STATUS_OF.get(error.code, 500)
        message = str(error)
        if status >= 500:
            message = f"It failed. Its reference is {_logged(error)}."
        title = "Not found" if isinstance(error, RunNotFoundError) else "That did not work"
        return self._error(request, status, title, message, error.hint)

    def unexpected(self, request: Request, error: Exception) -> Response:
        """Return what is told of an error of ours: only where it is logged."""
        message = f"Something went wrong. Its reference is {_logged(error)}."
        hint = "Look for the reference in the server's log."
        return self._error(request, 500, "That did not work", message, hint)

    def _error(
        self, request: Request, status: int, title: str, message: str, hint: str
    ) -> Response:
        return self.page(
            request, "error.html", None, status=status, title=title, message=message, hint=hint
        )


def _logged(error: Exception) -> str:
    ref = effects.new_reference()
    logger.error("a page failed (reference %s)", ref, exc_info=error)
    return ref


def is_piece(request: Request) -> bool:
    """Return whether a script asks, which puts the answer into a page that is there."""
    return request.headers.get("hx-request") == "true"


def pretty(value: Any) -> str:
    """Return a stored value as people read it, without secrets; what is very long is cut."""
    if isinstance(value, str):
        text = mask_text(value)
    else:
        text = json.dumps(shown(value), ensure_ascii=False, indent=2)
    rest = len(text) - SHOWN_MAX
    return text if rest <= 0 else f"{text[:SHOWN_MAX]}…\n({rest:,} characters more)"


def amount(value: int | None) -> str:
    """Return a count; what nobody knows is said to be unknown, never zero."""
    return "unknown" if value is None else f"{value:,}"


def key_of(text: str) -> str:
    """Return what can stand in an attribute `id` for any text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def took(run: RunRecord, now: str) -> str:
    """Return how long a run took, or has taken so far."""
    end = run.completed_at or (run.updated_at if run.state == "parked" else now)
    return length_text(effects.epoch_ms(end) - effects.epoch_ms(run.created_at))
