"""Records of runs for an evaluation (3.3)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from perdure.agent.hooks import ControlOptions
from perdure.agent.run_records import validate_run_record
from perdure.agent.task import run_agent_task
from perdure.core.records import AgentTaskSpec
from perdure.core.wire import to_wire
from perdure.errors import ValidationError
from tests.agent.robots import Climber

RECORD: dict[str, Any] = {
    "runId": "r-1",
    "experimentId": "e-1",
    "candidateId": "c-1",
    "seed": 7,
    "model": "vendor/model-2026-05-10",
    "promptHash": "p",
    "configHash": "c",
    "commitSha": "abc",
    "wallMs": 1200,
    "costUsd": 0.25,
    "tokenUsage": {"input": 7, "output": 3},
    "outcome": {"searchScore": 0.5, "raw": {"x": 1}},
    "splitTag": "dev",
}


def test_3_3_a_whole_record_is_read_and_written() -> None:
    record = validate_run_record(RECORD)
    assert (record.run_id, record.outcome.search_score, record.scenario_id) == ("r-1", 0.5, None)
    assert to_wire(record) == RECORD
    assert validate_run_record(record) == record


@pytest.mark.parametrize("name", RECORD)
def test_3_3_each_required_field_is_missed_by_name(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        validate_run_record({key: value for key, value in RECORD.items() if key != name})


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model": "vendor/model"}, "dated snapshot"),
        ({"runId": ""}, "run_id"),
        ({"splitTag": "train"}, "splitTag"),
        ({"outcome": {"raw": {}}}, "search_score or a holdout_score"),
        ({"outcome": {"searchScore": 1, "raw": {"x": math.nan}}}, "outcome.raw.x"),
        ({"costUsd": math.inf}, "cost_usd"),
        ({"tokenUsage": {"input": "7", "output": 3}}, "tokenUsage.input"),
        ({"tokenUsage": {"input": -7, "output": 3}}, "token_usage.input"),
        ({"wallMs": -1}, "wall_ms"),
        ({"model": "llama-70b-1234567"}, "dated snapshot"),
        (
            {
                "judgeMetadata": {
                    "model": "m",
                    "promptVersion": "1",
                    "confidence": math.nan,
                    "fallback": False,
                }
            },
            "confidence",
        ),
    ],
)
def test_3_3_what_is_not_acceptable_is_named(changed: Any, named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        validate_run_record({**RECORD, **changed})


async def test_records_get_the_scenario_of_their_run_in_the_form_that_they_have() -> None:
    record = validate_run_record(RECORD)
    own = replace(record, scenario_id="own")

    class Projecting(Climber):
        def project_run_records(self, control: Any, task: AgentTaskSpec) -> list[Any]:
            return [record, own, RECORD, to_wire(own)]

    result = await run_agent_task(
        AgentTaskSpec("climb", "Climb"), Projecting(), control=ControlOptions(scenario_id="s")
    )
    with_s = replace(record, scenario_id="s")
    assert result.run_records == (with_s, own, to_wire(with_s), to_wire(own))
