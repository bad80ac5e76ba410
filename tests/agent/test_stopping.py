"""A loop that repeats itself, or stands still, is noticed."""

from __future__ import annotations

import pytest

from perdure.agent.evals import ControlEvalResult, objective_eval
from perdure.agent.steps import ControlStopPolicies
from perdure.agent.stopping import Streaks, fingerprint, stop_if_harmless
from perdure.core.records import JsonValue


@pytest.mark.parametrize(
    ("left", "right"),
    [({"a": 1, "b": [2]}, {"b": [2], "a": 1}), ("x", "x"), (None, None), (1.5, 1.5)],
)
def test_5_1_equal_values_have_one_fingerprint(left: JsonValue, right: JsonValue) -> None:
    assert fingerprint(left) == fingerprint(right)


def test_5_1_what_is_no_json_has_the_fingerprint_of_its_text() -> None:
    assert fingerprint({1}) == "{1}"


def test_5_2_r4e_another_action_in_between_begins_anew() -> None:
    streaks = Streaks(ControlStopPolicies(max_repeated_actions=2))
    assert [streaks.repeats(action) for action in "aabab"] == [False, True, False, False, False]


def scored(score: float) -> list[ControlEvalResult]:
    return [objective_eval("e", False, score=score)]


@pytest.mark.parametrize(
    ("then", "now", "still"), [(0.5, 0.5, True), (0.5, 0.5004, True), (0.5, 0.6, False)]
)
def test_5_2_r4h_a_score_that_moves_is_progress(then: float, now: float, still: bool) -> None:
    streaks = Streaks(ControlStopPolicies(max_no_progress_steps=1))
    found = streaks.stands_still("s", "s", evals_before=scored(then), evals_after=scored(now))
    assert found is still


def test_5_1_without_policies_nothing_is_counted() -> None:
    streaks = Streaks(ControlStopPolicies())
    assert not any(streaks.repeats("a") for _ in range(9))
    assert not streaks.stands_still("s", "s", evals_before=[], evals_after=[])


def test_5_2_r6_no_evals_are_no_reason_to_stop() -> None:
    assert not stop_if_harmless([]).stop
    assert stop_if_harmless([objective_eval("e", True, score=1)]).passed
