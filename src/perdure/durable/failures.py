"""What a recorded failure of a step means to whoever replays it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def failure_text(error: BaseException, *, taken: int) -> str:
    """Return the stored form of what a step raised after `taken` positions had been taken."""
    return error_text(step_error_of(error)._replace(taken=taken))


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


def unfinished(known: StepRecord) -> UnfinishedStepError:
    """Return what an interrupted at-most-once step is recorded as."""
    return UnfinishedStepError(
        f"the step {known.intent!r} was interrupted: whether it took effect is unknown",
        intent=known.intent,
    )


def is_unfinished(known: StepRecord) -> bool:
    """Return whether the failure says that an at-most-once step was interrupted."""
    code = None if known.error is None else known.error.code
    return code == UnfinishedStepError.code and known.effect == "at_most_once"


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
