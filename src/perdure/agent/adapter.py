"""What a user writes for an agent task: the adapter that acts, the provider that knows."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

from perdure.agent.cancel import CancelSignal
from perdure.agent.evals import ControlEvalResult
from perdure.agent.knowledge import (
    Answer,
    DataAcquisitionPlan,
    KnowledgeReadinessReport,
    UserQuestion,
)
from perdure.agent.run_records import EvaluationRunRecord
from perdure.agent.steps import (
    ControlBudget,
    ControlDecision,
    ControlRunResult,
    ControlStep,
    StopDecision,
)
from perdure.agent.type_variables import (
    ActionResultT,
    ActionResultT_co,
    ActionT,
    ActionT_co,
    MaybeAwaitable,
    StateT,
    StateT_co,
)
from perdure.core.records import AgentTaskSpec, JsonValue
from perdure.durable.calls import is_cancelled
from perdure.durable.failures import CANCELLED_WITHIN
from perdure.errors import AgentRuntimeError, ValidationError


@dataclass(frozen=True)
class ControlContext(Generic[StateT_co, ActionT_co, ActionResultT_co]):
    """How a loop stands when one of its hooks is called.

    `state` and `evals` are the newest ones (None and empty before the first observation),
    `history` the completed steps, oldest first. `wall_ms` is time at work so far.
    """

    intent: str
    state: StateT_co
    evals: tuple[ControlEvalResult, ...]
    history: tuple[ControlStep[StateT_co, ActionT_co, ActionResultT_co], ...]
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


@dataclass(frozen=True)
class AgentTaskContext(ControlContext[StateT_co, ActionT_co, ActionResultT_co]):
    """How an agent task stands: the loop, the task, and the readiness report in force."""

    task: AgentTaskSpec
    knowledge: KnowledgeReadinessReport


class AgentAdapter(Protocol[StateT, ActionT, ActionResultT]):
    """One way to do a kind of task. Each method may be plain or async.

    Generic over its states, its actions and the results of these. In a durable task each call is
    a step: all three are plain JSON there (a TypedDict is), and a call that was recorded is not
    made again. An adapter may also have the methods of `AgentAdapterHooks`, under these names.
    """

    def observe(
        self, context: AgentTaskContext[StateT | None, ActionT, ActionResultT], /
    ) -> MaybeAwaitable[StateT]:
        """Return the state as it is now; `context.state` is that before, None at first."""
        ...

    def validate(
        self, context: AgentTaskContext[StateT, ActionT, ActionResultT], /
    ) -> MaybeAwaitable[Sequence[ControlEvalResult]]:
        """Return the evals of `context.state`."""
        ...

    def decide(
        self, context: AgentTaskContext[StateT, ActionT, ActionResultT], /
    ) -> MaybeAwaitable[ControlDecision[ActionT]]:
        """Return what to do: `Continue(action)` or `Stop(reason)`."""
        ...

    def act(
        self, action: ActionT, context: AgentTaskContext[StateT, ActionT, ActionResultT], /
    ) -> MaybeAwaitable[ActionResultT]:
        """Perform the action and return its result.

        Past the wall limit, or once the signal fires, it is cancelled.
        """
        ...


Method = TypeVar("Method", bound=Callable[..., Any])


def optional(method: Method) -> Method:
    """Mark a method that stands for one that is not there, unless a subclass has its own."""
    vars(method)["is_left_out"] = True
    return method


class AgentAdapterHooks(Generic[StateT, ActionT, ActionResultT]):
    """What an adapter may have beside its four methods, plain or async.

    Any adapter may have them by their names. Deriving from this class lets a type checker see
    whether they fit; one that is not overridden counts as not there.
    """

    @optional
    def should_stop(
        self, context: AgentTaskContext[StateT, ActionT, ActionResultT], /
    ) -> MaybeAwaitable[StopDecision]:
        """Return whether to stop, in place of "every eval passed or is harmless"."""
        raise NotImplementedError

    @optional
    def on_knowledge_blocked(
        self,
        context: AgentTaskContext[StateT, ActionT, ActionResultT],
        questions: Sequence[UserQuestion],
        acquisition_plans: Sequence[DataAcquisitionPlan],
        /,
    ) -> MaybeAwaitable[ControlDecision[ActionT]]:
        """Return what to do while too little is known, in place of `decide`."""
        raise NotImplementedError

    @optional
    def get_action_cost_usd(
        self,
        action: ActionT,
        result: ActionResultT,
        context: AgentTaskContext[StateT, ActionT, ActionResultT],
        /,
    ) -> MaybeAwaitable[float | None]:
        """Return what the action cost, from 0; None if nobody knows."""
        raise NotImplementedError

    @optional
    def get_evidence_ids(
        self,
        action: ActionT,
        result: ActionResultT,
        context: AgentTaskContext[StateT, ActionT, ActionResultT],
        /,
    ) -> MaybeAwaitable[Iterable[str] | None]:
        """Return the ids of the evidence that the action found; readiness is looked at again."""
        raise NotImplementedError

    @optional
    def project_run_records(
        self, control: ControlRunResult[StateT, ActionT, ActionResultT], task: AgentTaskSpec, /
    ) -> MaybeAwaitable[Sequence[EvaluationRunRecord | Mapping[str, JsonValue]] | None]:
        """Return records for an evaluation, which the result of the task carries."""
        raise NotImplementedError


class AgentKnowledgeProvider(Protocol):
    """Who knows what a task needs: any object that has some methods of `AgentKnowledgeHooks`."""


class AgentKnowledgeHooks:
    """What a provider of knowledge may have, plain or async.

    Any object may have them by their names. Deriving from this class lets a type checker see
    whether they fit; one that is not overridden counts as not there.
    """

    @optional
    def build_readiness(self, task: AgentTaskSpec, /) -> MaybeAwaitable[KnowledgeReadinessReport]:
        """Return the first report; without this method the requirements are scored."""
        raise NotImplementedError

    @optional
    def answer_questions(
        self, questions: Sequence[UserQuestion], task: AgentTaskSpec, /
    ) -> MaybeAwaitable[Mapping[str, Answer]]:
        """Return the answers by the ids of the questions."""
        raise NotImplementedError

    @optional
    def execute_acquisition_plans(
        self, plans: Sequence[DataAcquisitionPlan], task: AgentTaskSpec, /
    ) -> MaybeAwaitable[Iterable[str]]:
        """Return the ids of new evidence."""
        raise NotImplementedError

    @optional
    def refresh_readiness(
        self,
        task: AgentTaskSpec,
        report: KnowledgeReadinessReport,
        user_answers: Mapping[str, Answer],
        acquired_evidence_ids: Sequence[str],
        /,
    ) -> MaybeAwaitable[KnowledgeReadinessReport]:
        """Return a new report; without this method see `refreshed_report`."""
        raise NotImplementedError


BuildReadiness = Callable[[AgentTaskSpec], MaybeAwaitable[KnowledgeReadinessReport]]
AnswerQuestions = Callable[
    [Sequence[UserQuestion], AgentTaskSpec], MaybeAwaitable[Mapping[str, Answer]]
]
ExecutePlans = Callable[
    [Sequence[DataAcquisitionPlan], AgentTaskSpec], MaybeAwaitable[Iterable[str]]
]
RefreshReadiness = Callable[
    [AgentTaskSpec, KnowledgeReadinessReport, Mapping[str, Answer], Sequence[str]],
    MaybeAwaitable[KnowledgeReadinessReport],
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
    if not callable(method) or getattr(method, "is_left_out", False):
        return None
    return cast("Callable[..., Any]", method)


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


async def answer_of(hook: Callable[..., Any], *given: Any) -> Any:
    """Return what a plain or async hook returns; one that cancels itself has failed."""
    try:
        return await resolve(hook(*given))
    except asyncio.CancelledError as error:
        if is_cancelled():
            raise
        raise AgentRuntimeError(CANCELLED_WITHIN) from error
