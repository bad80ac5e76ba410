"""What leaves of an event: one table, from which everything is absent that it does not name.

An event goes in as a record or in its wire form, and comes out in wire form. A type that the
table does not know keeps its type, task, session and time. Texts pass a last net, which masks
what looks like a credential (`credentials`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

from perdure.core.records import JsonValue
from perdure.core.wire import to_wire
from perdure.errors import UsageError
from perdure.observe.credentials import mask_credentials
from perdure.observe.rules import (
    Part,
    count,
    each,
    ids,
    is_there,
    keep,
    only_with,
    part,
    redacted_without,
    sanitize_part,
    text,
    text_with,
    values_with,
)
from perdure.observe.sanitized import SanitizedKnowledgeReadinessReport
from perdure.observe.telemetry import RuntimeTelemetryOptions, telemetry_log

if TYPE_CHECKING:
    from perdure.observe.sanitized_events import SanitizedRuntimeEvent, SanitizedStreamEvent

_WORDS = "include_requirement_descriptions"
_IDS = "include_evidence_ids"
_PAYLOADS = "include_control_payloads"
_METADATA = "include_metadata"
DELTAS_WITH: Final = ("include_text", _PAYLOADS)
"""With one of these the words of a model leave: its deltas, and the text that they make."""

REQUIREMENT: Final[Part] = {
    "id": keep(),
    "requiredFor": keep(),
    "category": keep(),
    "acquisitionMode": keep(),
    "importance": keep(),
    "freshness": keep(),
    "sensitivity": keep(),
    "confidenceNeeded": keep(),
    "currentConfidence": keep(),
    "evidenceCount": count("evidenceIds"),
    "fallbackPolicy": keep(),
    "description": only_with(_WORDS, unless=("sensitivity", "secret")),
    "evidenceIds": only_with(_IDS),
}

TASK: Final[Part] = {
    "id": keep(),
    "intent": keep(),
    "domain": keep(),
    "requiredKnowledge": each(REQUIREMENT),
    "inputs": redacted_without("include_inputs"),
    "metadata": redacted_without(_METADATA),
}

SESSION: Final[Part] = {
    "id": keep(),
    "backend": keep(),
    "status": keep(),
    "hasResumeToken": is_there("resumeToken"),
    "createdAt": keep(),
    "updatedAt": keep(),
    "metadata": redacted_without(_METADATA),
}

REPORT: Final[Part] = {
    "taskId": keep(),
    "readinessScore": keep(),
    "recommendedAction": keep(),
    "severity": keep(),
    "reason": text(),
    "blockingMissingRequirements": each(REQUIREMENT),
    "nonBlockingGaps": each(REQUIREMENT),
    "evidenceCount": count("bundle", "evidenceIds"),
    "missingRequirementIds": ids("bundle", "missing"),
    "evidenceIds": only_with(_IDS, path=("bundle", "evidenceIds")),
}

DECISION: Final[Part] = {
    "passed": keep(),
    "status": keep(),
    "reason": text(),
    "readinessScore": keep(),
    "recommendedAction": keep(),
    "severity": keep(),
    "blockingGapIds": keep(),
    "nonBlockingGapIds": keep(),
}

QUESTION: Final[Part] = {
    "id": keep(),
    "requirementId": keep(),
    "importance": keep(),
    "answerType": keep(),
    "optionCount": count("options"),
    "question": only_with(_WORDS, unless=("answerType", "credential")),
    "reason": only_with(_WORDS),
    "impactIfUnknown": only_with(_WORDS),
}

PLAN: Final[Part] = {
    "id": keep(),
    "requirementIds": keep(),
    "mode": keep(),
    "priority": keep(),
    "expectedEvidenceCount": count("expectedEvidenceIds"),
    "questionCount": count("questions"),
}

EVAL: Final[Part] = {
    "id": keep(),
    "passed": keep(),
    "score": keep(),
    "severity": keep(),
    "objective": keep(),
    "detail": only_with("include_eval_details"),
    "evidence": only_with("include_eval_details"),
}

STEP: Final[Part] = {
    "index": keep(),
    "decisionType": keep("decision", "type"),
    "reason": text(path=("decision", "reason")),
    "actionOk": keep("actionOutcome", "ok"),
    "actionError": text(path=("actionOutcome", "error")),
    "durationMs": keep("actionOutcome", "durationMs"),
    "evalsBefore": each(EVAL),
    "evalsAfter": each(EVAL),
    "startedAt": keep(),
    "endedAt": keep(),
    "action": only_with(_PAYLOADS, path=("decision", "action")),
    "result": only_with(_PAYLOADS, path=("actionOutcome", "result")),
}

CONTROL: Final[Part] = {
    "pass": keep(),
    "completed": keep(),
    "blocked": keep(),
    "reason": text(),
    "score": keep(),
    "stepCount": count("steps"),
    "wallMs": keep(),
    "spentCostUsd": keep(),
    "failureClass": keep(),
    "stoppedBy": keep(),
    "stopCause": keep(),
    "runId": keep(),
    "runtimeErrorCount": count("runtimeErrors"),
    "finalEvals": each(EVAL),
}

ERROR: Final[Part] = {
    "kind": keep(),
    "message": text(),
    "status": keep(),
    "body": only_with(_PAYLOADS),
}

_QUESTIONS: Final[Part] = {"questions": each(QUESTION)}
_PLANS: Final[Part] = {"acquisitionPlans": each(PLAN)}
_TOOL: Final[Part] = {"toolName": keep(), "toolCallId": keep()}
_DELTA: Final[Part] = {"text": text(*DELTAS_WITH)}
_BACKEND: Final[Part] = {"backend": keep()}

EVENTS: Final[Mapping[str, Part]] = {
    "readiness_end": {"knowledge": part(REPORT), "decision": part(DECISION)},
    "questions_start": _QUESTIONS,
    "questions_end": {**_QUESTIONS, "userAnswers": values_with("include_user_answers")},
    "acquisition_start": _PLANS,
    "acquisition_end": {
        **_PLANS,
        "acquiredEvidenceCount": count("acquiredEvidenceIds"),
        "acquiredEvidenceIds": only_with(_IDS),
    },
    "control_start": {"knowledge": part(REPORT)},
    "control_step": {"step": part(STEP)},
    "control_end": {"control": part(CONTROL)},
    "backend_start": _BACKEND,
    "backend_end": _BACKEND,
    "backend_error": {
        **_BACKEND,
        "message": text(),
        "recoverable": keep(),
        "error": part({"kind": keep(), "status": keep()}),
    },
    "text_delta": _DELTA,
    "reasoning_delta": _DELTA,
    "tool_call": {**_TOOL, "args": only_with(_PAYLOADS)},
    "tool_result": {**_TOOL, "result": only_with(_PAYLOADS)},
    "llm_call": {
        "model": keep(),
        "tokensIn": keep(),
        "tokensOut": keep(),
        "costUsd": keep(),
        "latencyMs": keep(),
        "finishReason": keep(),
        "tokensCached": keep(),
        "tokensReasoning": keep(),
        "tokensCacheWritten": keep(),
        "provider": keep(),
        "requestId": keep(),
    },
    "artifact": {
        "artifactId": keep(),
        "name": keep(),
        "mimeType": keep(),
        "uri": only_with(_IDS),
        "content": only_with(_PAYLOADS),
        "metadata": only_with(_METADATA),
    },
    "proposal_created": {
        "proposalId": keep(),
        "status": keep(),
        "title": only_with(_PAYLOADS),
        "content": only_with(_PAYLOADS),
    },
    "task_end": {"status": keep(), "reason": text()},
    "final": {
        "status": keep(),
        "reason": text(),
        "text": text_with(*DELTAS_WITH),
        "error": part(ERROR),
        "metadata": only_with(_METADATA),
    },
}
"""For each type of event, what leaves beside type, task, session and time."""

_COMMON: Final[Part] = {
    "type": keep(),
    "task": part(TASK),
    "session": part(SESSION),
    "timestamp": keep(),
}


def sanitize_event(
    event: object, options: RuntimeTelemetryOptions | None = None
) -> dict[str, JsonValue]:
    """Return what may leave of an event of an agent task or a stream; None: `telemetry_log()`.

    `event` is an event record, or its wire form. Raises UsageError for what is no event.
    """
    record = _record(event, "an event")
    if not isinstance(record.get("type"), str):
        raise UsageError(f"the event has no type: {type(event).__qualname__}")
    rules = {**_COMMON, **EVENTS.get(record["type"], {})}
    return _left(rules, record, options)


def sanitize_agent_runtime_event(
    event: object, options: RuntimeTelemetryOptions | None = None
) -> SanitizedRuntimeEvent:
    """Return what may leave of an event of an agent task, as `sanitize_event` does, typed."""
    return cast("SanitizedRuntimeEvent", sanitize_event(event, options))


def sanitize_runtime_stream_event(
    event: object, options: RuntimeTelemetryOptions | None = None
) -> SanitizedStreamEvent:
    """Return what may leave of an event of a stream, as `sanitize_event` does, typed."""
    return cast("SanitizedStreamEvent", sanitize_event(event, options))


def sanitize_knowledge_readiness_report(
    report: object, options: RuntimeTelemetryOptions | None = None
) -> SanitizedKnowledgeReadinessReport:
    """Return what may leave of a readiness report, given as a record or in wire form."""
    kept = _left(REPORT, _record(report, "a report"), options)
    return cast("SanitizedKnowledgeReadinessReport", kept)


def _record(value: object, name: str) -> dict[str, JsonValue]:
    wire = to_wire(value)
    if not isinstance(wire, dict):
        raise UsageError(f"{name} is a record, not a {type(value).__qualname__}")
    return cast("dict[str, JsonValue]", wire)


def _left(
    rules: Part, record: dict[str, JsonValue], options: RuntimeTelemetryOptions | None
) -> dict[str, JsonValue]:
    kept = sanitize_part(rules, record, options or telemetry_log())
    return cast("dict[str, JsonValue]", mask_credentials(kept))
