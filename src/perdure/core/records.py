"""The records that stores keep and callers read: plain tuples without behaviour.

Moments are ISO-8601 UTC text with milliseconds and a `Z`. `run_id` is the logical id that the
caller gave; the id under which a run is stored, with its tenant, is `identity.stored_id`. Only a
`Lease` and a `DeliveryRecord` have the stored one: a worker serves every tenant through one handle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

JsonValue = Any
"""None, bool, int, float, str, list or dict with str keys; checked by `core/jsonvalue.py`."""

StepKind = Literal["logic", "llm", "tool", "readiness", "deterministic", "event"]
StepStatus = Literal["pending", "running", "completed", "failed"]
RunStatus = Literal["pending", "running", "completed", "failed", "suspended"]
RunState = Literal[
    "queued", "running", "sleeping", "waiting", "parked", "completed", "stopped", "failed"
]
Effect = Literal["pure", "idempotent", "at_most_once"]
UsageState = Literal["intended", "settled", "unknown"]
DeliveryState = Literal["waiting", "delivered", "dead"]


class AgentTaskSpec(NamedTuple):
    """The neutral description of one piece of agent work; `domain` is only a label."""

    id: str
    intent: str
    domain: str | None = None
    inputs: Mapping[str, JsonValue] | None = None
    required_knowledge: Sequence[JsonValue] = ()
    budget: Mapping[str, JsonValue] | None = None
    metadata: Mapping[str, JsonValue] | None = None


class RunManifest(NamedTuple):
    """What a run is about. Its hash (`identity.manifest_hash`) is the run's identity check."""

    project_id: str
    task: AgentTaskSpec
    input: Mapping[str, JsonValue] = {}
    scenario_id: str | None = None
    tags: Mapping[str, str] | None = None


class RunOutcome(NamedTuple):
    """How a run ended, in the caller's terms. The JSON name of `passed` is `pass`."""

    passed: bool | None = None
    score: float | None = None
    notes: str | None = None
    metadata: Mapping[str, JsonValue] | None = None


class StepError(NamedTuple):
    """What a failed step raised; `stack` is kept for diagnosis and never raised again.

    `taken`: how many positions of the run the task had taken when the step failed.
    """

    message: str
    code: str | None = None
    stack: str | None = None
    type: str | None = None
    taken: int | None = None


class RunRecord(NamedTuple):
    """One run as it stands in the store, without the token of its lease.

    `state` is the state of the life of a run (one of `RunState`); `status` is the reference's
    coarser word for it. `owner_id` is the owner of its session. `answer` is the result of step 0
    where the caller of `list_runs` asked for it.
    """

    run_id: str
    manifest_hash: str
    project_id: str
    status: RunStatus
    state: RunState
    created_at: str
    updated_at: str
    scenario_id: str | None = None
    completed_at: str | None = None
    lease_holder_id: str | None = None
    lease_expires_at: str | None = None
    outcome: RunOutcome | None = None
    step_count: int = 0
    tenant: str = ""
    epoch: int = 0
    strikes: int = 0
    reason: str | None = None
    handler: str | None = None
    manifest: RunManifest | None = None
    wake_at: str | None = None
    wake_key: str | None = None
    stop_requested_at: str | None = None
    session_id: str | None = None
    turn_index: int | None = None
    revision: int = 0
    parent_run_id: str | None = None
    live_from: int = 0
    frames_expired_at: str | None = None
    upstream: JsonValue = None
    owner_id: str | None = None
    answer: JsonValue = None


class StepRecord(NamedTuple):
    """One step of a run. `result` is decoded JSON; `input_hash` is '' when none was given."""

    run_id: str
    step_index: int
    intent: str
    kind: str
    status: StepStatus
    attempts: int
    input_hash: str = ""
    result: JsonValue = None
    error: StepError | None = None
    started_at: str | None = None
    completed_at: str | None = None
    epoch: int = 0
    effect: Effect | None = None
    frames_to: int | None = None


class EventRecord(NamedTuple):
    """A keyed fact delivered to a run; the first emit wins for ever."""

    run_id: str
    key: str
    payload: JsonValue
    emitted_at: str


class Lease(NamedTuple):
    """The right to write to a run. `run_id` is the stored id; epoch, token and holder fence."""

    run_id: str
    epoch: int
    token: str
    worker_id: str


class SessionKey(NamedTuple):
    """The place of a turn in its session.

    The first turn fixes the owner of its session. A session without an owner (None) is open to
    every caller of the tenant; one with an owner only to a key that names the same.
    `parent_run_id` (logical) None: the store takes the newest revision of the highest earlier
    turn that is completed or stopped, once, when the turn is claimed first; '': it has no parent.
    """

    session_id: str
    turn_index: int
    revision: int = 0
    owner_id: str | None = None
    parent_run_id: str | None = None


class Claim(NamedTuple):
    """The answer to an opening. `lease` None: the run is terminal or parked, this is a pure read.

    `steps` are all recorded steps by position, `next_seq` is the seq of the next frame (from 1).
    """

    lease: Lease | None
    run: RunRecord
    steps: Sequence[StepRecord]
    next_seq: int = 1


class Written(NamedTuple):
    """The answer to a write.

    `steps` has one record for each CompleteStep and FailStep, in order: what is stored, mine or
    that of an earlier winner. `wake_at` is set after a Suspend; not later than now means due.
    `run` is set after an EndRun: how the run stands at its end.
    """

    steps: Sequence[StepRecord] = ()
    stop_requested: bool = False
    wake_at: str | None = None
    run: RunRecord | None = None


class AttemptRecord(NamedTuple):
    """One claim of a run by one worker; `ended` is None while it goes on, 'lost' after a crash."""

    epoch: int
    holder: str
    started_at: str
    ended_at: str | None = None
    ended: str | None = None
    code_version: str | None = None
    liveness: str | None = None
    error: StepError | None = None


class UsageRecord(NamedTuple):
    """One model call that may have been billed; None is unknown, never zero.

    `tokens_cached` were read from the provider's cache and `tokens_cache_written` written there;
    both are part of `tokens_in`, as `tokens_reasoning` are of `tokens_out`.
    """

    epoch: int
    call: int
    state: UsageState
    step_index: int | None = None
    provider: str | None = None
    model: str | None = None
    request_id: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_cached: int | None = None
    tokens_reasoning: int | None = None
    cost_nanos: int | None = None
    currency: str | None = None
    price_version: str | None = None
    intended_at: str | None = None
    settled_at: str | None = None
    tokens_cache_written: int | None = None


class DeliveryRecord(NamedTuple):
    """One thing that must happen after a run ended; `key` is equal on every delivery of it.

    `run_id` is the stored id; `identity.logical_id` returns tenant and logical id of one.
    """

    run_id: str
    tenant: str
    position: int
    topic: str
    handler: str
    key: str
    payload: JsonValue
    state: DeliveryState = "waiting"
    tries: int = 0
    token: str | None = None
    due_at: str | None = None
    last_error: str | None = None
    created_at: str | None = None
    delivered_at: str | None = None


class RunDetails(NamedTuple):
    """What people and reports read of one run beside its record, steps and frames."""

    attempts: Sequence[AttemptRecord]
    events: Sequence[EventRecord]
    usage: Sequence[UsageRecord]
    deliveries: Sequence[DeliveryRecord]


class Retry(NamedTuple):
    """How often a step may be tried within one attempt, and how long to wait in between."""

    tries_max: int = 3
    backoff_ms: int = 1_000
    backoff_max_ms: int = 30_000
    retry_on: tuple[type[Exception], ...] = (Exception,)


class StepCall(NamedTuple):
    """What the body of a step may know of its call.

    `idempotency_key` is the same in every attempt; `tries` counts executions, this one included.
    """

    idempotency_key: str
    tries: int
