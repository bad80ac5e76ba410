"""What another engine does for us, and what it records of our steps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from perdure.core.jsonvalue import encode_value
from perdure.core.limits import TURN_LOG_BYTES_MAX
from perdure.core.recordjson import step_error_of, step_error_to_json
from perdure.core.records import JsonValue, StepError, StepRecord
from perdure.durable.failures import failure_of
from perdure.durable.steps import StepSpec
from perdure.errors import StepFailedError

Told = Mapping[str, JsonValue]
"""What a host records of a step: its `value`, of a stream also `parts` and `finish`; or `error`."""

_TOLD_BYTES_MAX: Final = 2 * TURN_LOG_BYTES_MAX
"""Above what a value and the frames of a turn may have, which are limited themselves."""


class TurnHost(Protocol):
    """What another engine does for one turn: it records steps, and waits.

    `name` is the engine, `invocation` its id of the call that the turn is: the same in every
    attempt at it, and no other call's.
    """

    @property
    def name(self) -> str: ...
    @property
    def invocation(self) -> str: ...

    async def step(self, spec: StepSpec, body: Callable[[], Awaitable[str]]) -> str:
        """Return the text that is recorded for this step, or record what `body` returns.

        A body that is cancelled has no text: the next attempt calls it again. Whoever cancels the
        call cancels the body.
        """
        ...

    async def event(self, spec: StepSpec, key: str, *, timeout_ms: int | None) -> JsonValue:
        """Return the payload of the event; the same, or AwaitEventTimeoutError, in each attempt."""
        ...


class TaskHost(TurnHost, Protocol):
    """What another engine does for one run of a task: timers and events of its own, too."""

    async def sleep(self, spec: StepSpec, duration_ms: int) -> None:
        """Return after `duration_ms`, counted from the first attempt at it."""
        ...

    async def emit(self, key: str, payload: JsonValue) -> bool:
        """Emit an event of this run; return whether this emit was the first of its key."""
        ...


def told_text(told: Told) -> str:
    """Return the text that a host keeps of a step."""
    return encode_value(dict(told), name="the record of a step", bytes_max=_TOLD_BYTES_MAX)


def error_told(error: StepFailedError, *, taken: int) -> JsonValue:
    """Return what a host keeps of a failure, after `taken` positions had been taken."""
    recorded = StepError(error.original_message, error.original_code, type=error.original_type)
    if recorded.code is None and recorded.type is None:
        recorded = step_error_of(error)
    return step_error_to_json(recorded._replace(taken=taken))


def failure_told(spec: StepSpec, error: StepError) -> StepFailedError:
    """Return the error that a recorded failure raises, first time and at every replay the same."""
    known = StepRecord("", spec.position, spec.intent, spec.kind, "failed", 1, error=error)
    return failure_of(known)
