"""The types of what leaves of events, told apart by `type`: of a task's, and of a stream's.

They are what `sanitize_agent_runtime_event` and `sanitize_runtime_stream_event` return, what
server-sent events hold, and, without `type` and `task`, the values of `agent.<type>` frames.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from perdure.core.records import JsonValue
from perdure.observe.sanitized import (
    SanitizedControl,
    SanitizedDecision,
    SanitizedFault,
    SanitizedKnowledgeReadinessReport,
    SanitizedPlan,
    SanitizedQuestion,
    SanitizedSession,
    SanitizedStep,
    SanitizedStreamError,
    SanitizedTask,
)

Status = Literal["completed", "blocked", "failed", "aborted"]


class SanitizedEventParts(TypedDict):
    """What every event has: its task, and in a stream its session, once there is one, and time."""

    task: SanitizedTask
    session: NotRequired[SanitizedSession]
    timestamp: NotRequired[str]


class SanitizedTaskStart(SanitizedEventParts):
    """The task begins."""

    type: Literal["task_start"]


class SanitizedReadinessStart(SanitizedEventParts):
    """Readiness is about to be found out."""

    type: Literal["readiness_start"]


class SanitizedReadinessEnd(SanitizedEventParts):
    """Readiness is known; only a stream tells the decision."""

    type: Literal["readiness_end"]
    knowledge: SanitizedKnowledgeReadinessReport
    decision: NotRequired[SanitizedDecision]


class SanitizedQuestionsStart(SanitizedEventParts):
    """The user is asked."""

    type: Literal["questions_start"]
    questions: list[SanitizedQuestion]


class SanitizedQuestionsEnd(SanitizedEventParts):
    """The user has answered; without `include_user_answers` each answer is `[redacted]`."""

    type: Literal["questions_end"]
    questions: list[SanitizedQuestion]
    userAnswers: dict[str, str]


class SanitizedAcquisitionStart(SanitizedEventParts):
    """Plans to acquire knowledge are carried out."""

    type: Literal["acquisition_start"]
    acquisitionPlans: list[SanitizedPlan]


class SanitizedAcquisitionEnd(SanitizedEventParts):
    """The plans were carried out; the ids are there with `include_evidence_ids`."""

    type: Literal["acquisition_end"]
    acquisitionPlans: list[SanitizedPlan]
    acquiredEvidenceCount: int
    acquiredEvidenceIds: NotRequired[list[str]]


class SanitizedControlStart(SanitizedEventParts):
    """The loop begins."""

    type: Literal["control_start"]
    knowledge: SanitizedKnowledgeReadinessReport


class SanitizedControlStep(SanitizedEventParts):
    """The loop has made a step."""

    type: Literal["control_step"]
    step: SanitizedStep


class SanitizedControlEnd(SanitizedEventParts):
    """The loop has ended."""

    type: Literal["control_end"]
    control: SanitizedControl


class SanitizedSessionCreated(SanitizedEventParts):
    """A session was begun."""

    type: Literal["session_created"]


class SanitizedSessionResumed(SanitizedEventParts):
    """A session was taken up again."""

    type: Literal["session_resumed"]


class SanitizedBackendStart(SanitizedEventParts):
    """The backend is asked."""

    type: Literal["backend_start"]
    backend: str


class SanitizedTextDelta(SanitizedEventParts):
    """A piece of text; `[redacted]` without `include_text` and `include_control_payloads`."""

    type: Literal["text_delta"]
    text: str


class SanitizedReasoningDelta(SanitizedEventParts):
    """A piece of reasoning, which leaves as a piece of text does."""

    type: Literal["reasoning_delta"]
    text: str


class SanitizedToolCall(SanitizedEventParts):
    """A tool is called; `args` with `include_control_payloads`."""

    type: Literal["tool_call"]
    toolName: str
    toolCallId: NotRequired[str]
    args: NotRequired[JsonValue]


class SanitizedToolResult(SanitizedEventParts):
    """A tool has come to a result; it is there with `include_control_payloads`."""

    type: Literal["tool_result"]
    toolName: str
    toolCallId: NotRequired[str]
    result: NotRequired[JsonValue]


class SanitizedLlmCall(SanitizedEventParts):
    """What a call of a model used; what is missing is unknown, never zero."""

    type: Literal["llm_call"]
    model: str
    tokensIn: NotRequired[int]
    tokensOut: NotRequired[int]
    costUsd: NotRequired[float]
    latencyMs: NotRequired[float]
    finishReason: NotRequired[str]
    tokensCached: NotRequired[int]
    tokensReasoning: NotRequired[int]
    tokensCacheWritten: NotRequired[int]
    provider: NotRequired[str]
    requestId: NotRequired[str]


class SanitizedArtifact(SanitizedEventParts):
    """Something was made; each of `uri`, `content` and `metadata` has a switch of its own."""

    type: Literal["artifact"]
    artifactId: str
    name: NotRequired[str]
    mimeType: NotRequired[str]
    uri: NotRequired[str]
    content: NotRequired[JsonValue]
    metadata: NotRequired[dict[str, JsonValue]]


class SanitizedProposalCreated(SanitizedEventParts):
    """Something is proposed; `title` and `content` with `include_control_payloads`."""

    type: Literal["proposal_created"]
    proposalId: str
    status: NotRequired[Literal["pending", "approved", "rejected"]]
    title: NotRequired[str]
    content: NotRequired[JsonValue]


class SanitizedBackendError(SanitizedEventParts):
    """The backend failed or was cut off."""

    type: Literal["backend_error"]
    backend: str
    message: str
    recoverable: bool
    error: NotRequired[SanitizedFault]


class SanitizedBackendEnd(SanitizedEventParts):
    """The backend has said everything."""

    type: Literal["backend_end"]
    backend: str


class SanitizedTaskEnd(SanitizedEventParts):
    """The task is over."""

    type: Literal["task_end"]
    status: Status
    reason: str


class SanitizedFinal(SanitizedEventParts):
    """How a stream ended; `text` leaves as its pieces do, `metadata` with `include_metadata`."""

    type: Literal["final"]
    status: Status
    reason: str
    text: NotRequired[str]
    error: NotRequired[SanitizedStreamError]
    metadata: NotRequired[dict[str, JsonValue]]


_SharedEvent = (
    SanitizedTaskStart
    | SanitizedReadinessStart
    | SanitizedReadinessEnd
    | SanitizedQuestionsStart
    | SanitizedQuestionsEnd
    | SanitizedAcquisitionStart
    | SanitizedAcquisitionEnd
    | SanitizedTaskEnd
)
SanitizedRuntimeEvent = (
    _SharedEvent | SanitizedControlStart | SanitizedControlStep | SanitizedControlEnd
)
"""What leaves of an event of `run_agent_task`; tell it by its `type`."""

SanitizedStreamEvent = (
    _SharedEvent
    | SanitizedSessionCreated
    | SanitizedSessionResumed
    | SanitizedBackendStart
    | SanitizedTextDelta
    | SanitizedReasoningDelta
    | SanitizedToolCall
    | SanitizedToolResult
    | SanitizedLlmCall
    | SanitizedArtifact
    | SanitizedProposalCreated
    | SanitizedBackendError
    | SanitizedBackendEnd
    | SanitizedFinal
)
"""What leaves of an event of a stream; tell it by its `type`, and pass over unknown ones."""
