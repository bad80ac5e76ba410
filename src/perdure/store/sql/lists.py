"""Lists of runs: of all of them, of one session, or from parent to parent."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.core import identity
from perdure.core.records import RunRecord
from perdure.errors import RunNotFoundError
from perdure.store.listing import Wanted, list_order
from perdure.store.sql.database import Database, Row, Statement
from perdure.store.sql.rows import owner_of, run_record


async def list_runs(database: Database, wanted: Wanted) -> list[RunRecord]:
    """Return what `RunStore.list_runs` says."""
    if wanted.ancestors_of is not None:
        return await _list_ancestors(database, wanted, wanted.ancestors_of)
    if wanted.session_id is not None:
        return await _list_session(database, wanted, wanted.session_id)
    behind = None if wanted.after is None else identity.stored_id(wanted.tenant, wanted.after)
    values = (wanted.tenant, wanted.state, behind, wanted.limit, int(wanted.with_answer))
    statements = [Statement("list_runs", values)]
    if behind is not None:
        statements.append(Statement("read_run", (behind,)))
    rows, *known = await database.read(statements)
    if known == [[]]:
        raise _unknown(wanted.after)
    return _listed(rows)


def foreign_turns(session_id: str, *, with_answer: bool = False) -> Statement:
    """Return what finds the turns of TypeScript workers that are not in their place yet.

    It may find those of other sessions too, whose ids begin in the same way.
    """
    # The semicolon follows the colon: all ids that begin with the first lie between the two.
    bounds = (f"chat:{session_id}:", f"chat:{session_id};")
    return Statement("list_foreign", (*bounds, None, None, int(with_answer)))


def turns_among(rows: Sequence[Row], session_id: str) -> list[RunRecord]:
    """Return those of the rows of `foreign_turns` that are of this session, by turn."""
    found = [run for run in _listed(rows) if run.session_id == session_id]
    return sorted(found, key=lambda run: list_order(run, session_id))


async def _list_session(database: Database, wanted: Wanted, session_id: str) -> list[RunRecord]:
    behind, edge = None, (0, 0)
    if wanted.after is not None:
        behind = identity.stored_id(wanted.tenant, wanted.after)
        (rows,) = await database.read([Statement("read_run", (behind,))])
        if not rows:
            raise _unknown(wanted.after)
        last = run_record(rows[0])
        edge = (last.turn_index or 0, last.revision)
    values = (wanted.tenant, wanted.state, behind, wanted.limit, int(wanted.with_answer))
    turns = (*values, session_id, *edge)
    if wanted.turn_index is None:
        statements = [Statement("list_session", turns)]
    else:
        statements = [Statement("list_turn", (*turns, wanted.turn_index))]
    if not wanted.tenant:
        statements.append(foreign_turns(session_id, with_answer=wanted.with_answer))
    rows, *foreign = await database.read(statements)
    runs = _listed(rows)
    others = [
        run
        for found in foreign
        for run in turns_among(found, session_id)
        if wanted.state in (None, run.state)
        and wanted.turn_index in (None, run.turn_index)
        and (behind is None or list_order(run, session_id) > (*edge, wanted.after))
    ]
    if others:
        runs = sorted((*runs, *others), key=lambda run: list_order(run, session_id))
    return runs[: wanted.limit]


async def _list_ancestors(database: Database, wanted: Wanted, run_id: str) -> list[RunRecord]:
    stored_id = identity.stored_id(wanted.tenant, run_id)
    values = (wanted.tenant, None, stored_id, wanted.limit, int(wanted.with_answer))
    known, rows = await database.read(
        [Statement("read_run", (stored_id,)), Statement("list_ancestors", values)]
    )
    if not known:
        raise _unknown(run_id)
    return _listed(sorted(rows, key=lambda row: int(row[-2])))


def _listed(rows: Sequence[Row]) -> list[RunRecord]:
    return [run_record(row, owner_id=owner_of(row), answer=row[-1]) for row in rows]


def _unknown(run_id: str | None) -> RunNotFoundError:
    return RunNotFoundError(f"there is no run {run_id!r} to go on from")
