"""What the cases of a session store work with: handles on the same data, as many as wanted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import cast

from perdure.agent.sessions import EventKeepingSessionStore, RuntimeSession
from perdure.agent.stream_events import TextDeltaEvent

OpenSessionStore = Callable[[], Awaitable[EventKeepingSessionStore]]


class SessionStoreLab:
    """Fresh data of one session store, and handles on it.

    `open_store()` opens one more handle on the data that this lab is about: another connection,
    as another process has it. A store that lives in one object returns that object again.

    Two more are for stores that promise it. `restart()` closes every handle, as when the last
    process ends: what is opened behind it finds what was kept. `open_elsewhere()` opens a handle
    of another tenant, who sees nothing of it. Where they are not given, nobody looks at that.
    """

    def __init__(
        self,
        open_store: OpenSessionStore,
        *,
        restart: Callable[[], Awaitable[None]] | None = None,
        open_elsewhere: OpenSessionStore | None = None,
    ) -> None:
        self._open_store = open_store
        self._restart = restart
        self._open_elsewhere = open_elsewhere

    async def open(self) -> EventKeepingSessionStore:
        """Return another handle on the same data."""
        return await self._open_store()

    async def restart(self) -> bool:
        """Close every handle; return whether this lab can."""
        if self._restart is None:
            return False
        await self._restart()
        return True

    async def open_elsewhere(self) -> EventKeepingSessionStore | None:
        """Return a handle of another tenant, None if this lab has none."""
        return None if self._open_elsewhere is None else await self._open_elsewhere()


NewSessionStoreLab = Callable[[], AbstractAsyncContextManager[SessionStoreLab]]
"""Makes a lab with fresh data; a case is run within it."""


async def session_in(store: EventKeepingSessionStore, id: str) -> RuntimeSession:
    """Return the session, which must be there."""
    session = await store.get(id)
    if session is None:
        raise AssertionError(f"the session {id!r:.80} is not there")
    return session


async def texts_in(store: EventKeepingSessionStore, id: str) -> list[str]:
    """Return the texts of a session's events, which are all pieces of text."""
    return [cast("TextDeltaEvent", event).text for event in await store.list_events(id)]
