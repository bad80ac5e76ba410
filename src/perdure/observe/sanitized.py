"""The types of what leaves of the parts of events: their wire form, as far as `sanitize` keeps it.

A member that may be missing (`NotRequired`) is one that lacks in the record too, or that only some
switches of `RuntimeTelemetryOptions` let out. Without `include_text` a free text is `[redacted]`.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from perdure.core.records import JsonValue


class SanitizedKnowledgeRequirement(TypedDict):
    """What leaves of one thing that a task needs to know.

    `description` is there with `include_requirement_descriptions`, except for a secret, and
    `evidenceIds` with `include_evidence_ids`.
    """

    id: str
    requiredFor: list[str]
    category: str
    acquisitionMode: str
    importance: str
    freshness: str
    sensitivity: str
    confidenceNeeded: float
    currentConfidence: float
    evidenceCount: int
    fallbackPolicy: str
    description: NotRequired[str]
    evidenceIds: NotRequired[list[str]]


class SanitizedKnowledgeReadinessReport(TypedDict):
    """What leaves of a readiness report; `evidenceIds` is there with `include_evidence_ids`.

    `reason` is `[redacted]` without `include_text`: it may be in a provider's own words.
    """

    taskId: str
    readinessScore: float
    recommendedAction: str
    severity: str
    reason: str
    blockingMissingRequirements: list[SanitizedKnowledgeRequirement]
    nonBlockingGaps: list[SanitizedKnowledgeRequirement]
    evidenceCount: int
    missingRequirementIds: list[str]
    evidenceIds: NotRequired[list[str]]


class SanitizedDecision(TypedDict):
    """What leaves of the decision on a readiness report."""

    passed: bool
    status: Literal["ready", "blocked", "caveat"]
    reason: str
    readinessScore: float
    recommendedAction: str
    severity: str
    blockingGapIds: list[str]
    nonBlockingGapIds: list[str]


class SanitizedTask(TypedDict):
    """What leaves of a task: `inputs` and `metadata` are `[redacted]` without their switches."""

    id: str
    intent: str
    domain: NotRequired[str]
    requiredKnowledge: NotRequired[list[SanitizedKnowledgeRequirement]]
    inputs: NotRequired[JsonValue]
    metadata: NotRequired[JsonValue]


class SanitizedSession(TypedDict):
    """What leaves of a session: never its resume token, only whether it has one."""

    id: str
    backend: str
    status: Literal["active", "completed", "failed", "aborted"]
    hasResumeToken: bool
    createdAt: str
    updatedAt: str
    metadata: NotRequired[JsonValue]


class SanitizedQuestion(TypedDict):
    """What leaves of a question; its words with `include_requirement_descriptions`."""

    id: str
    requirementId: str
    importance: str
    answerType: str
    optionCount: int
    question: NotRequired[str]
    reason: NotRequired[str]
    impactIfUnknown: NotRequired[str]


class SanitizedPlan(TypedDict):
    """What leaves of a plan to acquire knowledge."""

    id: str
    requirementIds: list[str]
    mode: str
    priority: str
    expectedEvidenceCount: int
    questionCount: int


class SanitizedEval(TypedDict):
    """What leaves of one eval; `detail` and `evidence` with `include_eval_details`."""

    id: str
    passed: bool
    score: NotRequired[float]
    severity: NotRequired[str]
    objective: NotRequired[bool]
    detail: NotRequired[str]
    evidence: NotRequired[str]


class SanitizedStep(TypedDict):
    """What leaves of one step of a loop; `action` and `result` with `include_control_payloads`."""

    index: int
    decisionType: Literal["continue", "stop"]
    reason: NotRequired[str]
    actionOk: NotRequired[bool]
    actionError: NotRequired[str]
    durationMs: NotRequired[float]
    evalsBefore: list[SanitizedEval]
    evalsAfter: list[SanitizedEval]
    startedAt: str
    endedAt: str
    action: NotRequired[JsonValue]
    result: NotRequired[JsonValue]


SanitizedControl = TypedDict(
    "SanitizedControl",
    {
        "pass": bool,
        "completed": bool,
        "blocked": bool,
        "reason": str,
        "score": NotRequired[float],
        "stepCount": int,
        "wallMs": float,
        "spentCostUsd": float,
        "failureClass": NotRequired[str],
        "stoppedBy": str,
        "stopCause": str,
        "runId": NotRequired[str],
        "runtimeErrorCount": int,
        "finalEvals": list[SanitizedEval],
    },
)
"""What leaves of how a loop ended: neither its steps nor its states."""


class SanitizedStreamError(TypedDict):
    """What leaves of why a task failed; `body` with `include_control_payloads`."""

    kind: Literal["transport", "backend", "readiness", "session"]
    message: str
    status: NotRequired[int]
    body: NotRequired[str]


class SanitizedFault(TypedDict):
    """What leaves of why a backend failed, beside its message."""

    kind: Literal["transport", "backend", "readiness", "session"]
    status: NotRequired[int]
