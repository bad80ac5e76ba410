"""The records of a loop are checked where they are made (5.1)."""

from __future__ import annotations

import math
from typing import Any

import pytest

from perdure.agent.steps import ControlBudget, Stop, StopDecision
from perdure.errors import ValidationError


@pytest.mark.parametrize("score", [math.nan, math.inf, 10**400, "1", True])
def test_5_1_a_stop_has_a_finite_score_or_none(score: Any) -> None:
    with pytest.raises(ValidationError, match="score of a stop"):
        Stop("done", passed=True, score=score)
    with pytest.raises(ValidationError, match="score of a stop"):
        StopDecision(stop=True, passed=True, score=score)


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
