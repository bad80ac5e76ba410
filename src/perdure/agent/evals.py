"""Evals: what a check of the state came to, and the score of several of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from perdure.agent.knowledge import KnowledgeReadinessReport, Severity
from perdure.agent.readiness import MINIMUM_SCORE, decide_knowledge_readiness
from perdure.core.records import JsonValue
from perdure.core.wire import to_wire

KNOWLEDGE_READY: Final = "knowledge-ready"
"""The id of the eval that tells of readiness; it comes first among the evals of a task."""


@dataclass(frozen=True, slots=True)
class ControlEvalResult:
    """What one check came to; `score` is from 0 (worst) to 1 (best).

    `objective`: a program measured it; False: somebody judged. An absent severity is harmless.
    """

    id: str
    passed: bool
    score: float | None = None
    severity: Severity | None = None
    detail: str | None = None
    evidence: str | None = None
    objective: bool | None = None
    metadata: Mapping[str, JsonValue] | None = None


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


def blocking_knowledge_eval(
    report: KnowledgeReadinessReport,
    *,
    id: str = KNOWLEDGE_READY,
    minimum_score: float = MINIMUM_SCORE,
) -> ControlEvalResult:
    """Return a readiness report as an eval: passed without blocking gaps from `minimum_score`.

    Its metadata has the report in wire form, as `knowledgeReadiness`.
    """
    decision = decide_knowledge_readiness(report, minimum_score=minimum_score)
    return objective_eval(
        id,
        decision.passed,
        score=report.readiness_score,
        severity="info" if decision.passed else report.severity,
        detail=report.reason,
        evidence=", ".join(decision.blocking_gap_ids) or None,
        metadata={"knowledgeReadiness": to_wire(report)},
    )


def mean_score(evals: Iterable[ControlEvalResult]) -> float | None:
    """Return the mean of the scores, rounded half up to 3 decimals; None if there is none."""
    scores = [each.score for each in evals if each.score is not None]
    if not scores:
        return None
    return math.floor(math.fsum(scores) / len(scores) * 1_000 + 0.5) / 1_000


def are_harmless(evals: Sequence[ControlEvalResult]) -> bool:
    """Return whether every eval passed, or failed with no more than a warning."""
    return all(each.passed or each.severity not in ("error", "critical") for each in evals)
