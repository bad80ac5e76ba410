"""Apps with a dashboard, and runs for it to show."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.requests import Request

from perdure.core.changes import Change, FailStep
from perdure.core.records import Lease, SessionKey
from perdure.store.memory import MemoryStore
from perdure.testing.clock import ManualClock
from perdure.testing.samples import begun, completed, delivery, ended, failed, hold, row
from perdure.web.dashboard import Viewer, add_dashboard
from tests.web.asking import Answer, ask

OWNER = Viewer(sees_values=True, may_act=True)
SECRET = "the prompt of Marta"
HERE = ("sec-fetch-site", "same-origin")


class Desk(NamedTuple):
    """An app with nothing but a dashboard."""

    app: Starlette
    store: MemoryStore
    clock: ManualClock

    async def get(self, rest: str = "", **options: Any) -> Answer:
        return await ask(self.app, "GET", f"/dashboard{rest}", **options)

    async def show(self, rest: str = "", **options: Any) -> str:
        """Return the page, which must be there."""
        answer = await self.get(rest, **options)
        assert answer.status == 200, answer.body
        return answer.body.decode()

    async def act(self, verb: str, run_id: str, **more: Any) -> Answer:
        options: dict[str, Any] = {"headers": [HERE], "send": {"id": run_id, **more}}
        return await ask(self.app, "POST", f"/dashboard/{verb}", **options)


def desk(viewer: Viewer | Callable[[Request], Any] | None = OWNER) -> Desk:
    """Return a dashboard that one viewer, or whoever a callable names, looks at."""
    clock = ManualClock()
    store, app = MemoryStore(clock=clock), Starlette()
    add_dashboard(app, store, authorize=viewer if callable(viewer) else lambda _: viewer)
    return Desk(app, store, clock)


async def eventful(desk: Desk, run_id: str = "run") -> Lease:
    """Make a run that crashed once, completed a step, failed another, and has all that runs have.

    Its values, and the texts of its errors, hold the secret.
    """
    await hold(desk.store, run_id)
    desk.clock.advance(16_000)
    lease = await hold(desk.store, run_id, worker_id="bob")
    await desk.store.write(lease, begun(0))
    desk.clock.advance(1_000)
    await desk.store.emit_event(run_id, "paid", {"note": SECRET})
    changes: list[Change] = [completed(0, SECRET), failed(1, SECRET), delivery(payload=SECRET)]
    error = json.dumps({"message": SECRET, "stack": SECRET})
    await desk.store.write(
        lease, *changes, FailStep(2, "step-2", error), ended("failed")._replace(error_text=error)
    )
    return lease


async def talking(desk: Desk, *deltas: str) -> Lease:
    """Begin the turn of a chat, in which so much was said."""
    lease = await hold(desk.store, "chat:s:0", session=SessionKey("s", 0))
    if deltas:
        await desk.store.write(lease, row(1, *deltas))
    return lease
