"""What erasing a person asks of a store, beside RunStore."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, runtime_checkable

from perdure.errors import UsageError
from perdure.store.protocol import RunStore

LIVE_STATES: Final = ("running", "sleeping", "waiting")
"""What a run is in while somebody works on it, or will by itself."""


class Erasure(Protocol):
    """Finds and removes whole sessions of one tenant."""

    async def find_sessions(
        self, owner_id: str, *, after: str | None = None, limit: int = 100
    ) -> Sequence[str]:
        """Return the ids of the sessions that belong to this user, in order, behind `after`.

        A session that belongs to nobody is nobody's, and not found.
        """
        ...

    async def remove_session(
        self, session_id: str, *, owner_id: str | None = None, queued: bool = False
    ) -> int | None:
        """Delete a session and every run that is one of its turns; return how many those were.

        With `owner_id`, one that belongs to somebody else is unknown. None: it is not known, and
        nothing was deleted. While a turn is running, sleeping, waiting or (without `queued`)
        queued, SessionBusyError is raised. It happens whole or not at all. In files, what a
        process that dies within has left goes when the folder is opened again, or before the next
        turn of such a session begins.
        """
        ...

    async def scrub(self, *, whole: bool = False) -> None:
        """Overwrite what is left of deleted values in the store's own files.

        SQLite empties its log; fragments may stay in unused parts of pages of the database until
        these are written again, or until `whole` writes the database anew, which takes a while
        and as much room again. Files need no more than their index written anew. In memory
        nothing is left, and what a server keeps is the server's business.
        """
        ...


@runtime_checkable
class ErasingStore(Protocol):
    """A store that can erase, as all of this package can."""

    def erasure(self) -> Erasure: ...


def erasure_of(store: RunStore) -> Erasure:
    """Return the erasure of a store, in its tenant; UsageError for one that has none."""
    if isinstance(store, ErasingStore):
        return store.erasure()
    raise UsageError(f"a {type(store).__name__} cannot erase sessions: it has no erasure()")


def busy_text(session_id: str) -> str:
    """Return the message of a refusal to delete a session."""
    return f"a turn of the session {session_id!r} is in flight or queued: stop it first"
