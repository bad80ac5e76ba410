"""A service on each store that there is, and a browser."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from perdure.store.opening import open_store
from perdure.testing.clock import ManualClock
from tests.web import asking
from tests.web.asking import Service
from tests.web.browsing import browser, context, serve

__all__ = ["browser", "context", "serve", "service", "start"]

Start = Callable[..., Any]


@pytest.fixture(params=["memory", "sqlite"])
async def start(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Start]:
    """Return a coroutine function that starts a service; `script`, and options of the app."""
    url = "memory:" if request.param == "memory" else f"sqlite:{tmp_path / 'turns.db'}"
    async with AsyncExitStack() as stack:

        async def start(*script: Any, **options: Any) -> Service:
            store = await open_store(url, durability="normal", clock=ManualClock())
            stack.push_async_callback(store.close)
            service = asking.serve(store, *script, **options)
            stack.push_async_callback(service.engine.aclose, drain_ms=0)
            return service

        yield start


@pytest.fixture
async def service(start: Start) -> Service:
    """Return a service whose turns say `Hello there`."""
    started: Service = await start()
    return started
