"""What a handle does to erase sessions from its folder, run by its thread."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.errors import SessionBusyError
from perdure.store.erasure import busy_text
from perdure.store.filedata import FileData
from perdure.store.filetombstones import Tombstone
from perdure.store.memoryerasure import is_theirs, may_be_removed


class FileErasing:
    """The deletions of sessions by one handle. Belongs to its thread."""

    def __init__(self, data: FileData) -> None:
        self._data = data

    def find_sessions(
        self, tenant: str, owner_id: str, after: str | None, limit: int
    ) -> Sequence[str]:
        found = sorted(
            session_id
            for (of_tenant, session_id), owner in self._data.all_sessions()
            if of_tenant == tenant and owner == owner_id and session_id > (after or "")
        )
        return found[: max(limit, 0)]

    def remove_session(
        self, key: tuple[str, str], owner_id: str | None, *, queued: bool
    ) -> Sequence[str] | None:
        """Return the ids of the turns that were deleted; None if there is no such session."""
        if self._data.kept_session(key) is None:
            return None
        with self._data.session_locked(key) as descriptor:
            assert descriptor is not None
            if not is_theirs(self._data.kept_session(key), owner_id):
                return None
            turns = [stored_id for _, _, stored_id in self._data.places_of(key)]
            for stored_id in turns:
                self._check(key, stored_id, queued=queued)
            tombstone = Tombstone(key, turns)
            self._data.tombstones.put(tombstone)
            return self._data.bury(tombstone, descriptor)

    def _check(self, key: tuple[str, str], stored_id: str, *, queued: bool) -> None:
        run = self._data.peek(stored_id)
        is_turn = run is not None and run.session_id == key[1]
        if run is not None and is_turn and not may_be_removed(run, queued=queued):
            raise SessionBusyError(busy_text(key[1]))

    def scrub(self) -> None:
        self._data.index.scrub()
