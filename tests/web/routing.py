"""A FastAPI application with the router, as a service to ask."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from perdure.store.memory import MemoryStore
from perdure.turn.engine import ChatTurnEngine
from perdure.web.fastapi import chat_router
from tests.turn.stage import Script
from tests.web.asking import Service, by_header


def routed(script: Script | None = None, *, prefix: str = "", **options: Any) -> Service:
    """Return a FastAPI application with the router, as a service to ask."""
    store, script = MemoryStore(), script or Script()
    engine = ChatTurnEngine(store, produce=script, recover=False)
    app = FastAPI()
    options.setdefault("authorize", by_header)
    app.include_router(chat_router(engine, **options), prefix=prefix)
    return Service(app, engine, store, script)


def document_of(service: Service) -> dict[str, Any]:
    assert isinstance(service.app, FastAPI)
    return service.app.openapi()
