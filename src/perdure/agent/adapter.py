"""What a user writes for an agent task: the adapter that acts, the provider that knows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from perdure.agent.cancel import CancelSignal
from perdure.agent.evals import ControlEvalResult
from perdure.agent.knowledge import (
    Answer,
    DataAcquisitionPlan,
    KnowledgeReadinessReport,
    UserQuestion,
)
from perdure.agent.steps import ControlBudget, ControlStep
from perdure.core.records import AgentTaskSpec, JsonValue
from perdure.errors import ValidationError


@dataclass(frozen=True, slots=True)
class ControlContext:
    """How a loop stands when one of its hooks is called.

    `state` and `evals` are the newest ones (None and empty before the first observation),
    `history` the completed steps, oldest first. `wall_ms` is time at work so far.
    """

    intent: str
    state: JsonValue
    evals: tuple[ControlEvalResult, ...]
    history: tuple[ControlStep, ...]
    budget: ControlBudget
    step_index: int
    wall_ms: float
    spent_cost_usd: float
    cancel_signal: CancelSignal

    @property
    def remaining_cost_usd(self) -> float | None:
        """What is left of the cost cap, never below 0; None without a cap."""
        most = self.budget.max_cost_usd
        return None if most is None else max(0.0, most - self.spent_cost_usd)


@dataclass(frozen=True, slots=True)
class AgentTaskContext(ControlContext):
    """How an agent task stands: the loop, the task, and the readiness report in force."""

    task: AgentTaskSpec
    knowledge: KnowledgeReadinessReport


class AgentAdapter(Protocol):
    """One way to do a kind of task. Each method may be plain or async.

    In a durable task each call is a step: states, actions and results are plain JSON there, and
    a call that was recorded is not made again. An adapter may also have

    - `should_stop(context)` -> StopDecision
    - `on_knowledge_blocked(context, questions, acquisition_plans)` -> ControlDecision
    - `get_action_cost_usd(action, result, context)` -> float | None
    - `get_evidence_ids(action, result, context)` -> ids of the evidence that an action found
    - `project_run_records(control, task)` -> records for an evaluation, carried along
    """

    def observe(self, context: AgentTaskContext) -> Any:
        """Return the state as it is now."""
        ...

    def validate(self, context: AgentTaskContext) -> Any:
        """Return the evals (a sequence of ControlEvalResult) of `context.state`."""
        ...

    def decide(self, context: AgentTaskContext) -> Any:
        """Return a ControlDecision: `Continue(action)` or `Stop(reason)`."""
        ...

    def act(self, action: JsonValue, context: AgentTaskContext) -> Any:
        """Perform the action and return its result.

        Past the wall limit, or once the signal fires, it is cancelled.
        """
        ...


class AgentKnowledgeProvider(Protocol):
    """Who knows what a task needs: any object. It may have, plain or async,

    - `build_readiness(task)` -> KnowledgeReadinessReport (else the requirements are scored)
    - `answer_questions(questions, task)` -> answers by question id
    - `execute_acquisition_plans(plans, task)` -> ids of new evidence
    - `refresh_readiness(task, report, user_answers, acquired_evidence_ids)` -> a new report
      (else answered requirements count as known, see `refreshed_report`)
    """


BuildReadiness = Callable[[AgentTaskSpec], Any]
AnswerQuestions = Callable[[Sequence[UserQuestion], AgentTaskSpec], Any]
ExecutePlans = Callable[[Sequence[DataAcquisitionPlan], AgentTaskSpec], Any]
RefreshReadiness = Callable[
    [AgentTaskSpec, KnowledgeReadinessReport, Mapping[str, Answer], Sequence[str]], Any
]


@dataclass(frozen=True, slots=True)
class KnowledgeHooks:
    """The methods that a provider has, as callables; None for those it has not."""

    build_readiness: BuildReadiness | None = None
    answer_questions: AnswerQuestions | None = None
    execute_acquisition_plans: ExecutePlans | None = None
    refresh_readiness: RefreshReadiness | None = None

    @classmethod
    def of(cls, provider: AgentKnowledgeProvider | None) -> KnowledgeHooks:
        """Return the hooks of `provider`."""
        return cls(
            build_readiness=optional_method(provider, "build_readiness"),
            answer_questions=optional_method(provider, "answer_questions"),
            execute_acquisition_plans=optional_method(provider, "execute_acquisition_plans"),
            refresh_readiness=optional_method(provider, "refresh_readiness"),
        )


def optional_method(owner: object, name: str) -> Callable[..., Any] | None:
    """Return the method of `owner`, or None if it has none of this name."""
    method = getattr(owner, name, None)
    return cast("Callable[..., Any]", method) if callable(method) else None


def check_methods(owner: object, role: str, names: Sequence[str]) -> None:
    """Raise ValidationError if `owner` lacks one of the methods that its role asks for."""
    missing = [name for name in names if optional_method(owner, name) is None]
    if missing:
        raise ValidationError(
            f"{type(owner).__qualname__!r:.60} is no {role}: it has no method "
            f"{', '.join(missing)} ({role} needs {', '.join(names)})"
        )


async def resolve(value: Any) -> Any:
    """Return what a plain or async hook returned."""
    return await value if inspect.isawaitable(value) else value
