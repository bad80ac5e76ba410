"""An agent task for a thread that waits."""

from __future__ import annotations

import pytest

from perdure.core.records import AgentTaskSpec
from perdure.errors import ValidationError
from perdure.sync import open_store, run_agent_task_sync
from tests.agent.robots import Climber, Sink

TASK = AgentTaskSpec("climb", "Climb to the second rung")


def test_a_thread_waits_for_a_task() -> None:
    sink = Sink()
    result = run_agent_task_sync(TASK, Climber(), on_event=sink)
    assert result.status == "completed"
    assert (sink.types[0], sink.types[-1]) == ("task_start", "task_end")


def test_a_durable_task_is_done_once() -> None:
    climber = Climber()
    with open_store("memory:") as store:
        for _ in range(2):
            result = run_agent_task_sync(TASK, climber, durable=(store, "climb:1"))
            assert result.status == "completed"
    assert climber.executed["act"] == 2


def test_what_is_raised_arrives() -> None:
    with pytest.raises(ValidationError):
        run_agent_task_sync(TASK._replace(id=""), Climber())
