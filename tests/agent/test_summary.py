"""A summary tells how a task went, and nothing of what it was about (6.4)."""

from __future__ import annotations

from perdure.agent.knowledge import KnowledgeRequirement
from perdure.agent.preflight import ReadinessPolicy
from perdure.agent.summary import summarize_agent_task_run
from perdure.agent.task import run_agent_task
from perdure.core.records import AgentTaskSpec
from perdure.core.wire import to_wire
from tests.agent.robots import Climber, Librarian

TASK = AgentTaskSpec("climb", "Climb the ladder", domain="ladders")
COLOUR = KnowledgeRequirement("colour", "the colour of the ladder", fallback_policy="block")
KEY = KnowledgeRequirement("key", "the key of the shed", sensitivity="secret")
CAVEAT = KnowledgeRequirement(
    "wind", "the wind", acquisition_mode="search_web", fallback_policy="continue_with_caveat"
)


def needing(*requirements: KnowledgeRequirement) -> AgentTaskSpec:
    return TASK._replace(required_knowledge=requirements)


async def test_6_4_a_summary_has_numbers_and_no_contents() -> None:
    task = needing(COLOUR)._replace(inputs={"height": "canary"})
    librarian = Librarian("canary")
    summary = summarize_agent_task_run(await run_agent_task(task, Climber(), knowledge=librarian))
    assert (summary.status, summary.readiness_status) == ("completed", "ready")
    assert (summary.question_count, summary.control_step_count) == (1, 2)
    assert "canary" not in repr(summary)


async def test_6_4_the_reason_of_a_summary_is_that_of_the_loop() -> None:
    result = await run_agent_task(TASK, Climber())
    summary = summarize_agent_task_run(result)
    assert summary.reason == result.control.reason
    assert summary.reason != result.decision.reason
    assert (summary.task_id, summary.domain, summary.passed) == ("climb", "ladders", True)
    assert (summary.wall_ms, summary.cost_usd) == (result.control.wall_ms, 0)


async def test_6_4_a_summary_has_the_names_of_the_contract_on_the_wire() -> None:
    blocked = await run_agent_task(needing(KEY), Climber())
    assert to_wire(summarize_agent_task_run(blocked)).keys() == {
        "taskId",
        "status",
        "reason",
        "readinessStatus",
        "readinessScore",
        "recommendedAction",
        "blockingGapIds",
        "nonBlockingGapIds",
        "questionCount",
        "acquisitionPlanCount",
        "acquiredEvidenceCount",
        "controlStepCount",
        "pass",
        "wallMs",
        "costUsd",
        "domain",
        "failureClass",
    }


async def test_bb_5_a_summary_is_held_to_the_minimum_of_the_run() -> None:
    low = ReadinessPolicy(minimum_score=0)
    result = await run_agent_task(needing(CAVEAT), Climber(), readiness=low)
    assert summarize_agent_task_run(result).readiness_status == "ready"
