"""Evals: what a check of the state came to, and the score of several of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from perdure.agent.knowledge import (
    KnowledgeReadinessDecision,
    KnowledgeReadinessReport,
    Severity,
)
from perdure.agent.readiness import MINIMUM_SCORE, decide_knowledge_readiness
from perdure.core.finite import is_finite
from perdure.core.records import JsonValue
from perdure.core.wire import to_wire
from perdure.core.wording import error_text
from perdure.errors import ValidationError
from perdure.observe.credentials import mask_text

logger = logging.getLogger("perdure.agent")

KNOWLEDGE_READY: Final = "knowledge-ready"
"""The id of the eval that tells of readiness; it comes first among the evals of a task."""


@dataclass(frozen=True, slots=True)
class ControlEvalResult:
    """What one check came to; `score` is from 0 (worst) to 1 (best).

    `objective`: a program measured it; False: somebody judged. An absent severity is harmless.

    Raises ValidationError for a score that is no finite number, and for an unknown severity:
    neither may pass for harmless.
    """

    id: str
    passed: bool
    score: float | None = None
    severity: Severity | None = None
    detail: str | None = None
    evidence: str | None = None
    objective: bool | None = None
    metadata: Mapping[str, JsonValue] | None = None

    def __post_init__(self) -> None:
        score, severity = self.score, self.severity
        if score is not None and not is_finite(score):
            raise ValidationError(
                f"score of the eval {self.id!r:.60} must be a finite number, not {score!r:.40}"
            )
        if severity is not None and severity not in get_args(Severity):
            raise ValidationError(
                f"severity of the eval {self.id!r:.60} must be one of "
                f"{', '.join(get_args(Severity))}, not {severity!r:.40}"
            )


def objective_eval(
    id: str,
    passed: bool,
    *,
    score: float | None = None,
    severity: Severity | None = None,
    detail: str | None = None,
    evidence: str | None = None,
    metadata: Mapping[str, JsonValue] | None = None,
) -> ControlEvalResult:
    """Return the result of a check that a program measured."""
    return ControlEvalResult(id, passed, score, severity, detail, evidence, True, metadata)


def subjective_eval(
    id: str,
    passed: bool,
    *,
    score: float | None = None,
    severity: Severity | None = None,
    detail: str | None = None,
    evidence: str | None = None,
    metadata: Mapping[str, JsonValue] | None = None,
) -> ControlEvalResult:
    """Return the result of a check that somebody (or a model) judged."""
    return ControlEvalResult(id, passed, score, severity, detail, evidence, False, metadata)


Emit = Callable[[str, dict[str, JsonValue]], Any]
"""Is given the kind and the payload of an event for a trace; a plain function."""


def blocking_knowledge_eval(
    report: KnowledgeReadinessReport,
    *,
    id: str = KNOWLEDGE_READY,
    minimum_score: float = MINIMUM_SCORE,
    emit: Emit | None = None,
) -> ControlEvalResult:
    """Return a readiness report as an eval: passed without blocking gaps from `minimum_score`.

    Its metadata has the report in wire form, as `knowledgeReadiness`. `emit`, a plain function,
    is given the kind and the payload of an event for a trace (`custom`, `readiness_scored`); if
    it fails, only the log tells.
    """
    decision = decide_knowledge_readiness(report, minimum_score=minimum_score)
    if emit is not None:
        try:
            emit("custom", _scored(decision, report.task_id, minimum_score))
        except Exception as error:
            why = mask_text(error_text(error))
            logger.warning("the readiness of a task could not be traced: %s", why)
    return objective_eval(
        id,
        decision.passed,
        score=report.readiness_score,
        severity="info" if decision.passed else report.severity,
        detail=report.reason,
        evidence=", ".join(decision.blocking_gap_ids) or None,
        metadata={"knowledgeReadiness": to_wire(report)},
    )


def _scored(
    decision: KnowledgeReadinessDecision, task_id: str, minimum_score: float
) -> dict[str, JsonValue]:
    return {
        "kind": "readiness_scored",
        "taskId": task_id,
        "passed": decision.passed,
        "readinessScore": decision.readiness_score,
        "minimumScore": minimum_score,
        "blockingRequirementIds": list(decision.blocking_gap_ids),
        "nonBlockingRequirementIds": list(decision.non_blocking_gap_ids),
        "recommendedAction": decision.recommended_action,
        "severity": decision.severity,
        "reason": decision.reason,
    }


def mean_score(evals: Iterable[ControlEvalResult]) -> float | None:
    """Return the mean of the scores, rounded half up to 3 decimals; None if there is none."""
    scores = [each.score for each in evals if each.score is not None]
    if not scores:
        return None
    return math.floor(math.fsum(scores) / len(scores) * 1_000 + 0.5) / 1_000


def are_harmless(evals: Sequence[ControlEvalResult]) -> bool:
    """Return whether every eval passed, or failed with no more than a warning."""
    return all(each.passed or each.severity not in ("error", "critical") for each in evals)
