"""The events of an agent task, one record for each type, in the order in which they happen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from perdure.agent.knowledge import (
    Answer,
    DataAcquisitionPlan,
    KnowledgeReadinessDecision,
    KnowledgeReadinessReport,
    UserQuestion,
)
from perdure.agent.steps import ControlRunResult, ControlStep
from perdure.core.records import AgentTaskSpec

AgentTaskStatus = Literal["completed", "blocked", "failed", "aborted"]

AgentRuntimeErrorCode = Literal[
    "agent_runtime",
    "validation",
    "not_found",
    "config",
    "capture_integrity",
    "judge",
    "verification",
    "replay",
    "transport",
    "backend_timeout",
    "tool_failed",
]
"""The codes of an AgentRuntimeError. None ever changes its meaning; there may be more."""


@dataclass(frozen=True, slots=True)
class TaskStart:
    """The task begins; it is the first event."""

    task: AgentTaskSpec
    type: Literal["task_start"] = "task_start"


@dataclass(frozen=True, slots=True)
class ReadinessStart:
    """Readiness is about to be found out, or found out again."""

    task: AgentTaskSpec
    type: Literal["readiness_start"] = "readiness_start"


@dataclass(frozen=True, slots=True)
class ReadinessEnd:
    """The report in force from here on, and whether the task may go on with it."""

    task: AgentTaskSpec
    knowledge: KnowledgeReadinessReport
    decision: KnowledgeReadinessDecision
    type: Literal["readiness_end"] = "readiness_end"


@dataclass(frozen=True, slots=True)
class QuestionsStart:
    """The user is asked."""

    task: AgentTaskSpec
    questions: tuple[UserQuestion, ...]
    type: Literal["questions_start"] = "questions_start"


@dataclass(frozen=True, slots=True)
class QuestionsEnd:
    """The user has answered; answers that are credentials are Secrets."""

    task: AgentTaskSpec
    questions: tuple[UserQuestion, ...]
    user_answers: Mapping[str, Answer]
    type: Literal["questions_end"] = "questions_end"


@dataclass(frozen=True, slots=True)
class AcquisitionStart:
    """Plans to acquire knowledge are carried out."""

    task: AgentTaskSpec
    acquisition_plans: tuple[DataAcquisitionPlan, ...]
    type: Literal["acquisition_start"] = "acquisition_start"


@dataclass(frozen=True, slots=True)
class AcquisitionEnd:
    """The plans were carried out, and brought this evidence."""

    task: AgentTaskSpec
    acquisition_plans: tuple[DataAcquisitionPlan, ...]
    acquired_evidence_ids: tuple[str, ...]
    type: Literal["acquisition_end"] = "acquisition_end"


@dataclass(frozen=True, slots=True)
class ControlStart:
    """The control loop begins with this report."""

    task: AgentTaskSpec
    knowledge: KnowledgeReadinessReport
    type: Literal["control_start"] = "control_start"


@dataclass(frozen=True, slots=True)
class ControlStepped:
    """The loop has made a step."""

    task: AgentTaskSpec
    step: ControlStep
    type: Literal["control_step"] = "control_step"


@dataclass(frozen=True, slots=True)
class ControlEnd:
    """The loop has ended."""

    task: AgentTaskSpec
    control: ControlRunResult
    type: Literal["control_end"] = "control_end"


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """The task is over; it is the last event, and there is exactly one."""

    task: AgentTaskSpec
    status: AgentTaskStatus
    reason: str
    type: Literal["task_end"] = "task_end"


AgentRuntimeEvent = (
    TaskStart
    | ReadinessStart
    | ReadinessEnd
    | QuestionsStart
    | QuestionsEnd
    | AcquisitionStart
    | AcquisitionEnd
    | ControlStart
    | ControlStepped
    | ControlEnd
    | TaskEnd
)
AgentRuntimeEventSink = Callable[[AgentRuntimeEvent], Any]
"""Takes each event, plain or async; it is waited for, so a slow sink slows the task."""
