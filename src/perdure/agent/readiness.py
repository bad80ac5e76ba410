"""Readiness: score what a task knows against what it needs, and decide whether it may go on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, NamedTuple

from perdure.agent.knowledge import (
    Answer,
    KnowledgeBundle,
    KnowledgeReadinessDecision,
    KnowledgeReadinessReport,
    KnowledgeRequirement,
    RecommendedAction,
    Severity,
)
from perdure.core.effects import system_clock
from perdure.core.finite import is_fraction
from perdure.core.records import JsonValue
from perdure.errors import ValidationError

MINIMUM_SCORE: Final = 0.7
"""A task whose readiness scores less goes on only with a caveat, unless told otherwise."""

_WEIGHTS: Final[Mapping[str, int]] = {"blocking": 8, "high": 4, "medium": 2, "low": 1}


class Known(NamedTuple):
    """What is known beside the requirements; it goes into the bundle of the report."""

    evidence_ids: Sequence[str] = ()
    claim_ids: Sequence[str] = ()
    wiki_page_ids: Sequence[str] = ()
    user_answers: Mapping[str, Answer] | None = None
    metadata: Mapping[str, JsonValue] | None = None


def score_knowledge_readiness(
    task_id: str,
    requirements: Iterable[KnowledgeRequirement],
    *,
    known: Known | None = None,
    now_ms: int | None = None,
) -> KnowledgeReadinessReport:
    """Return how ready a task with these requirements is at `now_ms` (None: now).

    A requirement is missing if its confidence is below the one needed, or if it is stale. A
    missing one blocks if its importance is `blocking`, its fallback `block` or it is secret. The
    score is the mean of confidence over need, weighted by importance (8, 4, 2, 1).
    """
    moment = system_clock() if now_ms is None else now_ms
    known = known or Known()
    normal = tuple(_normalised(requirement) for requirement in requirements)
    missing = tuple(each for each in normal if _is_missing(each, moment))
    blocking = tuple(each for each in missing if _blocks(each))
    gaps = tuple(each for each in missing if not _blocks(each))
    score = _score(normal, moment)
    own = (identifier for each in normal for identifier in each.evidence_ids)
    bundle = KnowledgeBundle(
        task_id=task_id,
        requirements=normal,
        evidence_ids=unique((*known.evidence_ids, *own)),
        claim_ids=tuple(known.claim_ids),
        wiki_page_ids=tuple(known.wiki_page_ids),
        user_answers=known.user_answers or {},
        missing=missing,
        readiness_score=score,
        metadata=known.metadata,
    )
    return KnowledgeReadinessReport(
        task_id=task_id,
        readiness_score=score,
        blocking_missing_requirements=blocking,
        non_blocking_gaps=gaps,
        recommended_action=_recommended_action(blocking, gaps),
        bundle=bundle,
        severity=_severity(blocking, gaps),
        reason=_reason(len(blocking), len(gaps)),
    )


def decide_knowledge_readiness(
    report: KnowledgeReadinessReport, *, minimum_score: float = MINIMUM_SCORE
) -> KnowledgeReadinessDecision:
    """Return whether a task with this report may go on.

    A blocking gap: `blocked`. Else a score below `minimum_score`: `caveat`. Else `ready`. Raises
    ValidationError for a minimum that is not from 0 to 1.
    """
    check_minimum_score(minimum_score)
    is_blocked = bool(report.blocking_missing_requirements)
    is_short = report.readiness_score < minimum_score
    reason = report.reason
    if is_short and not is_blocked:
        reason = (
            f"the readiness score {report.readiness_score:.3f} is below the minimum "
            f"{minimum_score:.3f}"
        )
    return KnowledgeReadinessDecision(
        passed=not is_blocked and not is_short,
        status="blocked" if is_blocked else "caveat" if is_short else "ready",
        reason=reason,
        readiness_score=report.readiness_score,
        recommended_action=report.recommended_action,
        severity=report.severity,
        blocking_gap_ids=tuple(each.id for each in report.blocking_missing_requirements),
        non_blocking_gap_ids=tuple(each.id for each in report.non_blocking_gaps),
    )


def check_minimum_score(minimum_score: float) -> None:
    """Raise ValidationError unless `minimum_score` is a number from 0 to 1."""
    if not is_fraction(minimum_score):
        raise ValidationError(f"minimum_score must be from 0 to 1, not {minimum_score!r:.40}")


def unique(identifiers: Iterable[str]) -> tuple[str, ...]:
    """Return the ids without repetitions, in the order of their first appearance."""
    return tuple(dict.fromkeys(identifiers))


def _normalised(requirement: KnowledgeRequirement) -> KnowledgeRequirement:
    return replace(
        requirement,
        confidence_needed=_fraction(requirement.confidence_needed),
        current_confidence=_fraction(requirement.current_confidence),
        evidence_ids=unique(requirement.evidence_ids),
    )


def _fraction(value: float) -> float:
    return min(1.0, max(0.0, value)) if abs(value) < math.inf else 0.0


def _is_missing(requirement: KnowledgeRequirement, now_ms: int) -> bool:
    short = requirement.current_confidence < requirement.confidence_needed
    return short or _is_expired(requirement, now_ms)


def _is_expired(requirement: KnowledgeRequirement, now_ms: int) -> bool:
    if requirement.valid_until is None:
        return False
    try:
        moment = datetime.fromisoformat(requirement.valid_until)
    except ValueError:
        return True
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp() * 1_000 <= now_ms


def _blocks(requirement: KnowledgeRequirement) -> bool:
    return (
        requirement.importance == "blocking"
        or requirement.fallback_policy == "block"
        or requirement.sensitivity == "secret"
    )


def _score(requirements: Sequence[KnowledgeRequirement], now_ms: int) -> float:
    if not requirements:
        return 1.0
    weights = [_WEIGHTS[each.importance] for each in requirements]
    parts = [_worth(each, now_ms) for each in requirements]
    total = math.fsum(weight * part for weight, part in zip(weights, parts, strict=True))
    return _fraction(total / sum(weights))


def _worth(requirement: KnowledgeRequirement, now_ms: int) -> float:
    if _is_expired(requirement, now_ms):
        return 0.0
    if requirement.confidence_needed <= 0:
        return 1.0
    return min(1.0, requirement.current_confidence / requirement.confidence_needed)


def _severity(
    blocking: Sequence[KnowledgeRequirement], gaps: Sequence[KnowledgeRequirement]
) -> Severity:
    if blocking:
        return "critical"
    return "warning" if any(gap.importance == "high" for gap in gaps) else "info"


def _recommended_action(
    blocking: Sequence[KnowledgeRequirement], gaps: Sequence[KnowledgeRequirement]
) -> RecommendedAction:
    """Return what closes the gaps that matter most, the ways that cost least first."""
    chosen = blocking or gaps
    if not chosen:
        return "run_agent"
    modes = {gap.acquisition_mode for gap in chosen}
    if "ask_user" in modes or any(gap.fallback_policy == "ask" for gap in chosen):
        return "ask_user"
    if "query_connector" in modes:
        return "query_connectors"
    if modes & {"inspect_repo", "run_command"}:
        return "inspect_repo"
    if "search_web" in modes:
        return "collect_web_data"
    if "not_available" in modes:
        return "abort_or_rescope"
    if any(gap.importance == "high" for gap in gaps):
        return "build_domain_wiki"
    return "continue_with_caveat"


def _reason(blocking: int, gaps: int) -> str:
    if blocking:
        return f"{blocking} blocking {'gap' if blocking == 1 else 'gaps'} in what must be known"
    if gaps:
        return f"{gaps} {'gap' if gaps == 1 else 'gaps'} that need not block"
    return "all that must be known is known"
