"""Hot lists as single statements: less to send, to run, to wait for and to answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from perdure.store.sql.database import RUN_COLUMNS, Refused, Row, Statement, Value

Rows = list[list[Row]]

_VALUE: Final = re.compile(r"\?(\d+)")
_VALUES_AND_LOOK: Final = re.compile(r"VALUES \((.+)\)\nON CONFLICT DO NOTHING$", re.DOTALL)
_SELECTED: Final = re.compile(r"^SELECT (.+)\nFROM")
_IF_COMPLETED: Final = re.compile(
    r"CASE WHEN durable_steps\.status = 'completed'\s+THEN \S+(?:\s+ELSE (\S+))?\s+END"
)
_FENCE: Final = (1, 2, 3, 4)
"""Where a statement behind a fence finds the values of the lease: those of the fence."""
_FENCE_WIDTH: Final = 6
_CLOSE_WIDTH: Final = 2
_CREATE_WIDTH: Final = 14
_CREATED_TOKEN: Final = 13
_RUN: Final = RUN_COLUMNS.split(", ")
_UPDATED_AT: Final = _RUN.index("updated_at")
_STOP_REQUESTED_AT: Final = _RUN.index("stop_requested_at")


class Fusion(NamedTuple):
    """A list, by the names of its statements, that one statement, `text`, stands for.

    `values` makes its values of those of the list. `split` makes of its one row, or of none, the
    rows of each statement, or None where only the list itself can tell; it may raise Refused.
    """

    names: list[str]
    text: str
    values: Callable[[Sequence[Statement]], tuple[Value, ...]]
    split: Callable[[Sequence[Statement], Row | None], Rows | None]


def fusion_of(statements: Sequence[Statement]) -> Fusion | None:
    """Return the fusion that stands for the list, if there is one; a shortcut's before others."""
    if not statements:
        return None
    last = statements[-1]
    fusion = _FUSIONS.get(last.shortcut or "") or _FUSIONS.get(last.name)
    if fusion is None or fusion.names != [statement.name for statement in statements]:
        return None
    return fusion


# The texts.


def fused_blocks(blocks: Mapping[str, str], schema: str) -> dict[str, str]:
    """Return the texts of all fusions by name, as blocks for any of PostgreSQL's dialects."""
    stored = "completed_at, started_at, kind, input_hash, effect"
    return {
        "fenced_insert_step": _inserting(blocks),
        "fenced_complete_step": _fenced(blocks["fence"], blocks["complete_step"], stored, schema),
        "fenced_begin_step": _fenced(blocks["fence"], blocks["begin_step"], "step_index", schema),
        "fenced_end_run": _ending(blocks),
        "find_or_create_run": _opening(blocks),
    }


def _fenced(fence: str, change: str, stored: str, schema: str) -> str:
    """Return one statement for a fence and the one step behind it, which is not completed yet.

    Right where the change looks at nothing but the row that it writes: the fence has waited for
    the lock by then, but the snapshot is older than that. A row that is in the way is no matter of
    the snapshot: INSERT ... ON CONFLICT DO UPDATE meets its newest version. No row: the lease is
    lost, or the step is completed and stays so; of the fence, that is all the list would write.
    """
    change = _behind(_IF_COMPLETED.sub(_otherwise, change), _FENCE, _FENCE_WIDTH)
    change = change.replace("{now}", "fence.updated_at").replace("WHERE {fence}", "FROM fence")
    same, _ = change.split("WHERE durable_steps.intent = excluded.intent")
    return (
        f"WITH fence AS ({fence}) {same} WHERE CASE "
        "WHEN durable_steps.intent = excluded.intent THEN durable_steps.status <> 'completed' "
        f'ELSE "{schema}".perdure_refuse(1) END '
        f"RETURNING {stored}, (SELECT fence.stop_requested_at FROM fence)"
    )


def _inserting(blocks: Mapping[str, str]) -> str:
    """Return one statement for the shortcuts of a fence and of a step that nobody has begun.

    No row: the lease is lost, or a stop was asked for. Where the step is there, it fails, so that
    nothing is written, not even by the fence: an INSERT that looks first costs more each time.
    """
    step = _behind(blocks["insert_step"], _FENCE, _FENCE_WIDTH).replace("{now}", "fence.updated_at")
    step = _VALUES_AND_LOOK.sub(r"SELECT \1 FROM fence", step)
    fence = blocks["fence_unstopped"]
    return f"WITH fence AS ({fence} RETURNING updated_at) {step} RETURNING completed_at"


def _otherwise(case: re.Match[str]) -> str:
    return case[1] or "NULL"


def _ending(blocks: Mapping[str, str]) -> str:
    """Return one statement for a fence and an end behind it: one new version of the run's row.

    The update waits for the lock and judges the newest version, as a fence does. The record of
    the attempt was written with the claim, before anybody knew of the lease.
    """
    _, noted, _ = re.split(r"SET updated_at = \{now\},|WHERE", blocks["fence"])
    end = _behind(blocks["end_run"], _FENCE, _FENCE_WIDTH + _CLOSE_WIDTH)
    close = blocks["close_attempt"].replace("{fence}", "EXISTS (SELECT 1 FROM ended)")
    return (
        f"WITH ended AS ({end.replace('SET ', f'SET {noted}, ', 1)} AS owner_id), "
        f"closed AS ({_behind(close, _FENCE, _FENCE_WIDTH)}) "
        f"SELECT json_build_array({RUN_COLUMNS}, owner_id)::text FROM ended"
    )


def _opening(blocks: Mapping[str, str]) -> str:
    """Return one statement that creates a run with its attempt, or reads the one that is known.

    It writes nothing where the run is known. No row: somebody creates it at the same time.
    """
    attempt = blocks["open_attempt"].replace("FROM durable_runs", "FROM made")
    read = _SELECTED.sub(r"SELECT json_build_array(\1)::text\nFROM", blocks["read_run"])
    return (
        f"WITH made AS ({blocks['create_run']}), "
        f"attempt AS ({_behind(attempt, (1, _CREATED_TOKEN), _CREATE_WIDTH)}) "
        f"SELECT json_build_array({RUN_COLUMNS})::text FROM made UNION ALL ({read})"
    )


def _behind(block: str, shared: Sequence[int], width: int) -> str:
    """Return `block` with other numbers of its values: the first are `shared`, the rest behind."""

    def renumbered(value: re.Match[str]) -> str:
        number = int(value[1])
        return f"?{shared[number - 1] if number <= len(shared) else number - len(shared) + width}"

    return _VALUE.sub(renumbered, block)


# Values and answers.


def _fenced_values(statements: Sequence[Statement]) -> tuple[Value, ...]:
    fence, change = statements
    return fence.values + change.values[4:]


def _end_values(statements: Sequence[Statement]) -> tuple[Value, ...]:
    fence, close, end = statements
    return fence.values + close.values[4:] + end.values[4:]


def _opening_values(statements: Sequence[Statement]) -> tuple[Value, ...]:
    create, attempt, _ = statements
    return create.values + attempt.values[2:]


def _completed(statements: Sequence[Statement], row: Row | None) -> Rows | None:
    """Return the step: what a row that was there keeps, and else what was given."""
    if row is None:
        return None
    completed_at, started_at, kind, input_hash, effect, stop_requested_at = row
    (_, epoch, _, _, position, intent, _, _, _, tries, *others) = statements[1].values
    result_text, _, frames_to = others
    head = (position, intent, kind, "completed", tries, input_hash, result_text, None)
    step = (*head, started_at, completed_at, epoch, effect, frames_to)
    return [[(completed_at, stop_requested_at)], [step]]


def _inserted(_: Sequence[Statement], row: Row | None) -> Rows | None:
    """Return what the shortcuts answer: the moment, where all else is known."""
    return None if row is None else [[row], [row]]


def _begun(_: Sequence[Statement], row: Row | None) -> Rows | None:
    if row is None:
        return None
    position, stop_requested_at = row
    return [[(None, stop_requested_at)], [(position,)]]


def _ended(_: Sequence[Statement], row: Row | None) -> Rows | None:
    if row is None:
        raise Refused(0)
    run = tuple(json.loads(row[0]))
    return [[(run[_UPDATED_AT], run[_STOP_REQUESTED_AT])], [], [run]]


def _opened(_: Sequence[Statement], row: Row | None) -> Rows | None:
    if row is None:
        return [[], [], []]
    run = tuple(json.loads(row[0]))
    return [[run], [], []] if len(run) == len(_RUN) else [[], [], [run]]


_FUSIONS: Final[Mapping[str, Fusion]] = {
    "insert_step": Fusion(
        ["fence", "complete_step"], "fenced_insert_step", _fenced_values, _inserted
    ),
    "complete_step": Fusion(
        ["fence", "complete_step"], "fenced_complete_step", _fenced_values, _completed
    ),
    "begin_step": Fusion(["fence", "begin_step"], "fenced_begin_step", _fenced_values, _begun),
    "end_run": Fusion(["fence", "close_attempt", "end_run"], "fenced_end_run", _end_values, _ended),
    "read_run": Fusion(
        ["create_run", "open_attempt", "read_run"],
        "find_or_create_run",
        _opening_values,
        _opened,
    ),
}
"""By the last statement of the list, or its shortcut."""
