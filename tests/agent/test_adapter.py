"""What a user writes for a task: its types at run time, and the methods that are not there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from perdure.agent.adapter import (
    AgentAdapterHooks,
    AgentKnowledgeHooks,
    AgentTaskContext,
    KnowledgeHooks,
    optional_method,
)
from perdure.agent.evals import ControlEvalResult
from perdure.agent.hooks import ControlHooks
from perdure.agent.knowledge import KnowledgeRequirement, UserQuestion
from perdure.agent.steps import (
    Continue,
    ControlActionOutcome,
    ControlDecision,
    Stop,
    StopDecision,
)
from perdure.agent.task import run_agent_task
from perdure.core.records import AgentTaskSpec
from perdure.core.wire import from_wire, to_wire
from tests.agent.robots import Climber

OPTIONAL = {
    AgentAdapterHooks: "should_stop on_knowledge_blocked get_action_cost_usd get_evidence_ids "
    "project_run_records",
    AgentKnowledgeHooks: "build_readiness answer_questions execute_acquisition_plans "
    "refresh_readiness",
}
FOUR: list[Any] = [print] * 4
CALLS: list[tuple[Callable[[], Any], Any]] = [
    (lambda: Continue[int](1), Continue(1)),
    (lambda: ControlActionOutcome[str](True, "done"), ControlActionOutcome(True, "done")),
    (lambda: ControlHooks[int, int, int](*FOUR), ControlHooks(*FOUR)),
]


@pytest.mark.parametrize(("make", "same"), CALLS)
def test_bb_19_a_generic_record_is_made_with_its_types_and_without(
    make: Callable[[], Any], same: Any
) -> None:
    assert make() == same


def test_bb_19_a_generic_record_comes_back_from_its_wire_form() -> None:
    decision = Continue({"climb": [1, None]}, "up")
    assert from_wire(Continue, to_wire(decision)) == decision


@pytest.mark.parametrize("hooks", OPTIONAL)
def test_bb_19_a_method_that_nobody_overrides_is_not_there(hooks: type[Any]) -> None:
    names = OPTIONAL[hooks].split()
    assert [name for name in vars(hooks) if not name.startswith("_")] == names
    for name in names:
        assert optional_method(hooks(), name) is None
        own = type("Own", (hooks,), {name: lambda *_: None})()
        assert [each for each in names if optional_method(own, each)] == [name]


class Lift(Climber, AgentAdapterHooks[Any, Any, Any]):
    """Has one of the methods that may be there, and inherits the others."""

    def should_stop(self, context: AgentTaskContext) -> StopDecision:
        return StopDecision(stop=context.state["rung"] == 1, passed=True, reason="high enough")


class Clerk(AgentKnowledgeHooks):
    """Answers, and leaves the rest to the runtime."""

    def answer_questions(
        self, questions: Sequence[UserQuestion], task: AgentTaskSpec
    ) -> dict[str, str]:
        return {each.id: "blue" for each in questions}


async def test_bb_19_a_task_calls_only_what_was_overridden() -> None:
    needed = KnowledgeRequirement("colour", "the colour", fallback_policy="block")
    task = AgentTaskSpec("lift", "Go up", required_knowledge=[needed])
    result = await run_agent_task(task, Lift(aim=9), knowledge=Clerk())
    assert (result.status, result.control.reason) == ("completed", "high enough")
    assert result.user_answers == {"question_colour": "blue"}
    assert (result.run_records, result.control.runtime_errors) == ((), ())
    assert KnowledgeHooks.of(Clerk()).refresh_readiness is None


class Blocked(Climber, AgentAdapterHooks[Any, Any, Any]):
    """Has no word of its own for what it does not know."""

    def validate(self, context: AgentTaskContext) -> list[ControlEvalResult]:
        return []

    async def decide(self, context: AgentTaskContext) -> ControlDecision:
        return Stop("never asked")


async def test_bb_19_an_inherited_hook_does_not_stand_in_for_the_gate() -> None:
    needed = KnowledgeRequirement("colour", "the colour", fallback_policy="block")
    task = AgentTaskSpec("lift", "Go up", required_knowledge=[needed])
    result = await run_agent_task(task, Blocked())
    assert result.status == "blocked"
    assert result.control.reason.startswith("knowledge readiness blocked: ")
