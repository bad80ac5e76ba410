"""From gaps to what closes them: questions to the user, plans to acquire, and a new report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, cast

from perdure.agent.knowledge import (
    Answer,
    DataAcquisitionPlan,
    FallbackPolicy,
    KnowledgeReadinessReport,
    KnowledgeRequirement,
    PlanMode,
    UserQuestion,
)
from perdure.agent.readiness import Known, score_knowledge_readiness, unique
from perdure.core.secret import Secret
from perdure.errors import UsageError

_IMPACTS: Final[Mapping[FallbackPolicy, str]] = {
    "block": "The task cannot go on without it.",
    "ask": "The task would have to ask again, or guess.",
    "continue_with_caveat": "The task goes on, and its result says what it did not know.",
    "use_default": "The task goes on with a default.",
}
_RANKS: Final = ("blocking", "high", "medium", "low")
_WITHOUT_PLAN: Final = frozenset({"infer_low_confidence", "not_available"})


def user_questions_for_knowledge_gaps(
    gaps: Iterable[KnowledgeRequirement],
) -> tuple[UserQuestion, ...]:
    """Return one question for each gap that the user can close, in the order of the gaps."""
    return tuple(_question(gap) for gap in gaps if _can_be_asked(gap))


def acquisition_plans_for_knowledge_gaps(
    gaps: Iterable[KnowledgeRequirement],
) -> tuple[DataAcquisitionPlan, ...]:
    """Return one plan for each way in which gaps can be closed, in the order of appearance."""
    groups: dict[str, list[KnowledgeRequirement]] = {}
    for gap in gaps:
        if gap.acquisition_mode not in _WITHOUT_PLAN:
            groups.setdefault(gap.acquisition_mode, []).append(gap)
    return tuple(_plan(cast("PlanMode", mode), group) for mode, group in groups.items())


def wrap_answers(
    answers: Mapping[str, Answer], questions: Sequence[UserQuestion]
) -> dict[str, Answer]:
    """Return the answers by question id, those to questions for credentials as a Secret.

    Raises UsageError for an answer to a question that was not asked, and for what is no text.
    """
    asked = {question.id: question for question in questions}
    wrapped: dict[str, Answer] = {}
    for identifier, answer in answers.items():
        question = asked.get(identifier)
        if question is None:
            raise UsageError(f"there is an answer to {identifier!r:.80}, which was not asked")
        text = cast("object", answer)
        if not isinstance(text, str | Secret):
            raise UsageError(f"the answer to {identifier!r:.80} must be a str")
        if question.answer_type == "credential" and isinstance(text, str):
            text = Secret(text)
        wrapped[identifier] = text
    return wrapped


def refreshed_report(
    report: KnowledgeReadinessReport,
    *,
    questions: Sequence[UserQuestion],
    answers: Mapping[str, Answer],
    evidence_ids: Sequence[str],
    now_ms: int,
) -> KnowledgeReadinessReport:
    """Return the report that follows from answers and new evidence, for who has no better way.

    A requirement whose question was answered (by more than white space) has the confidence that
    it needs and is no longer stale; so has one all of whose evidence ids are among those given.
    """
    answered = {each.requirement_id for each in questions if _says_something(answers.get(each.id))}
    new = set(evidence_ids)
    requirements = [
        _closed(each) if each.id in answered or _is_proven(each, new) else each
        for each in report.bundle.requirements
    ]
    bundle = report.bundle
    known = Known(
        evidence_ids=unique((*bundle.evidence_ids, *evidence_ids)),
        claim_ids=bundle.claim_ids,
        wiki_page_ids=bundle.wiki_page_ids,
        user_answers={**(bundle.user_answers or {}), **answers},
        metadata=bundle.metadata,
    )
    return score_knowledge_readiness(report.task_id, requirements, known=known, now_ms=now_ms)


def _can_be_asked(gap: KnowledgeRequirement) -> bool:
    return gap.acquisition_mode == "ask_user" or gap.fallback_policy == "ask"


def _question(gap: KnowledgeRequirement) -> UserQuestion:
    return UserQuestion(
        id=f"question_{gap.id}",
        question=f"Please provide: {gap.description}",
        reason=f"Needed for {', '.join(gap.required_for) or 'the task'}.",
        requirement_id=gap.id,
        importance=gap.importance,
        answer_type="credential" if gap.sensitivity == "secret" else "free_text",
        impact_if_unknown=_IMPACTS[gap.fallback_policy],
    )


def _plan(mode: PlanMode, group: Sequence[KnowledgeRequirement]) -> DataAcquisitionPlan:
    questions = user_questions_for_knowledge_gaps(group) if mode == "ask_user" else None
    return DataAcquisitionPlan(
        id=f"acquire_{mode}",
        requirement_ids=tuple(gap.id for gap in group),
        mode=mode,
        description=f"Find out: {'; '.join(gap.description for gap in group)}",
        priority=min((gap.importance for gap in group), key=lambda rank: _RANKS.index(rank)),
        questions=questions,
    )


def _says_something(answer: Answer | None) -> bool:
    text = answer.reveal() if isinstance(answer, Secret) else answer
    return bool(text and text.strip())


def _is_proven(requirement: KnowledgeRequirement, new: set[str]) -> bool:
    return bool(requirement.evidence_ids) and new.issuperset(requirement.evidence_ids)


def _closed(requirement: KnowledgeRequirement) -> KnowledgeRequirement:
    confidence = max(requirement.current_confidence, requirement.confidence_needed)
    return replace(requirement, current_confidence=confidence, valid_until=None)
