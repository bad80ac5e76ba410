"""Evals tell of checks; several of them have one score."""

from __future__ import annotations

import math
from typing import Any

import pytest

from perdure.agent.evals import (
    are_harmless,
    blocking_knowledge_eval,
    mean_score,
    objective_eval,
    subjective_eval,
)
from perdure.agent.knowledge import KnowledgeRequirement
from perdure.agent.readiness import score_knowledge_readiness
from perdure.agent.task import run_agent_task
from perdure.core.records import AgentTaskSpec
from perdure.errors import ValidationError
from tests.agent.robots import Climber


def test_5_1_who_measured_is_told() -> None:
    assert objective_eval("a", True).objective is True
    assert subjective_eval("a", False, detail="dull").objective is False


def test_4_4_a_report_becomes_an_eval_that_names_what_blocks() -> None:
    gaps = [KnowledgeRequirement(name, name, fallback_policy="block") for name in "xy"]
    result = blocking_knowledge_eval(score_knowledge_readiness("t", gaps))
    assert (result.id, result.passed, result.severity) == ("knowledge-ready", False, "critical")
    assert result.evidence == "x, y"
    assert result.objective is True
    assert result.metadata is not None
    assert result.metadata["knowledgeReadiness"]["taskId"] == "t"


def test_4_4_a_ready_report_is_an_eval_that_passed() -> None:
    result = blocking_knowledge_eval(score_knowledge_readiness("t", []), id="mine")
    assert (result.id, result.passed, result.severity) == ("mine", True, "info")
    assert result.evidence is None


def test_4_4_what_passed_is_no_warning_and_what_failed_is_as_bad_as_its_report() -> None:
    high = KnowledgeRequirement(
        "x", "x", importance="high", current_confidence=0.6, fallback_policy="use_default"
    )
    report = score_knowledge_readiness("t", [high])
    assert report.severity == "warning"
    assert blocking_knowledge_eval(report).severity == "info"
    short = blocking_knowledge_eval(report, minimum_score=0.9)
    assert (short.passed, short.severity, short.evidence) == (False, "warning", None)
    assert (short.score, short.detail) == (report.readiness_score, report.reason)


def test_4_4_a_score_below_the_minimum_fails_without_blocking() -> None:
    short = KnowledgeRequirement("x", "x", current_confidence=0.5, fallback_policy="use_default")
    report = score_knowledge_readiness("t", [short])
    assert not blocking_knowledge_eval(report, minimum_score=0.8).passed
    assert blocking_knowledge_eval(report, minimum_score=0.6).passed


def test_4_4_a_trace_is_told_of_the_score() -> None:
    told: list[tuple[str, Any]] = []
    gap = KnowledgeRequirement("x", "x", fallback_policy="block")
    report = score_knowledge_readiness("t", [gap, KnowledgeRequirement("y", "y")])
    blocking_knowledge_eval(
        report, minimum_score=0.5, emit=lambda kind, payload: told.append((kind, payload))
    )
    assert told == [
        (
            "custom",
            {
                "kind": "readiness_scored",
                "taskId": "t",
                "passed": False,
                "readinessScore": 0.0,
                "minimumScore": 0.5,
                "blockingRequirementIds": ["x"],
                "nonBlockingRequirementIds": ["y"],
                "recommendedAction": "ask_user",
                "severity": "critical",
                "reason": report.reason,
            },
        )
    ]


def test_4_4_a_trace_that_fails_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail(kind: str, payload: object) -> None:
        raise OSError("no trace")

    report = score_knowledge_readiness("t", [])
    assert blocking_knowledge_eval(report, emit=fail) == blocking_knowledge_eval(report)
    assert "no trace" in caplog.text


@pytest.mark.parametrize(
    ("given", "culprit"),
    [
        ({"score": math.nan}, "score of the eval 'mine'"),
        ({"score": math.inf}, "score of the eval 'mine'"),
        ({"score": 10**400}, "score of the eval 'mine'"),
        ({"score": "0.5"}, "score of the eval 'mine'"),
        ({"score": True}, "score of the eval 'mine'"),
        ({"severity": "fatal"}, "severity of the eval 'mine'"),
    ],
)
def test_5_1_what_says_nothing_of_harm_is_no_eval(given: Any, culprit: str) -> None:
    with pytest.raises(ValidationError, match=culprit):
        objective_eval("mine", False, **given)


async def test_5_2_r3_an_eval_that_is_none_ends_the_loop_and_raises_nothing() -> None:
    class Careless(Climber):
        def validate(self, context: Any) -> Any:
            return [objective_eval("mine", False, score=math.nan)]

    result = await run_agent_task(AgentTaskSpec("t", "Climb"), Careless())
    assert (result.status, result.control.stopped_by) == ("failed", "runtime-error")
    assert "score of the eval 'mine'" in result.control.reason


def test_5_2_r7_the_score_of_several_is_their_mean_rounded_half_up() -> None:
    assert mean_score([]) is None
    assert mean_score([objective_eval("a", True)]) is None
    assert mean_score([objective_eval("a", True, score=0.0005)]) == 0.001
    scores = [objective_eval("a", True, score=score) for score in (1, 0, 0)]
    assert mean_score([*scores, objective_eval("b", True)]) == 0.333


def test_5_2_r6_only_errors_do_harm() -> None:
    assert are_harmless([objective_eval("a", False), objective_eval("b", False, severity="info")])
    assert not are_harmless([objective_eval("a", False, severity="error")])
    assert are_harmless([objective_eval("a", True, severity="critical")])
