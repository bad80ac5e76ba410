"""What the cases of a trace store work with: handles on the same data, as many as wanted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from perdure.observe.trace_store import TraceStore

OpenTraceStore = Callable[[], Awaitable[TraceStore]]


class TraceStoreLab:
    """Fresh data of one trace store, and handles on it.

    `open_store()` opens one more handle on the data that this lab is about: another connection,
    as another process has it. A store that lives in one object returns that object again.
    """

    def __init__(self, open_store: OpenTraceStore) -> None:
        self._open_store = open_store

    async def open(self) -> TraceStore:
        """Return another handle on the same data."""
        return await self._open_store()


NewTraceStoreLab = Callable[[], AbstractAsyncContextManager[TraceStoreLab]]
"""Makes a lab with fresh data; a case is run within it."""
