"""Erasing in a store in memory."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.core.records import RunRecord
from perdure.errors import SessionBusyError
from perdure.store.erasure import LIVE_STATES, busy_text
from perdure.store.memorydata import HandleState, MemoryData
from perdure.store.sessiondata import SessionData


class MemoryErasure:
    """`Erasure` of one tenant of a handle on data in memory."""

    def __init__(self, data: MemoryData, state: HandleState, tenant: str) -> None:
        self._data = data
        self._state = state
        self._tenant = tenant

    async def find_sessions(
        self, owner_id: str, *, after: str | None = None, limit: int = 100
    ) -> Sequence[str]:
        self._state.check()
        with self._data.lock:
            found = sorted(
                session_id
                for (tenant, session_id), session in self._data.sessions.items()
                if tenant == self._tenant and session.owner_id == owner_id
            )
        return [session_id for session_id in found if session_id > (after or "")][: max(limit, 0)]

    async def remove_session(
        self, session_id: str, *, owner_id: str | None = None, queued: bool = False
    ) -> int | None:
        self._state.check()
        key = (self._tenant, session_id)
        with self._data.lock:
            if not is_theirs(self._data.sessions.get(key), owner_id):
                return None
            turns = [
                (stored_id, data.run)
                for stored_id, data in self._data.runs.items()
                if (data.run.tenant, data.run.session_id) == key
            ]
            if not all(may_be_removed(run, queued=queued) for _, run in turns):
                raise SessionBusyError(busy_text(session_id))
            for stored_id, run in turns:
                del self._data.runs[stored_id]
                self._data.forget_turn(stored_id, run)
                self._data.changed(stored_id)
            self._data.forget_session(key)
        return len(turns)

    async def scrub(self, *, whole: bool = False) -> None:
        self._state.check()


def is_theirs(session: SessionData | None, owner_id: str | None) -> bool:
    """Return whether the session is there, for that user if one is named."""
    return session is not None and (owner_id is None or session.owner_id in (None, owner_id))


def may_be_removed(run: RunRecord, *, queued: bool) -> bool:
    """Return whether nobody works on the run, nor will by itself."""
    return run.state not in LIVE_STATES and (queued or run.state != "queued")
