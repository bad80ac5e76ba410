"""Revisions of a turn: which there are, and what the next one is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from perdure.core.frames import cursor_mark
from perdure.core.identity import stored_id
from perdure.core.records import JsonValue, RunRecord
from perdure.errors import RunNotFoundError, UsageError
from perdure.store.protocol import RunStore
from perdure.turn.attachments import attachments_from_json
from perdure.turn.identity import Asked, ChatTurnIdentity, check_identity

REVISIONS_MAX: Final = 1_000
"""More revisions of one turn than this are not looked at."""


class Revision(NamedTuple):
    """A turn that is answered once more, behind the same parent.

    `parent` is as in the wish of an opening: '' for none, None for the store's choice.
    """

    identity: ChatTurnIdentity
    asked: Asked
    parent: str | None


async def revisions_of(store: RunStore, turn: ChatTurnIdentity) -> Sequence[RunRecord]:
    """Return the revisions of a turn, the oldest first.

    Raises RunNotFoundError if there is none, or the session is somebody else's.
    """
    check_identity(turn)
    runs = await store.list_runs(
        session_id=turn.session_id, turn_index=turn.turn_index, limit=REVISIONS_MAX
    )
    if not runs or runs[-1].owner_id not in (None, turn.user_id):
        raise RunNotFoundError(f"there is no turn {turn.turn_index} of session {turn.session_id!r}")
    return runs


async def meant_revision(
    store: RunStore, turn: ChatTurnIdentity, *, cursor: str | None = None
) -> ChatTurnIdentity:
    """Return the revision of a turn that is meant where none is named.

    That is the one that `cursor` is of, so that a reader comes back to what it was reading, else
    the newest. Raises RunNotFoundError.
    """
    runs = await revisions_of(store, turn)
    mark = None if cursor is None else cursor.rpartition("_")[2]
    for run in runs:
        if mark == cursor_mark(stored_id(run.tenant, run.run_id)):
            return turn._replace(revision=run.revision)
    return turn._replace(revision=runs[-1].revision)


async def check_revision(store: RunStore, turn: ChatTurnIdentity) -> None:
    """Raise UsageError if a turn is submitted as a revision that does not follow the others."""
    if turn.revision == 0:
        return
    try:
        newest = (await revisions_of(store, turn))[-1].revision
    except RunNotFoundError:
        newest = -1  # Whose the session is, the store looks at again.
    if turn.revision > newest + 1:
        raise UsageError(
            f"revision {turn.revision} of turn {turn.turn_index} does not follow: "
            f"the next one is {newest + 1}"
        )


async def next_revision(store: RunStore, turn: ChatTurnIdentity, asked: Asked) -> Revision:
    """Return the revision that answers a turn once more.

    It has the history of the newest one, and its message, model and attachments where none are
    given; with another message, none of its attachments. Raises RunNotFoundError, and UsageError
    for a message that nobody knows.
    """
    newest = (await revisions_of(store, turn))[-1]
    known: Mapping[str, JsonValue] = {} if newest.manifest is None else newest.manifest.input
    message = known.get("userMessage") if asked.message is None else asked.message
    attachments = asked.attachments
    if attachments is None and asked.message is None:
        attachments = attachments_from_json(known.get("attachments"))
    if message is None:
        raise UsageError(
            f"what was said in turn {turn.turn_index} is not recorded (a TypeScript worker has "
            "answered it): give the message"
        )
    parent = newest.parent_run_id
    if parent is None and newest.epoch > 0:
        parent = ""  # It began as the first of its line, and its revisions do.
    again = Asked(message, asked.model or known.get("model"), attachments)
    return Revision(turn._replace(revision=newest.revision + 1), again, parent)
