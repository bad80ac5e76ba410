"""What a recorded failure of a step means to whoever replays it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from perdure.core.changes import FailStep
from perdure.core.jsonvalue import encode_value
from perdure.core.recordjson import step_error_of, step_error_to_json
from perdure.core.records import AttemptRecord, StepError, StepRecord
from perdure.errors import (
    AwaitEventTimeoutError,
    StepFailedError,
    StepTimeoutError,
    UnfinishedStepError,
)

_RECORDED_AS_THEMSELVES: Mapping[str, type[StepFailedError]] = {
    kind.code: kind for kind in (StepTimeoutError, AwaitEventTimeoutError, UnfinishedStepError)
}

CANCELLED_WITHIN: Final = "it was cancelled from within"
"""What is told of a body that raised CancelledError although nobody cancelled it."""
_ABANDONED: Final = "abandoned"
_SHOWN_MAX: Final = 20
"""How many positions of both histories a divergence shows."""


def failure_text(error: BaseException, *, taken: int) -> str:
    """Return the stored form of what a step raised after `taken` positions had been taken."""
    recorded = step_error_of(error)
    if isinstance(error, asyncio.CancelledError):
        recorded = recorded._replace(message=recorded.message or CANCELLED_WITHIN)
    return error_text(recorded._replace(taken=taken))


def error_text(error: StepError) -> str:
    """Return the stored form of an error."""
    return encode_value(step_error_to_json(error), name="error")


def failure_of(known: StepRecord) -> StepFailedError:
    """Return the error that a recorded failure raises, first time and at every replay the same."""
    error = known.error or StepError("unknown error")
    kind = _RECORDED_AS_THEMSELVES.get(error.code or "", StepFailedError)
    message = error.message
    if kind is StepFailedError:
        message = f"the step {known.intent!r} failed: {message}"
    return kind(
        message,
        intent=known.intent,
        original_message=error.message,
        original_code=error.code,
        original_type=error.type,
    )


def interrupted(known: StepRecord, *, taken: int) -> FailStep:
    """Return the failure of a begun at-most-once step that may not be executed again."""
    error = UnfinishedStepError(
        f"the step {known.intent!r} was interrupted: whether it took effect is unknown",
        intent=known.intent,
    )
    return _failed(known, failure_text(error, taken=taken))


def given_up(known: StepRecord, *, taken: int) -> FailStep:
    """Return the failure of a begun step that nobody will end."""
    if known.effect == "at_most_once":
        return interrupted(known, taken=taken)
    return _failed(known, abandoned_text("the turn ended before this step did", taken=taken))


def _failed(known: StepRecord, error_text: str) -> FailStep:
    return FailStep(
        known.step_index,
        known.intent,
        error_text,
        kind=known.kind,
        input_hash=known.input_hash,
        tries=known.attempts,
        effect=known.effect,
    )


def is_unfinished(known: StepRecord) -> bool:
    """Return whether the failure says that an at-most-once step was interrupted."""
    code = None if known.error is None else known.error.code
    return code == UnfinishedStepError.code and known.effect == "at_most_once"


def abandoned_text(message: str, *, taken: int) -> str:
    """Return what is recorded of a step that its own task cancelled, or left behind."""
    return error_text(StepError(message, _ABANDONED, taken=taken))


def is_abandoned(known: StepRecord) -> bool:
    """Return whether the task itself gave the step up.

    What a body raised has a type beside its code, whatever that is.
    """
    error = known.error
    return error is not None and error.code == _ABANDONED and error.type is None


def is_settled(known: StepRecord, *, last_position: int) -> bool:
    """Return whether a failure is final by the history alone, which ends at `last_position`.

    It is final once the task went on behind it, a time-out of an event always. Steps that had
    been taken before it failed do not count: the task may just have waited for them all.
    """
    error = known.error
    if error is not None and error.code == AwaitEventTimeoutError.code and known.kind == "event":
        return True
    taken = None if error is None else error.taken
    return last_position >= (known.step_index + 1 if taken is None else taken)


def was_retried(known: StepRecord, attempts: Sequence[AttemptRecord]) -> bool:
    """Return whether somebody asked for a retry of the run since `known` was recorded.

    A failed or parked run goes on only when it is asked to.
    """
    return any(one.ended in ("failed", "parked") for one in attempts if one.epoch >= known.epoch)


def side_by_side(history: Mapping[int, StepRecord], asked: Mapping[int, str]) -> str:
    """Return the steps that are recorded beside those that a task asked for, the last ones."""
    lines = [f"{'':>6}  recorded | asked for"]
    for position in sorted(asked)[-_SHOWN_MAX:]:
        known = history.get(position)
        recorded = "-" if known is None else known.intent
        lines.append(f"{position:>6}  {recorded} | {asked[position]}")
    return "\n".join(lines)
