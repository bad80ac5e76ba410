"""Two applications with long answers: `service` is ours, `own` has an endpoint of its own."""

from __future__ import annotations

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from perdure import ChatTurnEngine, ChatTurnIdentity, Sqlite, SqlStore, answer_with
from perdure.backends.scripted import ScriptedBackend
from perdure.web.app import Caller, create_app
from perdure.web.lifespan import lifespan_of

DRAIN_MS = 300


async def submit(request: Request) -> StreamingResponse:
    turn = await engine.submit(ChatTurnIdentity("", "s", "ann", 0), "Tell me a long story")
    return StreamingResponse(turn.lines(wire="envelope"), media_type="application/x-ndjson")


store = SqlStore(Sqlite("chat.db"))
engine = ChatTurnEngine(store, produce=answer_with(ScriptedBackend(token_delay_ms=20)))
service = create_app(
    engine, store, authorize=lambda _: Caller("", "ann"), page=False, drain_ms=DRAIN_MS
)
own = Starlette(
    routes=[Route("/v1/sessions/s/turns", submit, methods=["POST"])],
    lifespan=None if os.environ.get("BARE") else lifespan_of(engine, drain_ms=DRAIN_MS),
)
