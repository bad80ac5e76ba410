"""The conversation a turn belongs to: the line of its parents, fixed when it began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, cast

from perdure.core.records import JsonValue, RunRecord
from perdure.core.transitions import TERMINAL_STATES
from perdure.store.protocol import RunStore

_PAGE: Final = 500
"""Turns that are read at one go."""


async def read_session(store: RunStore, session_id: str) -> list[RunRecord]:
    """Return all turns of a session with their answers, by turn and revision."""
    runs: list[RunRecord] = []
    after: str | None = None
    while True:
        page = await store.list_runs(
            session_id=session_id, after=after, limit=_PAGE, with_answer=True
        )
        runs.extend(page)
        if len(page) < _PAGE:
            return runs
        after = page[-1].run_id


def lineage(runs: Sequence[RunRecord], last: str | None) -> list[RunRecord]:
    """Return the turns that lead to the run `last`, that one included, oldest first.

    In the place of a revision that failed stands the answer that it was to replace.
    """
    by_id = {run.run_id: run for run in runs}
    chain: list[RunRecord] = []
    while last is not None and last in by_id and len(chain) < len(by_id):
        run = by_id[last]
        if _lost_its_place(run):
            run = _answered_before(run, runs) or run
        chain.append(run)
        last = run.parent_run_id
    chain.reverse()
    return chain


def _lost_its_place(run: RunRecord) -> bool:
    """A turn that was stopped in line stands behind a revision that had not failed yet."""
    return run.revision > 0 and run.state not in TERMINAL_STATES


def _answered_before(run: RunRecord, runs: Sequence[RunRecord]) -> RunRecord | None:
    """Return the newest answer of the same turn that is older than the revision `run`."""
    older = [
        other
        for other in runs
        if other.turn_index == run.turn_index
        and other.revision < run.revision
        and other.state in TERMINAL_STATES
    ]
    return max(older, key=lambda other: other.revision, default=None)


def newest_answered(runs: Sequence[RunRecord]) -> str | None:
    """Return the turn at which a conversation stands: of all ends of its lines the newest answer.

    Of a session one turn is in flight at a time, so the answer that was given last is the newest.
    """
    answered = [run for run in runs if run.state in TERMINAL_STATES]
    parents = {run.parent_run_id for run in answered}
    ends = [run for run in answered if run.run_id not in parents] or answered
    newest = max(ends, key=_age, default=None)
    return None if newest is None else newest.run_id


def _age(run: RunRecord) -> tuple[str, str, int, int]:
    return (run.completed_at or "", run.created_at, run.revision, run.turn_index or 0)


class Conversation(NamedTuple):
    """The line of turns at whose end a session stands, and the place of what is said next."""

    line: Sequence[RunRecord]
    next_turn_index: int
    next_revision: int


def conversation_of(runs: Sequence[RunRecord]) -> Conversation:
    """Return where a session stands, whose turns these are.

    What is said next comes behind the line, and behind what of it is unfinished or failed.
    """
    line = lineage(runs, newest_answered(runs))
    end = line[-1] if line else None
    index = -1 if end is None else end.turn_index or 0
    for run in runs:
        parent = None if end is None else end.run_id
        if run.state not in TERMINAL_STATES and (
            run.state == "queued" or run.parent_run_id == parent
        ):
            index = max(index, run.turn_index or 0)
    revisions = [run.revision for run in runs if run.turn_index == index + 1]
    return Conversation(line, index + 1, max(revisions, default=-1) + 1)


def messages_of(runs: Sequence[RunRecord]) -> list[Mapping[str, JsonValue]]:
    """Return answered turns as messages `{role, content}`, without what nobody knows.

    A turn that was stopped in line may stand behind one that failed later. An answer that is empty
    is left out, and so is the message of a turn that a TypeScript worker has answered: its row does
    not say what it was.
    """
    messages: list[Mapping[str, JsonValue]] = []
    for run in runs:
        if run.state not in TERMINAL_STATES:
            continue
        if run.manifest is not None:
            asked = run.manifest.input
            said = {"role": "user", "content": asked.get("userMessage", "")}
            if asked.get("attachments"):
                said["attachments"] = asked["attachments"]
            messages.append(said)
        answer: object = run.answer
        text = None
        if isinstance(answer, dict):
            text = cast("dict[str, JsonValue]", answer).get("finalText")
        if text:
            messages.append({"role": "assistant", "content": text})
    return messages


async def history_of(
    store: RunStore, run: RunRecord, *, turns_max: int | None
) -> list[Mapping[str, JsonValue]]:
    """Return the messages before the turn `run`: those of its `turns_max` nearest ancestors.

    None: of all of them. What it costs depends on these, not on the length of the session.
    """
    line: list[RunRecord] = []
    at, room = run, turns_max
    while at.parent_run_id is not None and room != 0:
        limit = _PAGE if room is None else min(_PAGE, room)
        page = await store.list_runs(ancestors_of=at.run_id, limit=limit, with_answer=True)
        found = await _up_to_a_stand_in(store, page)
        line.extend(found)
        if found is page and len(page) < limit:
            break
        at, room = found[-1], None if room is None else room - len(found)
    line.reverse()
    return messages_of(line)


async def _up_to_a_stand_in(store: RunStore, page: Sequence[RunRecord]) -> Sequence[RunRecord]:
    """Return ancestors as they are, or up to the first one that another has to stand in for."""
    for place, run in enumerate(page):
        if not _lost_its_place(run):
            continue
        # Revisions follow each other without a gap, so these are all that are older.
        older = await store.list_runs(
            session_id=run.session_id,
            turn_index=run.turn_index,
            limit=run.revision,
            with_answer=True,
        )
        stand_in = _answered_before(run, older)
        if stand_in is not None:
            return [*page[:place], stand_in]
    return page
