"""The records of a loop are checked where they are made (5.1)."""

from __future__ import annotations

import math
from typing import Any

import pytest

from perdure.agent.hooks import ControlOptions
from perdure.agent.preflight import ReadinessPolicy
from perdure.agent.steps import (
    ControlBudget,
    ControlStopPolicies,
    Stop,
    StopDecision,
    budget_of,
)
from perdure.errors import ValidationError


@pytest.mark.parametrize("score", [math.nan, math.inf, 10**400, "1", True])
def test_5_1_a_stop_has_a_finite_score_or_none(score: Any) -> None:
    with pytest.raises(ValidationError, match="score of a stop"):
        Stop("done", passed=True, score=score)
    with pytest.raises(ValidationError, match="score of a stop"):
        StopDecision(stop=True, passed=True, score=score)


@pytest.mark.parametrize("given", [{"stop": "yes"}, {"stop": 1}, {"stop": True, "passed": "no"}])
def test_5_1_a_stop_is_true_or_false_and_so_is_a_pass(given: Any) -> None:
    with pytest.raises(ValidationError, match="of a stop must be True or False"):
        StopDecision(**given)
    with pytest.raises(ValidationError, match="passed of a stop must be True or False"):
        Stop("done", passed=given.get("passed", "yes"))


@pytest.mark.parametrize(
    "given",
    [
        {"max_steps": 0},
        {"max_steps": True},
        {"max_steps": 1.0},
        {"max_wall_ms": 0},
        {"max_wall_ms": 10**400},
        {"max_wall_ms": "1"},
        {"max_cost_usd": -0.1},
        {"max_cost_usd": math.nan},
    ],
)
def test_5_1_a_budget_names_what_of_it_cannot_be(given: Any) -> None:
    with pytest.raises(ValidationError, match=next(iter(given))):
        ControlBudget(**given)


def test_5_1_a_partial_budget_is_given_by_names() -> None:
    partial: Any = [8]
    with pytest.raises(ValidationError, match="by names"):
        budget_of(partial)
    assert budget_of(None) == budget_of({}) == ControlBudget()


@pytest.mark.parametrize(
    "given",
    [
        {"max_no_progress_steps": 0},
        {"max_repeated_actions": -1},
        {"max_repeated_actions": 1.5},
        {"min_score_delta": -1},
        {"min_score_delta": math.nan},
    ],
)
def test_5_1_a_stop_policy_names_what_of_it_cannot_be(given: Any) -> None:
    with pytest.raises(ValidationError, match=next(iter(given))):
        ControlStopPolicies(**given)


def test_bb_5_a_misspelt_policy_is_not_the_lenient_one() -> None:
    misspelt: Any = "stop!"
    with pytest.raises(ValidationError, match="on_caveat"):
        ReadinessPolicy(on_caveat=misspelt)
    with pytest.raises(ValidationError, match="action_failure"):
        ControlOptions(action_failure=misspelt)
    with pytest.raises(ValidationError, match="decide_kind"):
        ControlOptions(decide_kind=misspelt)
