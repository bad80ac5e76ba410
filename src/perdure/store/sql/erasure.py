"""Erasing in an SQL database."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from perdure.errors import SessionBusyError
from perdure.store.erasure import LIVE_STATES, busy_text
from perdure.store.sql.database import Database, Refused, Statement
from perdure.store.sql.lists import foreign_turns, turns_among
from perdure.store.waiting import Waiting

_REST: Final = (
    "remove_steps",
    "remove_events",
    "remove_attempts",
    "remove_frames",
    "remove_deliveries",
    "remove_usage",
)
"""What goes with the runs of a session."""


class SqlErasure:
    """`Erasure` of one tenant of a handle on an SQL database."""

    def __init__(self, database: Database, waiting: Waiting, tenant: str) -> None:
        self._database = database
        self._waiting = waiting
        self._tenant = tenant

    async def find_sessions(
        self, owner_id: str, *, after: str | None = None, limit: int = 100
    ) -> Sequence[str]:
        values = (self._tenant, owner_id, after or "", max(limit, 0))
        (rows,) = await self._database.read([Statement("find_sessions", values)])
        return [str(session_id) for (session_id,) in rows]

    async def remove_session(
        self, session_id: str, *, owner_id: str | None = None, queued: bool = False
    ) -> int | None:
        key = (self._tenant, session_id)
        wanted = [Statement("read_session", key), Statement("session_turns", key)]
        if not self._tenant:
            wanted.append(foreign_turns(session_id))
        sessions, turns, *foreign = await self._database.read(wanted)
        if not sessions or (owner_id is not None and sessions[0][0] not in (None, owner_id)):
            return None
        found: list[tuple[str, str]] = [(run_id, state) for run_id, state in turns]
        found += [
            (run.run_id, run.state) for rows in foreign for run in turns_among(rows, session_id)
        ]
        if any(state in LIVE_STATES or (state == "queued" and not queued) for _, state in found):
            raise SessionBusyError(busy_text(session_id))
        run_ids = [run_id for run_id, _ in found]
        listed = json.dumps([[run_id] for run_id in run_ids])
        try:
            await self._database.run(
                [
                    Statement("hold_session", (*key, owner_id), required=True),
                    Statement("remove_turns", (*key, listed, int(queued))),
                    *(Statement(name, (listed,)) for name in _REST),
                    # The rest of those that somebody works on stays with them: it is not done.
                    Statement("remove_session", key, required=True),
                ]
            )
        except Refused as refused:
            if refused.index == 0:
                return None
            raise SessionBusyError(busy_text(session_id)) from refused
        for run_id in run_ids:
            self._waiting.changed(run_id, may_be_due=False)
        return len(run_ids)

    async def scrub(self, *, whole: bool = False) -> None:
        await self._database.scrub(whole=whole)
