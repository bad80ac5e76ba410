"""What a control loop is made with: its hooks, its options, and the gate before its decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, get_args

from perdure.agent.adapter import ControlContext
from perdure.agent.evals import ControlEvalResult, Emit
from perdure.agent.steps import (
    ControlDecision,
    ControlStep,
    ControlStopPolicies,
    StopDecision,
)
from perdure.agent.type_variables import ActionResultT, ActionT, MaybeAwaitable, StateT
from perdure.core.records import Effect, JsonValue, Retry
from perdure.errors import ValidationError
from perdure.observe.telemetry import RuntimeTelemetryOptions
from perdure.observe.trace_store import TraceStore

ActionFailure = Literal["continue", "stop"]
DecideKind = Literal["llm", "logic"]


class Gate(Protocol):
    """What stands before the decisions of a loop, and may keep it from passing."""

    @property
    def is_blocked(self) -> bool: ...

    def evals(self, emit: Emit | None = None) -> Sequence[ControlEvalResult]:
        """Return the evals that come before those of the hooks; `emit` is told of them."""
        ...

    async def acted(
        self, action: JsonValue, result: JsonValue, context: ControlContext
    ) -> str | None:
        """Take notice of what an action came to; return what failed in that, if anything did.

        The action stays done. Raises Ended if the loop is cut off meanwhile.
        """
        ...


class OpenGate:
    """The gate of a loop that nothing keeps."""

    is_blocked = False

    def evals(self, emit: Emit | None = None) -> Sequence[ControlEvalResult]:
        return ()

    async def acted(
        self, action: JsonValue, result: JsonValue, context: ControlContext
    ) -> str | None:
        """Nothing depends on it."""


@dataclass(frozen=True)
class ControlHooks(Generic[StateT, ActionT, ActionResultT]):
    """What a loop calls; each hook is plain or async, and returns what `AgentAdapter` says."""

    observe: Callable[
        [ControlContext[StateT | None, ActionT, ActionResultT]], MaybeAwaitable[StateT]
    ]
    validate: Callable[
        [ControlContext[StateT, ActionT, ActionResultT]],
        MaybeAwaitable[Sequence[ControlEvalResult]],
    ]
    decide: Callable[
        [ControlContext[StateT, ActionT, ActionResultT]], MaybeAwaitable[ControlDecision[ActionT]]
    ]
    act: Callable[
        [ActionT, ControlContext[StateT, ActionT, ActionResultT]], MaybeAwaitable[ActionResultT]
    ]
    should_stop: (
        Callable[[ControlContext[StateT, ActionT, ActionResultT]], MaybeAwaitable[StopDecision]]
        | None
    ) = None
    get_action_cost_usd: (
        Callable[
            [ActionT, ActionResultT, ControlContext[StateT, ActionT, ActionResultT]],
            MaybeAwaitable[float | None],
        ]
        | None
    ) = None
    on_step: Callable[[ControlStep[StateT, ActionT, ActionResultT]], Any] | None = None


@dataclass(frozen=True, slots=True)
class ControlOptions:
    """How a loop goes on and stops.

    `action_failure`: whether a failed action ends the loop. In a durable run `decide_retry` holds
    for decisions within one attempt, and `action_effect` is what may happen to an action that a
    crash cut off (see `DurableContext.step`). `decide_kind` is "logic" where `decide` asks no
    model: by "llm" each decision is a call in the ledger, unknown if nothing tells of its use.

    `trace_store` is told of the loop as it goes: its run, under the scenario, project and variant
    given here, its steps and evals as spans, and what is left of its money. `telemetry` says what
    may leave with that, None: `telemetry_log()`, no words and no payloads.
    """

    stop_policies: ControlStopPolicies = field(default_factory=ControlStopPolicies)
    action_failure: ActionFailure = "continue"
    on_step: Callable[[ControlStep], Any] | None = None
    decide_retry: Retry | None = None
    decide_kind: DecideKind = "llm"
    action_effect: Effect = "idempotent"
    project_id: str = "agent"
    scenario_id: str | None = None
    variant_id: str | None = None
    trace_store: TraceStore | None = None
    telemetry: RuntimeTelemetryOptions | None = None

    def __post_init__(self) -> None:
        for name, choices in (("action_failure", ActionFailure), ("decide_kind", DecideKind)):
            if (given := getattr(self, name)) not in get_args(choices):
                known = " or ".join(map(repr, get_args(choices)))
                raise ValidationError(f"{name} must be {known}, not {given!r:.40}")
