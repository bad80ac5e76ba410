"""Gaps become questions and plans, and answers close them."""

from __future__ import annotations

import pytest

from perdure.agent.gaps import (
    acquisition_plans_for_knowledge_gaps,
    refreshed_report,
    user_questions_for_knowledge_gaps,
    wrap_answers,
)
from perdure.agent.knowledge import AcquisitionMode, FallbackPolicy, KnowledgeRequirement
from perdure.agent.readiness import score_knowledge_readiness
from perdure.core.secret import Secret
from perdure.errors import UsageError

NOW_MS = 1_800_000_000_000


def gap(
    id: str, mode: AcquisitionMode = "ask_user", fallback: FallbackPolicy = "block"
) -> KnowledgeRequirement:
    return KnowledgeRequirement(
        id, f"the {id}", acquisition_mode=mode, fallback_policy=fallback, importance="high"
    )


def test_4_3_r1_one_question_for_each_gap_that_the_user_can_close() -> None:
    gaps = [gap("a"), gap("b", "search_web"), gap("c", "search_web", "ask")]
    questions = user_questions_for_knowledge_gaps(gaps)
    assert [question.id for question in questions] == ["question_a", "question_c"]
    assert "the a" in questions[0].question
    assert "the task" in questions[0].reason
    assert questions[0].options is None


def test_4_3_r1_each_fallback_has_its_own_impact() -> None:
    fallbacks: tuple[FallbackPolicy, ...] = ("block", "ask", "continue_with_caveat", "use_default")
    questions = user_questions_for_knowledge_gaps(
        [gap(fallback, "ask_user", fallback) for fallback in fallbacks]
    )
    assert len({question.impact_if_unknown for question in questions}) == 4


def test_4_3_r2_one_plan_for_each_way_in_order_of_appearance() -> None:
    low = KnowledgeRequirement("z", "z", acquisition_mode="search_web", importance="low")
    gaps = [low, gap("a"), gap("b", "search_web"), gap("c", "not_available")]
    gaps.append(gap("d", "infer_low_confidence"))
    search, ask = acquisition_plans_for_knowledge_gaps(gaps)
    assert (search.id, search.mode, search.requirement_ids) == (
        "acquire_search_web",
        "search_web",
        ("z", "b"),
    )
    assert search.priority == "high"
    assert search.questions is None
    assert [question.id for question in ask.questions or ()] == ["question_a"]


def test_bb_3_the_answer_to_a_question_for_a_credential_becomes_a_secret() -> None:
    secret = KnowledgeRequirement("k", "the key", sensitivity="secret")
    questions = user_questions_for_knowledge_gaps([secret, gap("a")])
    answers = wrap_answers({"question_k": "open sesame", "question_a": "blue"}, questions)
    assert answers == {"question_k": Secret("open sesame"), "question_a": "blue"}


def test_bb_7_an_answer_that_was_not_asked_for_is_refused() -> None:
    with pytest.raises(UsageError, match="question_b"):
        wrap_answers({"question_b": "x"}, user_questions_for_knowledge_gaps([gap("a")]))


def test_bb_7_answers_and_evidence_close_the_gaps_they_are_about() -> None:
    proven = KnowledgeRequirement("p", "p", evidence_ids=("e1", "e2"), fallback_policy="block")
    requirements = [gap("a"), gap("b"), proven]
    report = score_knowledge_readiness("t", requirements, now_ms=NOW_MS)
    questions = user_questions_for_knowledge_gaps(report.blocking_missing_requirements)
    after = refreshed_report(
        report,
        questions=questions,
        answers={"question_a": "blue", "question_b": "  "},
        evidence_ids=["e1", "e2", "e3"],
        now_ms=NOW_MS,
    )
    assert [each.id for each in after.blocking_missing_requirements] == ["b"]
    assert after.bundle.evidence_ids == ("e1", "e2", "e3")
    assert after.bundle.user_answers == {"question_a": "blue", "question_b": "  "}
    assert after.readiness_score > report.readiness_score


def test_bb_7_an_answer_freshens_what_was_stale() -> None:
    stale = KnowledgeRequirement(
        "s", "s", current_confidence=1, valid_until="2020-01-01T00:00:00.000Z"
    )
    report = score_knowledge_readiness("t", [stale], now_ms=NOW_MS)
    questions = user_questions_for_knowledge_gaps([stale])
    answers = {"question_s": "still so"}
    after = refreshed_report(
        report, questions=questions, answers=answers, evidence_ids=(), now_ms=NOW_MS
    )
    assert (report.readiness_score, after.readiness_score) == (0, 1)
