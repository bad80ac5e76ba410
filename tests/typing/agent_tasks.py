"""Agent tasks as their users write them, for the type checkers to read; nothing is executed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, assert_type

from perdure import AgentTaskSpec, DurableContext, RunStore, sync
from perdure.agent import (
    AgentAdapterHooks,
    AgentKnowledgeHooks,
    AgentTaskContext,
    AgentTaskRunResult,
    Continue,
    ControlBudget,
    ControlDecision,
    ControlEvalResult,
    ControlHooks,
    ControlRunResult,
    ControlStep,
    DataAcquisitionPlan,
    KnowledgeReadinessReport,
    Secret,
    Stop,
    StopDecision,
    UserQuestion,
    objective_eval,
    run_agent_control_loop,
    run_agent_task,
)

TASK = AgentTaskSpec("climb", "Climb to the third rung")


class Ladder(TypedDict):
    """A state."""

    rung: int


class Climb(TypedDict):
    """An action."""

    by: int


Context = AgentTaskContext[Ladder, Climb, str]


class Plain:
    """Plain methods, every one with its types."""

    def observe(self, context: AgentTaskContext[Ladder | None, Climb, str]) -> Ladder:
        assert_type(context.state, Ladder | None)
        return {"rung": 0}

    def validate(self, context: Context) -> list[ControlEvalResult]:
        return [objective_eval("up", context.state["rung"] == 3)]

    def decide(self, context: Context) -> ControlDecision[Climb]:
        assert_type(context.state, Ladder)
        assert_type(context.history, tuple[ControlStep[Ladder, Climb, str], ...])
        assert_type(context.knowledge, KnowledgeReadinessReport)
        assert_type(context.remaining_cost_usd, float | None)
        assert_type(context.budget, ControlBudget)
        return Stop("there", passed=True) if context.history else Continue(Climb(by=1))

    def act(self, action: Climb, context: Context) -> str:
        return f"up by {action['by']}"


class Async(AgentAdapterHooks[Ladder, Climb, str]):
    """Async methods, and some of those that may be there."""

    async def observe(self, context: AgentTaskContext[Ladder | None, Climb, str]) -> Ladder:
        return {"rung": 0}

    async def validate(self, context: Context) -> Sequence[ControlEvalResult]:
        return []

    async def decide(self, context: Context) -> Continue[Climb]:
        return Continue({"by": 1}, "there is a rung")

    async def act(self, action: Climb, context: Context) -> str:
        return "up"

    async def should_stop(self, context: Context) -> StopDecision:
        return StopDecision(stop=context.state["rung"] > 3)

    def on_knowledge_blocked(
        self,
        context: Context,
        questions: Sequence[UserQuestion],
        acquisition_plans: Sequence[DataAcquisitionPlan],
    ) -> Stop:
        return Stop(questions[0].question)

    def get_action_cost_usd(self, action: Climb, result: str, context: Context) -> float:
        return 0.01 * action["by"]

    async def get_evidence_ids(self, action: Climb, result: str, context: Context) -> set[str]:
        return {result}

    def project_run_records(
        self, control: ControlRunResult[Ladder, Climb, str], task: AgentTaskSpec
    ) -> list[Mapping[str, Any]]:
        assert_type(control.final_state, Ladder | None)
        return [{"runId": task.id}]


class Loose:
    """Whoever leaves the types out may have anything."""

    def observe(self, context: AgentTaskContext) -> Any: ...

    def validate(self, context: AgentTaskContext) -> list[ControlEvalResult]:
        return [objective_eval("up", context.state.rung == 3)]

    def decide(self, context: AgentTaskContext) -> ControlDecision:
        return Continue(context.state.next)

    def act(self, action: Any, context: AgentTaskContext) -> Any: ...


class Librarian(AgentKnowledgeHooks):
    """A provider that answers; what it has not, others do."""

    async def answer_questions(
        self, questions: Sequence[UserQuestion], task: AgentTaskSpec
    ) -> dict[str, str | Secret]:
        return {each.id: Secret("key") for each in questions}

    def execute_acquisition_plans(
        self, plans: Sequence[DataAcquisitionPlan], task: AgentTaskSpec
    ) -> list[str]:
        return [each.id for each in plans]


async def a_task_keeps_the_types_of_its_adapter(store: RunStore, run: DurableContext) -> None:
    result = await run_agent_task(TASK, Plain(), knowledge=Librarian(), durable=(store, "run"))
    assert_type(result, AgentTaskRunResult[Ladder, Climb, str])
    assert_type(result.control, ControlRunResult[Ladder, Climb, str])
    assert_type(result.control.final_state, Ladder | None)
    [step] = result.control.steps
    assert_type(step.before_state, Ladder)
    assert_type(step.decision, Continue[Climb] | Stop)
    assert step.action_outcome is not None
    assert_type(step.action_outcome.result, str | None)
    assert_type(
        await run_agent_task(TASK, Async(), durable=run), AgentTaskRunResult[Ladder, Climb, str]
    )
    assert_type(await run_agent_task(TASK, Loose()), AgentTaskRunResult[Any, Any, Any])
    assert_type(sync.run_agent_task_sync(TASK, Plain()), AgentTaskRunResult[Ladder, Climb, str])


async def a_loop_keeps_the_types_of_its_hooks() -> None:
    hooks = ControlHooks[int, Climb, str](
        observe=lambda context: len(context.history),
        validate=lambda context: [],
        decide=lambda context: Continue(Climb(by=context.state + 1)),
        act=lambda action, context: f"up by {action['by']}",
    )
    loop = await run_agent_control_loop("Climb", hooks)
    assert_type(loop, ControlRunResult[int, Climb, str])
    assert_type(loop.final_state, int | None)


# What does not fit is refused: an ignored error that is none is an error itself.


class Forgetful(Plain):
    """Its actions are not those that it decides on."""

    def decide(  # type: ignore[override]  # on purpose: the wrong action
        self, context: Context
    ) -> Continue[int]:
        return Continue(1)


class Costly(Async):
    """Its cost is a text."""

    def get_action_cost_usd(  # type: ignore[override]  # on purpose: no number
        self, action: Climb, result: str, context: Context
    ) -> str:
        return "much"


class Silent(AgentKnowledgeHooks):
    """Its answers are numbers."""

    async def answer_questions(  # type: ignore[override]  # on purpose: no texts
        self, questions: Sequence[UserQuestion], task: AgentTaskSpec
    ) -> dict[str, int]:
        return {}


class Eager(Plain):
    """It takes the state for known before it has looked."""

    def observe(  # type: ignore[override]  # on purpose: None is forgotten
        self, context: Context
    ) -> Ladder:
        return {"rung": context.state["rung"] + 1}


async def an_adapter_that_does_not_fit_is_refused() -> None:
    await run_agent_task(TASK, Forgetful())  # type: ignore[misc]  # on purpose: the wrong action
    await run_agent_task(TASK, Eager())  # type: ignore[arg-type]  # on purpose: None is forgotten
