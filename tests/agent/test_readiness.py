"""What a task knows is scored against what it needs, and decides whether it may go on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, cast

import pytest

from perdure.agent.gaps import user_questions_for_knowledge_gaps
from perdure.agent.knowledge import KnowledgeReadinessReport, KnowledgeRequirement
from perdure.agent.readiness import Known, decide_knowledge_readiness, score_knowledge_readiness
from perdure.core.wire import from_wire, to_wire
from perdure.errors import ValidationError

NOW_MS = 1_800_000_000_000
PAST = "2020-01-01T00:00:00.000Z"


class Vector(NamedTuple):
    requirements: list[KnowledgeRequirement]
    score: float
    blocking: list[str]
    severity: str
    action: str
    status: str


A = KnowledgeRequirement(
    "A",
    "where the code is",
    importance="blocking",
    acquisition_mode="inspect_repo",
    fallback_policy="block",
    confidence_needed=0.8,
    current_confidence=0.4,
)
B = KnowledgeRequirement(
    "B", "taste", importance="low", confidence_needed=0.5, current_confidence=0.5
)
C = KnowledgeRequirement(
    "C",
    "the market",
    acquisition_mode="search_web",
    fallback_policy="continue_with_caveat",
    sensitivity="public",
    confidence_needed=0.8,
    current_confidence=0.2,
)
D = KnowledgeRequirement(
    "D",
    "the history",
    importance="high",
    acquisition_mode="infer_low_confidence",
    fallback_policy="use_default",
    confidence_needed=0.9,
    current_confidence=0.72,
)
E = KnowledgeRequirement(
    "E", "the key", importance="low", sensitivity="secret", confidence_needed=0.5
)
F = KnowledgeRequirement(
    "F",
    "the weather",
    importance="low",
    acquisition_mode="search_web",
    fallback_policy="continue_with_caveat",
    sensitivity="public",
    confidence_needed=0,
    valid_until=PAST,
)
G = KnowledgeRequirement(
    "G",
    "the weather",
    importance="low",
    acquisition_mode="query_connector",
    fallback_policy="continue_with_caveat",
    sensitivity="public",
    confidence_needed=0,
    valid_until="soon",
)

VECTORS = {
    "nothing is needed": Vector([], 1, [], "info", "run_agent", "ready"),
    "a blocking gap": Vector([A, B], 0.5556, ["A"], "critical", "inspect_repo", "blocked"),
    "a short score": Vector([C], 0.25, [], "info", "collect_web_data", "caveat"),
    "a high gap": Vector([D], 0.8, [], "warning", "build_domain_wiki", "ready"),
    "a secret": Vector([E], 0, ["E"], "critical", "ask_user", "blocked"),
    "stale": Vector([F], 0, [], "info", "collect_web_data", "caveat"),
    "no moment": Vector([G], 0, [], "info", "query_connectors", "caveat"),
}


def scored(*requirements: KnowledgeRequirement) -> KnowledgeReadinessReport:
    return score_knowledge_readiness("task", requirements, now_ms=NOW_MS)


@pytest.mark.parametrize("vector", VECTORS.values(), ids=list(VECTORS))
def test_appendix_b_the_vectors_of_the_contract_hold(vector: Vector) -> None:
    report = scored(*vector.requirements)
    decision = decide_knowledge_readiness(report)
    assert round(report.readiness_score, 4) == vector.score
    assert [each.id for each in report.blocking_missing_requirements] == vector.blocking
    assert report.severity == vector.severity
    assert report.recommended_action == vector.action
    assert decision.status == vector.status
    assert decision.passed == (vector.status == "ready")
    assert list(decision.blocking_gap_ids) == vector.blocking


def test_appendix_b_a_secret_is_asked_for_as_a_credential() -> None:
    questions = user_questions_for_knowledge_gaps(scored(E).blocking_missing_requirements)
    assert [question.answer_type for question in questions] == ["credential"]


def test_4_2_r1_confidences_are_clamped_and_what_is_no_number_counts_as_zero() -> None:
    odd = KnowledgeRequirement(
        "x", "x", confidence_needed=float("nan"), current_confidence=-3, evidence_ids=("e", "e")
    )
    requirement = scored(odd).bundle.requirements[0]
    assert (requirement.confidence_needed, requirement.current_confidence) == (0, 0)
    assert requirement.evidence_ids == ("e",)


def test_4_2_r2_knowledge_is_stale_from_the_moment_on() -> None:
    until = "2027-01-15T08:00:00.000Z"
    fresh = KnowledgeRequirement("x", "x", current_confidence=1, valid_until=until)
    assert scored(fresh).readiness_score == 0  # NOW_MS is that very moment.
    before = score_knowledge_readiness("task", [fresh], now_ms=NOW_MS - 1)
    assert before.readiness_score == 1


def test_4_2_r2_a_moment_without_a_zone_is_utc() -> None:
    fresh = KnowledgeRequirement("x", "x", current_confidence=1, valid_until="2027-01-15T08:00:01")
    assert scored(fresh).readiness_score == 1


@pytest.mark.parametrize(
    ("modes", "action"),
    [
        (("query_connector", "search_web"), "query_connectors"),
        (("run_command", "search_web"), "inspect_repo"),
        (("not_available", "search_web"), "collect_web_data"),
        (("not_available", "infer_low_confidence"), "abort_or_rescope"),
        (("infer_low_confidence",), "continue_with_caveat"),
    ],
)
def test_4_2_r7_the_first_way_that_closes_a_gap_is_recommended(
    modes: tuple[str, ...], action: str
) -> None:
    gaps = [
        from_wire(
            KnowledgeRequirement,
            {
                "id": mode,
                "description": mode,
                "acquisitionMode": mode,
                "fallbackPolicy": "use_default",
            },
        )
        for mode in modes
    ]
    assert scored(*gaps).recommended_action == action


def test_4_2_r7_blocking_gaps_are_looked_at_alone_and_a_policy_asks_as_a_mode_does() -> None:
    asked = replace(C, id="asked", fallback_policy="ask")
    assert scored(asked).recommended_action == "ask_user"
    # What does not block says nothing where something does.
    assert scored(A, asked).recommended_action == "inspect_repo"
    for modes in (("not_available", "search_web"), ("search_web", "query_connector")):
        gaps = [replace(C, id=mode, acquisition_mode=cast("Any", mode)) for mode in modes]
        closed = {"search_web": "collect_web_data", "query_connector": "query_connectors"}
        assert scored(*gaps).recommended_action == closed[modes[-1]]


def test_4_2_r7_a_wiki_is_built_for_what_matters_and_does_not_block() -> None:
    assert scored(D).recommended_action == "build_domain_wiki"
    blocking = replace(D, fallback_policy="block")
    assert scored(blocking).recommended_action == "continue_with_caveat"
    assert scored(blocking, replace(D, id="D2")).recommended_action == "build_domain_wiki"


def test_4_2_r9_the_bundle_has_the_evidence_of_the_call_first_and_each_once() -> None:
    requirement = KnowledgeRequirement("x", "x", evidence_ids=("b", "c"))
    known = Known(evidence_ids=("a", "b"), claim_ids=("k",), metadata={"m": 1})
    report = score_knowledge_readiness("task", [requirement], known=known, now_ms=NOW_MS)
    assert report.bundle.evidence_ids == ("a", "b", "c")
    assert report.bundle.claim_ids == ("k",)
    assert report.bundle.metadata == {"m": 1}


def test_4_5_r3_the_reason_of_a_caveat_names_both_numbers() -> None:
    decision = decide_knowledge_readiness(scored(C), minimum_score=0.5)
    assert "0.250" in decision.reason
    assert "0.500" in decision.reason
    assert decision.non_blocking_gap_ids == ("C",)


def test_4_2_r1_a_confidence_that_no_float_can_hold_is_clamped() -> None:
    sure = KnowledgeRequirement("x", "x", current_confidence=10**400)
    assert scored(sure).readiness_score == 1


@pytest.mark.parametrize(
    ("given", "culprit"),
    [
        ({"id": ""}, "id"),
        ({"description": None}, "description"),
        ({"importance": "urgent"}, "importance"),
        ({"fallback_policy": "wait"}, "fallback_policy"),
        ({"sensitivity": None}, "sensitivity"),
        ({"current_confidence": "0.5"}, "current_confidence"),
        ({"confidence_needed": True}, "confidence_needed"),
        ({"required_for": "planning"}, "required_for"),
        ({"evidence_ids": "e-1"}, "evidence_ids"),
        ({"valid_until": 1_800_000_000}, "valid_until"),
    ],
)
def test_4_1_a_requirement_names_what_of_it_cannot_be(given: Any, culprit: str) -> None:
    with pytest.raises(ValidationError, match=f"{culprit} of the requirement"):
        KnowledgeRequirement(**{"id": "x", "description": "the x", **given})


@pytest.mark.parametrize("score", [float("nan"), -0.1, 1.1, "1"])
def test_4_5_no_score_that_is_none_gets_past_the_gate(score: Any) -> None:
    with pytest.raises(ValidationError, match="readiness_score of the report on 'task'"):
        replace(scored(), readiness_score=score)


@pytest.mark.parametrize("minimum", [-0.1, 1.1, float("nan"), float("inf"), "0.7", None])
def test_4_5_r1_a_minimum_outside_0_to_1_is_refused(minimum: Any) -> None:
    with pytest.raises(ValidationError, match="minimum_score"):
        decide_knowledge_readiness(scored(), minimum_score=minimum)


def test_1_1_r4_a_report_comes_back_from_its_wire_form() -> None:
    report = scored(A, B, C, D, E, F, G)
    assert from_wire(KnowledgeReadinessReport, to_wire(report)) == report


@pytest.mark.parametrize(
    ("needed", "current", "until", "is_missing"),
    [
        (0.5, 0.5, None, False),
        (0.5, 0.49, None, True),
        (0.5, 1.0, PAST, True),
        (0, 0, None, False),
        (0, 0, "soon", True),
    ],
)
def test_4_2_r3_what_is_not_sure_enough_or_stale_is_missing(
    needed: float, current: float, until: str | None, is_missing: bool
) -> None:
    x = KnowledgeRequirement(
        "x", "x", confidence_needed=needed, current_confidence=current, valid_until=until
    )
    assert [each.id for each in scored(x).bundle.missing] == (["x"] if is_missing else [])


def test_4_2_r4_each_of_three_marks_blocks_alone_and_both_lists_keep_the_order() -> None:
    marks: list[dict[str, Any]] = [
        {"importance": "low"},
        {"importance": "blocking"},
        {"importance": "high"},
        {"fallback_policy": "block"},
        {"fallback_policy": "use_default"},
        {"sensitivity": "secret"},
        {"sensitivity": "public"},
    ]
    needs = [KnowledgeRequirement(str(at), "x", **mark) for at, mark in enumerate(marks)]
    report = scored(*needs)
    assert [each.id for each in report.blocking_missing_requirements] == ["1", "3", "5"]
    assert [each.id for each in report.non_blocking_gaps] == ["0", "2", "4", "6"]
    assert [each.id for each in report.bundle.missing] == [str(at) for at in range(len(marks))]
    known = [replace(each, current_confidence=1) for each in needs]
    assert scored(*known).blocking_missing_requirements == ()


def test_4_2_r5_who_needs_nothing_is_ready() -> None:
    assert scored().readiness_score == 1


def test_4_5_r3_a_score_that_reaches_the_minimum_is_enough() -> None:
    report = scored(replace(C, confidence_needed=0.8, current_confidence=0.4))
    assert report.readiness_score == 0.5
    assert decide_knowledge_readiness(report, minimum_score=0.5).status == "ready"
    above = decide_knowledge_readiness(report, minimum_score=0.500_001)
    assert (above.status, above.passed) == ("caveat", False)


def test_4_2_r5_the_score_weighs_by_importance_and_caps_each_at_one() -> None:
    def part(importance: Any, current: float, needed: float = 0.8) -> KnowledgeRequirement:
        return KnowledgeRequirement(
            f"{importance} {current} {needed}",
            "x",
            importance=importance,
            confidence_needed=needed,
            current_confidence=current,
        )

    for importance, weight in (("blocking", 8), ("high", 4), ("medium", 2), ("low", 1)):
        report = scored(part(importance, 0.2), part("low", 1))
        assert report.readiness_score == pytest.approx((weight * 0.25 + 1) / (weight + 1))
    # More than enough counts as enough, nothing needed as known, and what is stale as nothing.
    assert scored(part("low", 1), part("low", 0, needed=0)).readiness_score == 1
    stale = replace(part("low", 1), valid_until=PAST)
    assert scored(stale, part("low", 0.4)).readiness_score == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("gaps", "severity"),
    [
        ((), "info"),
        ((C,), "info"),
        ((C, D), "warning"),
        ((replace(D, current_confidence=0.9), C), "info"),
        ((D, A), "critical"),
    ],
)
def test_4_2_r6_the_severity_is_that_of_the_worst_gap(
    gaps: tuple[KnowledgeRequirement, ...], severity: str
) -> None:
    assert scored(*gaps).severity == severity


def test_4_2_r8_the_reason_counts_the_gaps_that_matter() -> None:
    assert scored(A, replace(A, id="A2"), C).reason.startswith("2 blocking gaps ")
    assert scored(C, D, replace(C, id="C2")).reason.startswith("3 gaps ")
    assert scored(D).reason.startswith("1 gap ")
    assert scored(B).reason == scored().reason


@pytest.mark.parametrize(
    ("needs", "status"), [([A, C], "blocked"), ([C], "caveat"), ([B], "ready")]
)
def test_4_5_r2_r4_r5_a_decision_says_what_the_report_says(
    needs: list[KnowledgeRequirement], status: str
) -> None:
    report = scored(*needs)
    decision = decide_knowledge_readiness(report)
    assert (decision.status, decision.passed) == (status, status == "ready")
    assert (decision.reason == report.reason) == (status != "caveat")
    for name in ("readiness_score", "recommended_action", "severity"):
        assert getattr(decision, name) == getattr(report, name)
    assert decision.blocking_gap_ids == tuple(
        each.id for each in report.blocking_missing_requirements
    )
    assert decision.non_blocking_gap_ids == tuple(each.id for each in report.non_blocking_gaps)
