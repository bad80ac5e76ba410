"""A fenced write: the statements of its changes, and what their answers mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast, overload

from perdure.core.changes import (
    AddDelivery,
    AppendFrames,
    BeginStep,
    Change,
    CompleteStep,
    EndRun,
    FailStep,
    IntendUsage,
    Release,
    Restart,
    SaveHandle,
    SettleUsage,
    Suspend,
)
from perdure.core.jsonvalue import decode_value
from perdure.core.records import Lease, RunRecord, StepRecord, Written
from perdure.core.transitions import status_of
from perdure.errors import DivergenceError, PerdureError, StoreCorruptError, UsageError
from perdure.store.sql.database import Row, Statement
from perdure.store.sql.framerows import joining_text
from perdure.store.sql.granted import GrantedLease, ended_record, granted_plainly
from perdure.store.sql.rows import logical_run_id, owner_of, run_record, step_record

FENCE: Final = 0
"""The place of the fence in the list of every write."""
_JOINED_BYTES_MAX: Final = 1_536
"""A row of frames that others have joined is no longer: on a page of SQLite it leaves room for its
other columns."""
_STEPS: Final = 4
"""The place, among its values, of how many steps the run has at least by then, if there are any."""

LEAVING: Final = frozenset({"end_run", "suspend_run", "release_run"})
"""What stands last in a list because it takes the lease away."""

_ANSWERS: Final = frozenset({"complete_step", "fail_step"})


def write_statements(lease: Lease, changes: Sequence[Change]) -> list[Statement]:
    """Return the list of a write: the fence, the changes, and last what leaves the lease."""
    fence = (lease.run_id, lease.epoch, lease.token, lease.worker_id)
    statements: list[Statement] = [Statement("fence", fence)]
    leaving: list[Statement] = []
    end: EndRun | None = None
    steps, progress, rows = 0, 0, 0
    for change in changes:
        match change:
            case CompleteStep():
                progress = 1
                steps = max(steps, change.position + 1)
                statements.append(_complete(fence, change))
            case BeginStep():
                steps = max(steps, change.position + 1)
                statements.append(_begin(fence, change))
            case FailStep():
                steps = max(steps, change.position + 1)
                statements.append(_fail(fence, change))
            case EndRun():
                progress, end = 1, change
            case Suspend():
                leaving = _suspend(fence, change)
            case Release():
                leaving = _release(fence, change)
            case AppendFrames() | Restart():
                rows += 1
                statements += _append(fence, change)
            case _:
                statements += _others(lease, fence, change)
    if rows > 1:
        # Which of them have joined a row could not be told where the write is repeated.
        statements = [
            each._replace(shortcut=None) if each.name == "append_frames" else each
            for each in statements
        ]
    if end is not None:
        leaving = _end(lease, fence, end, steps)
    if 0 < len(changes) == rows == len(statements) - 1:
        statements[FENCE] = Statement("fence_frames", fence, True, "look_fence")
    else:
        statements[FENCE] = Statement("fence", (*fence, steps, progress), True, "fence_unstopped")
    return statements + leaving if leaving else statements


Fence = tuple[str, int, str, str]


def _complete(fence: Fence, step: CompleteStep) -> Statement:
    values = (
        *fence,
        step.position,
        step.intent,
        step.kind,
        step.input_hash,
        step.effect,
        step.tries,
        step.result_text,
        step.started_at,
        step.frames_to,
    )
    return Statement("complete_step", values, True, None if step.is_begun else "insert_step")


def _begin(fence: Fence, step: BeginStep) -> Statement:
    values = (
        *fence,
        step.position,
        step.intent,
        step.kind,
        step.input_hash,
        step.effect,
        step.tries,
    )
    return Statement("begin_step", values, required=True)


def _fail(fence: Fence, step: FailStep) -> Statement:
    values = (
        *fence,
        step.position,
        step.intent,
        step.kind,
        step.input_hash,
        step.effect,
        step.tries,
        step.error_text,
        step.started_at,
        int(step.beside_result),
    )
    return Statement("fail_step", values, required=True)


def _end(lease: Lease, fence: Fence, end: EndRun, steps: int) -> list[Statement]:
    refinement = "stopped" if end.state == "stopped" else None
    values = (*fence, status_of(end.state), refinement, end.reason, end.outcome_text)
    ending = Statement("end_run", values, required=True)
    granted = granted_plainly(lease)
    if granted is not None:
        known = (*values, max(granted.step_count, steps))
        ending = Statement("end_run", values, True, "end_granted", known)
    return [_close(fence, end.state, end.error_text), ending]


def _close(fence: Fence, ended: str, error_text: str | None) -> Statement:
    return Statement("close_attempt", (*fence, ended, error_text), False, "close_fenced")


def _suspend(fence: Fence, rest: Suspend) -> list[Statement]:
    values = (*fence, rest.state, rest.reason, rest.wake_key, rest.wake_at, rest.wake_in_ms)
    return [
        _close(fence, rest.state, rest.error_text),
        Statement("suspend_run", values, required=True),
    ]


def _release(fence: Fence, release: Release) -> list[Statement]:
    return [
        _close(fence, release.reason, None),
        Statement("release_run", fence, required=True),
    ]


def _append(fence: Fence, row: AppendFrames | Restart) -> list[Statement]:
    first_seq, last_seq, body = row
    append = Statement("append_frames", (*fence, first_seq, last_seq, body), required=True)
    if isinstance(row, Restart):
        return [append, Statement("mark_live_from", (*fence, first_seq))]
    joining = joining_text(body)
    room_bytes = _JOINED_BYTES_MAX - len(joining)
    if room_bytes < len(joining):
        return [append]
    known = (*fence, first_seq, last_seq, joining, room_bytes)
    return [append._replace(shortcut="join_frames", shortcut_values=known)]


def _others(lease: Lease, fence: Fence, change: Change) -> list[Statement]:
    match change:
        case SaveHandle(handle_text):
            return [Statement("save_handle", (*fence, handle_text))]
        case IntendUsage(call, step_index, provider, model):
            return [Statement("intend_usage", (*fence, call, step_index, provider, model))]
        case SettleUsage(epoch=int(epoch)):
            call, *settled, _ = change
            return [Statement("settle_earlier", (*fence, epoch, call, *settled))]
        case SettleUsage():
            return [settle_statement(lease, change)]
        case AddDelivery():
            return [Statement("add_delivery", (*fence, *change))]
        case _:
            raise UsageError(f"{change!r:.60} is not a change")


def settle_statement(lease: Lease, usage: SettleUsage) -> Statement:
    """Return what settles a usage row of the lease's own epoch and token."""
    call, *settled, _ = usage
    return Statement("settle_usage", (lease.run_id, lease.epoch, lease.token, call, *settled))


def written(lease: Lease, statements: Sequence[Statement], rows: Sequence[list[Row]]) -> Written:
    """Return the answer to a write that was committed; a granted lease counts its steps."""
    answers: list[tuple[Statement, Row]] = []
    wake_at: str | None = None
    run: RunRecord | None = None
    for statement, found in zip(statements, rows, strict=True):
        if statement.name in _ANSWERS:
            answers.append((statement, found[0]))
        elif statement.name == "suspend_run":
            wake_at = found[0][0]
        elif statement.name == "end_run":
            run = _ended(lease, statement, found[0])
    known = statements[FENCE].values
    if isinstance(lease, GrantedLease) and len(known) > _STEPS:
        lease.has_steps(known[_STEPS])
    fence = rows[FENCE][0]
    # The shortcut of the fence answers for runs that nobody has asked to stop.
    stop_requested = len(fence) > 1 and fence[1] is not None
    steps = _Answered(logical_run_id(lease.run_id), answers) if answers else ()
    return Written(steps, stop_requested, wake_at, run)


class _Answered(Sequence[StepRecord]):
    """The steps that a write has answered, made when they are asked for.

    Nobody asks for the one that ends a turn, whose result is as long as the turn.
    """

    def __init__(self, run_id: str, answers: Sequence[tuple[Statement, Row]]) -> None:
        self._run_id = run_id
        self._answers = answers
        self._known: list[StepRecord] | None = None

    @overload
    def __getitem__(self, index: int) -> StepRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[StepRecord]: ...
    def __getitem__(self, index: int | slice) -> StepRecord | Sequence[StepRecord]:
        if self._known is None:
            self._known = [self._made(*answer) for answer in self._answers]
        return self._known[index]

    def __len__(self) -> int:
        return len(self._answers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(cast("Sequence[object]", other))

    def __repr__(self) -> str:
        return repr(list(self))

    def _made(self, statement: Statement, row: Row) -> StepRecord:
        if len(row) == 1:
            return _inserted(self._run_id, statement, row[0])
        return step_record(self._run_id, row)


def _inserted(run_id: str, statement: Statement, now: str) -> StepRecord:
    """Return the step that a shortcut has inserted: all of it but the time was given."""
    (_, epoch, _, _, position, intent, kind, input_hash, effect, tries, *others) = statement.values
    result_text, started_at, frames_to = others
    result = decode_value(str(result_text))
    head = (run_id, position, intent, kind, "completed", tries, input_hash, result, None)
    return StepRecord._make((*head, started_at, now, epoch, effect, frames_to))


def _ended(lease: Lease, statement: Statement, row: Row) -> RunRecord:
    """Return the run at its end; a shortcut tells only when that was."""
    values = statement.shortcut_values
    if len(row) != 1 or values is None:
        return run_record(row, owner_id=owner_of(row))
    return ended_record(lease, values[4:], row[0])


def refusal(lease: Lease, statement: Statement) -> PerdureError:
    """Return why a change behind the fence was refused."""
    run_id = logical_run_id(lease.run_id)
    position = statement.values[4]
    if statement.name == "append_frames":
        return StoreCorruptError(
            f"the frames from seq {position} do not follow the last stored ones of the run "
            f"{run_id!r}"
        )
    intent = statement.values[5]
    return DivergenceError(
        f"step {position} of the run {run_id!r} is recorded under another intent than {intent!r}"
    )


def has_left(run: RunRecord, changes: Sequence[Change]) -> bool:
    """Return whether a run that nobody has claimed since is as these changes leave it."""
    for change in changes:
        if isinstance(change, Suspend):
            return run.state == change.state
        if isinstance(change, Release):
            return run.state == "running" and run.lease_holder_id is None
        if isinstance(change, EndRun):
            return run.state == change.state
    return False


def settled_positions(changes: Sequence[Change]) -> list[int]:
    """Return the positions that a write answers, in order."""
    return [change.position for change in changes if isinstance(change, CompleteStep | FailStep)]
