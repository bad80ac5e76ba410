"""What the cases of a session store work with: handles on the same data, as many as wanted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from perdure.agent.sessions import EventKeepingSessionStore

OpenSessionStore = Callable[[], Awaitable[EventKeepingSessionStore]]


class SessionStoreLab:
    """Fresh data of one session store, and handles on it.

    `open_store()` opens one more handle on the data that this lab is about: another connection,
    as another process has it. A store that lives in one object returns that object again.
    """

    def __init__(self, open_store: OpenSessionStore) -> None:
        self._open_store = open_store

    async def open(self) -> EventKeepingSessionStore:
        """Return another handle on the same data."""
        return await self._open_store()


NewSessionStoreLab = Callable[[], AbstractAsyncContextManager[SessionStoreLab]]
"""Makes a lab with fresh data; a case is run within it."""
