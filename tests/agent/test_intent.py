"""classify_intent, rule by rule (14.2), and the vector of Appendix B."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from perdure.agent.intent import IntentEvaluation, SubagentMatcher, classify_intent
from perdure.agent.profile import AgentSubagentProfile
from perdure.errors import ValidationError

NDA = "Please review the NDA for section 7"


def listening(**matcher: Any) -> dict[str, Any]:
    """Return a subagent in wire form with one matcher."""
    return {"metadata": {"matcher": matcher}}


def test_appendix_b_a_pattern_beats_two_light_keywords() -> None:
    found = classify_intent(
        NDA,
        {
            "X": listening(keywords=["nda"]),
            "Y": listening(patterns=[r"section \d+"]),
            "Z": listening(keywords=["nda", "review"], weight=0.5),
            "W": listening(keywords=["invoice"], minScore=0),
        },
    )
    assert found.scores == {"X": 1, "Y": 1.5, "Z": 1, "W": 0}
    assert (found.id, found.score) == ("Y", 1.5)
    assert found.ranked == ("Y", "X", "Z", "W")
    assert found.margin == 0.5


def test_14_2_r1_what_is_skipped_or_filtered_out_is_not_evaluated() -> None:
    subagents = {id: listening(keywords=["nda"]) for id in ("a", "b", "c")}
    found = classify_intent(NDA, subagents, skip=["a"], filter=lambda _, id: id != "b")
    assert list(found.scores) == list(found.evaluated) == ["c"]
    assert found.id == "c"


def test_14_2_r1_the_filter_gets_the_subagent_as_it_was_given() -> None:
    subagent = AgentSubagentProfile(metadata={"matchers": SubagentMatcher(["nda"])})
    asked: list[Any] = []

    def noted(each: Any, id: str) -> bool:
        asked.append((each, id))
        return True

    found = classify_intent(NDA, {"a": subagent}, filter=noted)
    assert asked == [(subagent, "a")]
    assert found.subagent is subagent


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"matcher": {}},
        {"matcher": {"keywords": "nda"}},
        {"matcher": {"weight": 3}},
        {"matcher": {"minScore": True}},
        {"matchers": "nda"},
    ],
)
def test_14_2_r2_without_a_matcher_a_subagent_is_listed_and_never_chosen(metadata: Any) -> None:
    found = classify_intent(NDA, {"a": {"metadata": metadata}}, default_min_score=0)
    assert found.scores == {"a": 0}
    assert found.evaluated == {"a": IntentEvaluation(0, 0, 0)}
    assert found.id is None


def test_14_2_r2_a_number_as_the_score_makes_a_matcher() -> None:
    assert classify_intent(NDA, {"a": listening(minScore=0)}).id == "a"


def test_14_2_r3_bb_17_each_matcher_of_a_list_counts_by_its_own_weight() -> None:
    matchers = [
        SubagentMatcher(["nda"], weight=3),
        SubagentMatcher(["review"], ["section"], weight=0.5, min_score=4.5),
        SubagentMatcher(["please"], min_score=4),
    ]
    found = classify_intent(NDA, {"a": {"metadata": {"matchers": matchers}}})
    assert found.scores == {"a": 3 + 0.5 * (1 + 1.5) + 1}
    assert found.evaluated["a"] == IntentEvaluation(3, 1, 4)


def test_14_2_r3_the_default_score_applies_to_a_list_without_one() -> None:
    subagents = {"a": {"metadata": {"matchers": [{"keywords": ["nda"]}]}}}
    assert classify_intent(NDA, subagents, default_min_score=2).id is None
    assert classify_intent(NDA, subagents, default_min_score=1).id == "a"


def test_14_2_r4_keywords_are_found_in_any_case_and_inside_words() -> None:
    found = classify_intent("An AGENDA", {"a": listening(keywords=["Nda", "", "nda", "x"])})
    assert found.evaluated["a"].keyword_hits == 2


def test_14_2_r4_whole_words_are_found_as_words_only() -> None:
    subagents = {"a": listening(keywords=["nda", "c++"])}
    hits = [
        classify_intent(text, subagents, whole_words=True).evaluated["a"].keyword_hits
        for text in ("an agenda", "the NDA.", "is C++ old?", "c+++")
    ]
    assert hits == [0, 1, 1, 1]


def test_14_2_r5_a_pattern_counts_once_and_a_compiled_one_keeps_its_case() -> None:
    patterns = ["REVIEW|nda", re.compile("NDA"), re.compile("nda")]
    found = classify_intent(NDA, {"a": listening(patterns=patterns)})
    assert found.evaluated["a"].pattern_hits == 2
    assert found.score == 3


def test_14_2_r6_the_weight_counts_for_keywords_and_patterns() -> None:
    found = classify_intent(NDA, {"a": listening(keywords=["nda"], patterns=["for"], weight=2)})
    assert found.score == 1 * 2 + 1 * 1.5 * 2


def test_14_2_r7_bb_17_the_first_of_equals_is_chosen_and_has_no_margin() -> None:
    subagents = {"b": listening(keywords=["nda"]), "a": listening(keywords=["review"])}
    found = classify_intent(NDA, subagents)
    assert (found.id, found.ranked, found.margin) == ("b", ("b", "a"), 0)


def test_14_2_r7_who_misses_its_own_score_is_not_chosen_although_it_has_more() -> None:
    subagents = {
        "proud": listening(keywords=["nda", "review"], minScore=3),
        "b": listening(keywords=["nda"]),
    }
    assert classify_intent(NDA, subagents).id == "b"


def test_14_2_r8_if_none_is_chosen_the_scores_are_still_told() -> None:
    found = classify_intent("Hello", {"a": listening(keywords=["nda"])})
    assert (found.id, found.subagent, found.score, found.ranked) == (None, None, 0, ())
    assert found.scores == {"a": 0}
    assert found.evaluated == {"a": IntentEvaluation(0, 0, 1)}


@pytest.mark.parametrize(
    "matcher",
    [
        {"patterns": ["("]},
        {"patterns": [7]},
        {"patterns": [re.compile(b"x")]},
        {"keywords": [None]},
    ],
)
def test_14_2_a_matcher_that_cannot_be_read_names_its_subagent(matcher: Any) -> None:
    with pytest.raises(ValidationError, match="'legal'"):
        classify_intent(NDA, {"legal": listening(**matcher)})


@pytest.mark.parametrize(
    "matcher",
    [{"keywords": "nda"}, {"keywords": {"nda"}}, {"patterns": "nda"}, {"weight": math.inf}],
)
def test_14_2_r2_a_matcher_that_would_never_be_found_is_refused(matcher: Any) -> None:
    with pytest.raises(ValidationError, match=next(iter(matcher))):
        SubagentMatcher(**matcher)


def test_14_2_r1_to_skip_takes_ids_and_no_text_that_contains_them() -> None:
    with pytest.raises(ValidationError, match="skip"):
        classify_intent(NDA, {"legal": listening(keywords=["nda"])}, skip="paralegal")


def test_14_2_r6_a_weight_that_no_float_can_hold_counts_as_none() -> None:
    heavy = listening(keywords=["nda"], weight=10**400)
    assert classify_intent(NDA, {"legal": heavy}).score == 1


def test_14_2_what_is_no_profile_is_refused_by_name() -> None:
    subagents: Any = {"legal": "nda"}
    with pytest.raises(ValidationError, match="'legal'"):
        classify_intent(NDA, subagents)


def test_bb_17_whole_words_do_not_misfire_and_two_that_are_close_can_be_seen() -> None:
    subagents = {"legal": listening(keywords=["nda"]), "plan": listening(keywords=["agenda"])}
    loose = classify_intent("The agenda", subagents)
    assert (loose.id, loose.ranked, loose.margin) == ("legal", ("legal", "plan"), 0)
    exact = classify_intent("The agenda", subagents, whole_words=True)
    assert (exact.id, exact.ranked, exact.margin) == ("plan", ("plan",), 1)
