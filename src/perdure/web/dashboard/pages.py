"""What the dashboard shows: the list of runs, a run, a step, and what an action would do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from perdure.agent.tool_approval import pending_approvals, pending_in
from perdure.core import identity
from perdure.core.records import RunRecord, StepRecord
from perdure.core.transitions import RESTING_STATES
from perdure.durable.forking import fork_origin, preview_fork
from perdure.errors import RunNotFoundError, UsageError
from perdure.store.protocol import RunStore
from perdure.store.upkeep import Upkeep, upkeep_of
from perdure.web.dashboard.access import Place, Viewer, check_may_act, place_of
from perdure.web.dashboard.rendering import Rendering
from perdure.web.dashboard.search import STATES, find_page, search_of
from perdure.web.dashboard.timeline import timeline_of
from perdure.web.dashboard.transcript import transcript_of
from perdure.web.dashboard.usage import cost_text, sums_of

STEPS_SHOWN: Final = 200
"""So many steps of a run stand on one page."""


class Pages:
    """Readers; nothing here changes a run."""

    def __init__(self, store: RunStore, rendering: Rendering) -> None:
        self._store = store
        self._upkeep: Upkeep = upkeep_of(store)
        self._rendering = rendering

    async def runs(self, request: Request, viewer: Viewer) -> Response:
        """Show the runs that are asked for, the newest first."""
        now = await self._upkeep.now()
        search = search_of(request.query_params, viewer, now)
        notice = None
        try:
            page = await find_page(self._upkeep, search)
        except RunNotFoundError:
            notice = "The run that this page began behind is gone: these are the newest ones."
            search = search._replace(after=None)
            page = await find_page(self._upkeep, search)
        return self._rendering.page(
            request,
            "runs.html",
            viewer,
            search=search,
            page=page,
            now=now,
            notice=notice,
            states=STATES,
        )

    async def run(self, request: Request, viewer: Viewer) -> Response:
        """Show a run."""
        place = self._place(request, viewer)
        run, now = await self._read(place), await self._upkeep.now()
        steps = await place.store.read_steps(place.run_id)
        details = await place.store.read_details(place.run_id)
        first = _number(request, "first", default=0)
        shown = steps[first : first + STEPS_SHOWN]
        is_live = run.state not in RESTING_STATES
        return self._rendering.page(
            request,
            "run.html",
            viewer,
            run=run,
            now=now,
            origin=fork_origin(run),
            is_live=is_live,
            approvals=await pending_in(place.store, place.run_id, steps) if is_live else (),
            timeline=timeline_of(run, details.attempts, shown, now),
            details=details,
            first=first,
            steps_all=len(steps),
            steps_shown=STEPS_SHOWN,
            sums=sums_of(details.usage),
            cost_text=cost_text,
            transcript=(
                await transcript_of(place.store, run, steps) if viewer.sees_values else None
            ),
        )

    async def step(self, request: Request, viewer: Viewer) -> Response:
        """Show a step."""
        place = self._place(request, viewer)
        run, now = await self._read(place), await self._upkeep.now()
        index = _number(request, "index")
        steps = await place.store.read_steps(place.run_id)
        found = [step for step in steps if step.step_index == index]
        if not found:
            raise RunNotFoundError(f"the run {place.run_id!r} has no step {index}")
        return self._rendering.page(
            request,
            "step.html",
            viewer,
            run=run,
            step=found[0],
            now=now,
            forks_at=_forks_at(run, steps),
        )

    async def stop(self, request: Request, viewer: Viewer) -> Response:
        """Show what a stop would do."""
        return await self._preview(request, viewer, "stop.html")

    async def retry(self, request: Request, viewer: Viewer) -> Response:
        """Show what a retry would do."""
        check_may_act(viewer)
        place = self._place(request, viewer)
        steps = await place.store.read_steps(place.run_id)
        kept = [step for step in steps if step.status == "completed"]
        again = [step for step in steps if step.status != "completed"]
        return await self._preview(request, viewer, "retry.html", kept=kept, again=again)

    async def decide(self, request: Request, viewer: Viewer) -> Response:
        """Show a call that waits for a human."""
        check_may_act(viewer)
        place, event = self._place(request, viewer), request.query_params.get("event", "")
        pending = await pending_approvals(place.store, place.run_id)
        found = [one for one in pending if one.event == event]
        approval = found[0] if found else None
        return await self._preview(request, viewer, "decide.html", approval=approval)

    async def fork(self, request: Request, viewer: Viewer) -> Response:
        """Show what a fork would do."""
        check_may_act(viewer)
        place = self._place(request, viewer)
        preview = await preview_fork(place.store, place.run_id, from_step=_number(request, "from"))
        return await self._preview(request, viewer, "fork.html", preview=preview)

    async def _preview(self, request: Request, viewer: Viewer, name: str, **facts: Any) -> Response:
        check_may_act(viewer)
        run = await self._read(self._place(request, viewer))
        return self._rendering.page(request, name, viewer, run=run, **facts)

    def _place(self, request: Request, viewer: Viewer) -> Place:
        return place_of(self._store, viewer, request.query_params.get("id", ""))

    async def _read(self, place: Place) -> RunRecord:
        run = await place.store.read_run(place.run_id)
        if run is None:
            raise RunNotFoundError(f"there is no run {place.run_id!r}")
        return run


def _forks_at(run: RunRecord, steps: Sequence[StepRecord]) -> range:
    """Return the positions that a run can be forked from."""
    first = 1 if run.session_id is not None and run.turn_index is not None else 0
    ended = {step.step_index for step in steps if step.status in ("completed", "failed")}
    last = first
    while last in ended:
        last += 1
    return range(first, last + 1)


def _number(request: Request, name: str, *, default: int | None = None) -> int:
    text = request.query_params.get(name)
    if text is None and default is not None:
        return default
    if text is None or not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise UsageError(f"the query's `{name}` must be a number from 0 on, not {text!r:.40}")
    return identity.check_index(int(text), name=f"the query's `{name}`")
