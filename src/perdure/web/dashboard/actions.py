"""What the dashboard can do to a run: stop it, try it again, fork it, decide what waits."""

from __future__ import annotations

from typing import Final, cast
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from perdure.agent.tool_approval import Approval, decide
from perdure.core import identity
from perdure.core.jsonvalue import parse_json
from perdure.core.records import JsonValue, RunRecord
from perdure.core.wording import id_of
from perdure.durable.forking import fork
from perdure.durable.retrying import retry_run
from perdure.errors import RunNotFoundError, UsageError, ValueTooLargeError
from perdure.store.protocol import RunStore
from perdure.web.dashboard.access import Place, Viewer, check_may_act, check_own_page, place_of
from perdure.web.dashboard.rendering import HEADERS

BODY_BYTES_MAX: Final = 8 * 1024
Body = dict[str, JsonValue]


class Actions:
    """Commands. Each is answered with where to look next, for the script that has asked."""

    def __init__(self, store: RunStore, path: str) -> None:
        self._store = store
        self._path = path

    async def stop(self, request: Request, viewer: Viewer) -> Response:
        """Stop a run durably; one at rest stays as it is."""
        place, _ = await self._asked(request, viewer)
        return self._look_at(request, await place.store.request_stop(place.run_id))

    async def retry(self, request: Request, viewer: Viewer) -> Response:
        """Queue a failed or parked run again."""
        place, _ = await self._asked(request, viewer)
        return self._look_at(request, await retry_run(place.store, place.run_id))

    async def fork(self, request: Request, viewer: Viewer) -> Response:
        """Begin a new run with the first steps of this one."""
        place, body = await self._asked(request, viewer)
        new_id = _text(body, "newId").strip() if "newId" in body else None
        forked = await fork(
            place.store,
            place.run_id,
            from_step=_position(_text(body, "from")),
            new_run_id=new_id or None,
        )
        return self._look_at(request, forked)

    async def decide(self, request: Request, viewer: Viewer) -> Response:
        """Decide a call that waits for a human; a second answer changes nothing."""
        place, body = await self._asked(request, viewer)
        run = await place.store.read_run(place.run_id)
        if run is None:
            raise RunNotFoundError(f"there is no run {place.run_id!r}")
        answer = _text(body, "answer")
        if answer not in ("approve", "deny"):
            raise UsageError(f"the field `answer` must be 'approve' or 'deny', not {answer!r:.40}")
        reason = _text(body, "reason").strip() if "reason" in body else ""
        approval = Approval(answer == "approve", reason or None)
        await decide(place.store, place.run_id, _text(body, "event"), approval)
        return self._look_at(request, run)

    async def _asked(self, request: Request, viewer: Viewer) -> tuple[Place, Body]:
        """Return the run that is meant, and all that was sent. Raises what `check_…` raise."""
        check_may_act(viewer)
        check_own_page(request)
        body = await _body(request)
        return place_of(self._store, viewer, _text(body, "id")), body

    def _look_at(self, request: Request, run: RunRecord) -> Response:
        root = f"{request.scope.get('root_path', '')}{self._path}"
        where = f"{root}/run?id={quote(id_of(run), safe='')}"
        return Response(status_code=204, headers={**HEADERS, "hx-redirect": where})


async def _body(request: Request) -> Body:
    received = b""
    async for piece in request.stream():
        received += piece
        if len(received) > BODY_BYTES_MAX:
            raise ValueTooLargeError(f"the body is larger than {BODY_BYTES_MAX} bytes")
    body: object = parse_json(received, name="body")
    if not isinstance(body, dict):
        raise UsageError("the body must be an object")
    return cast("Body", body)


def _text(body: Body, name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise UsageError(f"the field `{name}` must be a text")
    return value


def _position(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise UsageError(f"the field `from` must be the number of a step, not {text!r:.40}")
    return identity.check_index(int(text), name="the field `from`")
