"""The changes that one fenced write is made of: plain data, applied in order, all or nothing.

At most one of Suspend, Release and EndRun is in a write, as the last. Texts named `…_text` are
JSON that was checked and encoded once, by the caller (`core/jsonvalue.py`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from perdure.core.records import Effect, UsageState


class BeginStep(NamedTuple):
    """Record that the step at `position` is being executed; nothing if it is completed."""

    position: int
    intent: str
    kind: str = "logic"
    input_hash: str = ""
    tries: int = 1
    effect: Effect | None = None


class CompleteStep(NamedTuple):
    """Record the first result of a step, begun before or not; an earlier result stays.

    `is_begun`: the writer knows of a record of it. That spares a store a try, and decides nothing.
    """

    position: int
    intent: str
    result_text: str
    kind: str = "logic"
    input_hash: str = ""
    tries: int = 1
    effect: Effect | None = None
    started_at: str | None = None
    frames_to: int | None = None
    is_begun: bool = False


class FailStep(NamedTuple):
    """Record that a step failed; an earlier result stays.

    With `beside_result`, the error is kept beside such a result, instead of nothing.
    """

    position: int
    intent: str
    error_text: str
    kind: str = "logic"
    input_hash: str = ""
    tries: int = 1
    effect: Effect | None = None
    started_at: str | None = None
    beside_result: bool = False


class AppendFrames(NamedTuple):
    """Append one row of frames; `first_seq` must be the successor of the last stored seq."""

    first_seq: int
    last_seq: int
    body: str


class Restart(NamedTuple):
    """Append a row that opens with `restarted` and goes on with the kept parts.

    Moves the run's `live_from` to `first_seq`: readers forget what stood before it.
    """

    first_seq: int
    last_seq: int
    body: str


class SaveHandle(NamedTuple):
    """Keep the handle by which an upstream call can be re-attached; None forgets it."""

    handle_text: str | None


class IntendUsage(NamedTuple):
    """Record, before a call that may be billed, that it will be made."""

    call: int
    step_index: int | None = None
    provider: str | None = None
    model: str | None = None


class SettleUsage(NamedTuple):
    """Record what a call used; None stays unknown. A settled row is never changed again.

    `epoch` names an earlier attempt, whose row the holder settles for it: only in a `write`.
    """

    call: int
    state: UsageState = "settled"
    model: str | None = None
    request_id: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_cached: int | None = None
    tokens_reasoning: int | None = None
    cost_nanos: int | None = None
    currency: str | None = None
    price_version: str | None = None
    provider: str | None = None
    tokens_cache_written: int | None = None
    epoch: int | None = None


class AddDelivery(NamedTuple):
    """Add to the outbox what must follow the end of this run; the same position wins once."""

    position: int
    topic: str
    handler: str
    key: str
    payload_text: str


class Suspend(NamedTuple):
    """Give the lease back and sleep, wait or park.

    It becomes due at `wake_at`, or `wake_in_ms` after the store's now; with neither, no time
    wakes it. `wake_key`: an event of this key makes it due, at once if it is there already.
    `error_text` (JSON) is kept with the attempt, for people.
    """

    state: Literal["sleeping", "waiting", "parked"]
    wake_at: str | None = None
    wake_in_ms: int | None = None
    wake_key: str | None = None
    reason: str | None = None
    error_text: str | None = None


class Release(NamedTuple):
    """Give the lease back; the run stays running and is due at once."""

    reason: str = "released"


class EndRun(NamedTuple):
    """End the run; `outcome_text` None clears the outcome.

    `error_text` (JSON of a StepError) is kept with the attempt, for people.
    """

    state: Literal["completed", "stopped", "failed"]
    outcome_text: str | None = None
    reason: str | None = None
    error_text: str | None = None


Change = (
    BeginStep
    | CompleteStep
    | FailStep
    | AppendFrames
    | Restart
    | SaveHandle
    | IntendUsage
    | SettleUsage
    | AddDelivery
    | Suspend
    | Release
    | EndRun
)
