"""The records of the control loop: its budget, decisions, steps, errors and result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, Literal, TypeAlias, cast

from perdure.agent.evals import ControlEvalResult
from perdure.agent.type_variables import ActionResultT_co, ActionT, ActionT_co, StateT_co
from perdure.core.finite import is_finite
from perdure.core.records import JsonValue
from perdure.core.wire import NULL, WIRE, camel
from perdure.errors import ValidationError

MAX_STEPS: Final = 8
MAX_WALL_MS: Final = 300_000

Phase = Literal["observe", "validate", "decide", "act", "stop-policy", "on-step", "trace"]
StoppedBy = Literal["policy", "stop-policy", "budget", "abort", "runtime-error"]
StopCause = Literal[
    "decided",
    "judged",
    "no_progress",
    "repeated_action",
    "steps",
    "cost",
    "wall_time",
    "cancelled",
    "error",
    "knowledge",
]


@dataclass(frozen=True, slots=True)
class ControlBudget:
    """What a loop may use up. `max_wall_ms` is time at work: waiting for a human is none."""

    max_steps: int = MAX_STEPS
    max_wall_ms: float = MAX_WALL_MS
    max_cost_usd: float | None = None

    def __post_init__(self) -> None:
        if type(self.max_steps) is not int or self.max_steps < 1:
            raise ValidationError(f"max_steps must be an int from 1, not {self.max_steps!r:.40}")
        if not (is_finite(self.max_wall_ms) and self.max_wall_ms > 0):
            raise ValidationError(
                f"max_wall_ms must be a number above 0, not {self.max_wall_ms!r:.40}"
            )
        cost = self.max_cost_usd
        if cost is not None and not (is_finite(cost) and cost >= 0):
            raise ValidationError(f"max_cost_usd must be a number from 0, not {cost!r:.40}")


def budget_of(partial: Mapping[str, JsonValue] | None) -> ControlBudget:
    """Return the budget that `partial` makes of the defaults; names as here or on the wire.

    Raises ValidationError for an unknown name and for what is out of range.
    """
    names = {name: name for name in ("max_steps", "max_wall_ms", "max_cost_usd")}
    names.update({camel(name): name for name in names})
    given: dict[str, JsonValue] = {}
    if not isinstance(cast("object", partial), Mapping | None):
        raise ValidationError(f"a budget is given by names, not as {partial!r:.40}")
    for name, value in (partial or {}).items():
        if name not in names:
            raise ValidationError(f"budget has no {name!r:.40}; it has {', '.join(names)}")
        if value is not None:
            given[names[name]] = value
    return ControlBudget(**given)


# The generic records have no slots: before Python 3.13 `Continue[int](1)` would be a TypeError
# then, since a frozen record with slots does not even take the attribute that says its types.
@dataclass(frozen=True)
class Continue(Generic[ActionT_co]):
    """Go on with `action`: plain JSON where the task is durable, anything elsewhere."""

    action: ActionT_co
    reason: str | None = None
    type: Literal["continue"] = "continue"


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop here; without `passed` the task has not passed.

    Raises ValidationError for what is no verdict: `passed` must be True, False or None, a score
    finite.
    """

    reason: str
    passed: bool | None = field(default=None, metadata={WIRE: "pass"})
    score: float | None = None
    type: Literal["stop"] = "stop"

    def __post_init__(self) -> None:
        if self.passed is not None:
            _check_word("passed", self.passed)
        _check_score(self.score)


ControlDecision: TypeAlias = Continue[ActionT] | Stop


@dataclass(frozen=True, slots=True)
class StopDecision:
    """What a stop policy says of a state.

    Raises ValidationError for what is no verdict: `stop` and `passed` must be True or False, a
    score finite.
    """

    stop: bool
    passed: bool = field(default=False, metadata={WIRE: "pass"})
    reason: str = ""
    score: float | None = None
    failure_class: str | None = None

    def __post_init__(self) -> None:
        _check_word("stop", self.stop)
        _check_word("passed", self.passed)
        _check_score(self.score)


def _check_word(name: str, value: object) -> None:
    """Raise ValidationError for a truth that is none: "no" would count as True."""
    if type(value) is not bool:
        raise ValidationError(f"{name} of a stop must be True or False, not {value!r:.40}")


def _check_score(score: object) -> None:
    if score is not None and not is_finite(score):
        raise ValidationError(f"the score of a stop must be a finite number, not {score!r:.40}")


@dataclass(frozen=True)
class ControlActionOutcome(Generic[ActionResultT_co]):
    """What an action came to. `cost_usd` is None if nothing is known of its cost."""

    ok: bool
    result: ActionResultT_co | None = None
    error: str | None = None
    cost_usd: float | None = None
    duration_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class ControlRuntimeError:
    """A failure of somebody's code that the loop met; `step_index` is the step it was in."""

    phase: Phase
    step_index: int
    message: str


@dataclass(frozen=True)
class ControlStep(Generic[StateT_co, ActionT_co, ActionResultT_co]):
    """One step of a loop. A step whose action broke the loop off has its states as last known."""

    index: int
    decision: Continue[ActionT_co] | Stop
    before_state: StateT_co
    after_state: StateT_co
    evals_before: tuple[ControlEvalResult, ...]
    evals_after: tuple[ControlEvalResult, ...]
    action_outcome: ControlActionOutcome[ActionResultT_co] | None
    started_at: str
    ended_at: str


@dataclass(frozen=True)
class ControlRunResult(Generic[StateT_co, ActionT_co, ActionResultT_co]):
    """How a loop ended. `stopped_by` is the coarse word for `stop_cause`.

    `blocked`: it stopped because of what the task does not know. `run_id` is that of the trace, or
    of the durable run; None without either, and null on the wire. `wall_ms` is time at work. The
    last known state and evals are kept after a failure.
    """

    intent: str
    passed: bool = field(metadata={WIRE: "pass"})
    completed: bool
    reason: str
    stopped_by: StoppedBy
    stop_cause: StopCause
    blocked: bool = False
    score: float | None = None
    steps: tuple[ControlStep[StateT_co, ActionT_co, ActionResultT_co], ...] = ()
    final_state: StateT_co | None = None
    final_evals: tuple[ControlEvalResult, ...] = ()
    wall_ms: float = 0.0
    spent_cost_usd: float = 0.0
    run_id: str | None = field(default=None, metadata={NULL: True})
    failure_class: str | None = None
    runtime_errors: tuple[ControlRuntimeError, ...] = ()


@dataclass(frozen=True, slots=True)
class ControlStopPolicies:
    """When a loop that gets nowhere stops. None: such steps are not counted.

    A step makes no progress if the fingerprint of the state stays as it was and the mean score
    moved by less than `min_score_delta`. The same action is selected again if its fingerprint
    is the same. A fingerprint is by default the value's canonical text.

    Raises ValidationError for a number of steps that is no int from 1, and for a negative delta.
    """

    max_no_progress_steps: int | None = None
    max_repeated_actions: int | None = None
    min_score_delta: float = 0.001
    state_fingerprint: Callable[[JsonValue], str] | None = None
    action_fingerprint: Callable[[JsonValue], str] | None = None

    def __post_init__(self) -> None:
        for name in ("max_no_progress_steps", "max_repeated_actions"):
            most: object = getattr(self, name)
            if most is not None and (type(most) is not int or most < 1):
                raise ValidationError(f"{name} must be an int from 1, or None, not {most!r:.40}")
        if not (is_finite(self.min_score_delta) and self.min_score_delta >= 0):
            raise ValidationError(
                f"min_score_delta must be a number from 0, not {self.min_score_delta!r:.40}"
            )
