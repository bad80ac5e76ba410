"""The summary of an agent task: what a table or a log line shows, without inputs and answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from perdure.agent.events import AgentTaskStatus
from perdure.agent.knowledge import ReadinessStatus, RecommendedAction
from perdure.agent.task import AgentTaskRunResult
from perdure.core.wire import WIRE


@dataclass(frozen=True, slots=True)
class AgentTaskRunSummary:
    """An agent task in numbers and words of the runtime; `reason` is the loop's."""

    task_id: str
    status: AgentTaskStatus
    reason: str
    readiness_status: ReadinessStatus
    readiness_score: float
    recommended_action: RecommendedAction
    blocking_gap_ids: tuple[str, ...]
    non_blocking_gap_ids: tuple[str, ...]
    question_count: int
    acquisition_plan_count: int
    acquired_evidence_count: int
    control_step_count: int
    passed: bool = field(metadata={WIRE: "pass"})
    wall_ms: float
    cost_usd: float
    domain: str | None = None
    failure_class: str | None = None


def summarize_agent_task_run(result: AgentTaskRunResult) -> AgentTaskRunSummary:
    """Return the summary of a task; its readiness is that which the task itself was held to."""
    decision, control = result.decision, result.control
    return AgentTaskRunSummary(
        task_id=result.task.id,
        domain=result.task.domain,
        status=result.status,
        reason=control.reason,
        readiness_status=decision.status,
        readiness_score=decision.readiness_score,
        recommended_action=decision.recommended_action,
        blocking_gap_ids=decision.blocking_gap_ids,
        non_blocking_gap_ids=decision.non_blocking_gap_ids,
        question_count=len(result.questions),
        acquisition_plan_count=len(result.acquisition_plans),
        acquired_evidence_count=len(result.acquired_evidence_ids),
        control_step_count=len(control.steps),
        passed=control.passed,
        failure_class=control.failure_class,
        wall_ms=control.wall_ms,
        cost_usd=control.spent_cost_usd,
    )
