"""Erasing in a folder of logs: the calls, which its thread answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from perdure.store.filehandle import FileHandle


class FileErasure:
    """`Erasure` of one tenant of a handle on a folder."""

    def __init__(self, inside: FileHandle, tenant: str) -> None:
        self._inside = inside
        self._erasing = inside.erasing
        self._tenant = tenant

    async def find_sessions(
        self, owner_id: str, *, after: str | None = None, limit: int = 100
    ) -> Sequence[str]:
        find = self._erasing.find_sessions
        return await self._inside.run(partial(find, self._tenant, owner_id, after, limit))

    async def remove_session(
        self, session_id: str, *, owner_id: str | None = None, queued: bool = False
    ) -> int | None:
        remove = self._erasing.remove_session
        key = (self._tenant, session_id)
        removed = await self._inside.run(partial(remove, key, owner_id, queued=queued))
        for run_id in removed or ():
            self._inside.waiting.changed(run_id, may_be_due=False)
        return None if removed is None else len(removed)

    async def scrub(self, *, whole: bool = False) -> None:
        await self._inside.run(self._erasing.scrub)
