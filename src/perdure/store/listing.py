"""Which runs a list is to have, and in which order."""

from __future__ import annotations

from typing import NamedTuple

from perdure.core import identity
from perdure.core.records import RunRecord, RunState
from perdure.errors import UsageError


class Wanted(NamedTuple):
    """What a caller of `RunStore.list_runs` asks for; the ids are logical."""

    tenant: str
    state: RunState | None
    session_id: str | None
    turn_index: int | None
    ancestors_of: str | None
    after: str | None
    limit: int
    with_answer: bool


def check_wanted(wanted: Wanted) -> Wanted:
    """Return `wanted` if it makes sense, else raise UsageError."""
    for run_id in (wanted.after, wanted.ancestors_of):
        if run_id is not None:
            identity.check_run_id(run_id)
    if wanted.turn_index is not None and wanted.session_id is None:
        raise UsageError("turn_index needs the session_id of the turn")
    narrowed = (wanted.state, wanted.session_id, wanted.after) != (None, None, None)
    if wanted.ancestors_of is not None and narrowed:
        raise UsageError("ancestors_of lists one line of turns: give only a limit with it")
    return wanted


def list_order(run: RunRecord, session_id: str | None) -> tuple[object, ...]:
    """Return the place of a run in lists of a session, or (None) of all runs."""
    if session_id is not None:
        return (run.turn_index or 0, run.revision, run.run_id)
    return (run.created_at, run.run_id)
