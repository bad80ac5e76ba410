"""What a task tells while it runs, and what its result has in the end."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from perdure.agent.events import AgentRuntimeEvent
from perdure.agent.hooks import ControlOptions
from perdure.agent.knowledge import KnowledgeRequirement
from perdure.agent.task import run_agent_task
from perdure.core.records import AgentTaskSpec, JsonValue
from perdure.errors import UsageError
from tests.agent.robots import Climber, Librarian, Sink

TASK = AgentTaskSpec("climb", "Climb the ladder")
COLOUR = KnowledgeRequirement("colour", "the colour of the ladder", fallback_policy="block")
MAP = KnowledgeRequirement("map", "a map", acquisition_mode="inspect_repo", fallback_policy="block")


def needing(*requirements: KnowledgeRequirement) -> AgentTaskSpec:
    return TASK._replace(required_knowledge=requirements)


async def test_4_7_r4_bb_7_what_is_still_open_is_told_apart_from_what_was_asked() -> None:
    result = await run_agent_task(needing(COLOUR, MAP), Climber(), knowledge=Librarian())
    assert [each.id for each in result.questions] == ["question_colour"]
    plans = [each.id for each in result.acquisition_plans]
    assert plans == ["acquire_ask_user", "acquire_inspect_repo"]
    assert (result.status, result.open_questions) == ("blocked", ())
    assert [each.id for each in result.knowledge.blocking_missing_requirements] == ["map"]


class Slow(Sink):
    """Notes how far the climber was when an event was told, after a while."""

    def __init__(self, climber: Climber) -> None:
        super().__init__()
        self.rungs: list[int] = []
        self._climber = climber

    async def __call__(self, event: Any) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        self.rungs.append(self._climber.rung)
        await super().__call__(event)


async def test_6_3_r2_the_task_waits_for_its_sink() -> None:
    climber = Climber(aim=2)
    slow = Slow(climber)
    await run_agent_task(TASK, climber, on_event=slow)
    assert dict(zip(slow.types, slow.rungs, strict=True)) == {
        "task_start": 0,
        "readiness_start": 0,
        "readiness_end": 0,
        "control_start": 0,
        "control_step": 2,
        "control_end": 2,
        "task_end": 2,
    }
    assert slow.rungs[4:6] == [1, 2]


class Recorder(Climber):
    def project_run_records(self, control: Any, task: AgentTaskSpec) -> list[JsonValue]:
        return [{"runId": task.id}]


async def test_6_3_r10_the_result_has_all_that_the_task_came_to() -> None:
    proven = KnowledgeRequirement(
        "proof", "a proof", acquisition_mode="search_web", evidence_ids=("e1",)
    )
    task = needing(COLOUR, proven)
    result = await run_agent_task(task, Recorder(), knowledge=Librarian("red", ["e1"]))
    assert (result.task, result.status) == (task, "completed")
    assert result.knowledge.readiness_score == 1  # The latest report, not the first.
    assert [each.id for each in result.questions] == ["question_colour"]
    assert [each.id for each in result.acquisition_plans][-1] == "acquire_search_web"
    assert result.user_answers == {"question_colour": "red"}
    assert result.acquired_evidence_ids == ("e1",)
    assert (result.control.passed, len(result.control.steps)) == (True, 2)
    assert result.run_records == ({"runId": "climb", "scenarioId": "climb"},)


async def test_6_3_r12_what_is_no_list_of_records_is_named() -> None:
    climber: Any = Recorder()
    climber.project_run_records = lambda control, task: {"runId": task.id}
    with pytest.raises(UsageError, match="project_run_records must return a list of records"):
        await run_agent_task(TASK, climber)


@pytest.mark.parametrize("is_async", [False, True])
async def test_6_3_r2_bb_4_a_sink_that_cancels_itself_does_not_disturb_the_task(
    is_async: bool,
) -> None:
    def plain(event: AgentRuntimeEvent) -> None:
        raise asyncio.CancelledError

    async def later(event: AgentRuntimeEvent) -> None:
        plain(event)

    sink = later if is_async else plain
    options = ControlOptions(on_step=cast("Any", sink))
    result = await run_agent_task(TASK, Climber(aim=1), on_event=sink, control=options)
    assert result.status == "completed"
    assert result.sink_errors[0] == "task_start: it was cancelled from within"
    assert [each.phase for each in result.control.runtime_errors] == ["on-step"]


async def test_1_2_r3_cancelling_who_waits_for_a_sink_stays_a_cancellation() -> None:
    is_told = asyncio.Event()

    async def hang(event: AgentRuntimeEvent) -> None:
        is_told.set()
        await asyncio.Event().wait()

    work = asyncio.ensure_future(run_agent_task(TASK, Climber(aim=1), on_event=hang))
    await is_told.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


async def test_6_3_r3_the_loop_has_the_intent_and_the_budget_of_its_task() -> None:
    task = AgentTaskSpec("climb", "Climb the ladder", budget={"maxSteps": 2})
    climber = Climber(aim=5)
    result = await run_agent_task(task, climber)
    assert result.control.intent == "Climb the ladder"
    assert (result.control.stop_cause, len(result.control.steps)) == ("steps", 2)
    budgets = {context.budget.max_steps for context in climber.contexts}
    assert budgets == {2}


async def test_6_3_r5_a_blocked_task_has_the_score_of_its_readiness() -> None:
    half = KnowledgeRequirement(
        "map", "a map", fallback_policy="block", confidence_needed=0.8, current_confidence=0.4
    )
    task = AgentTaskSpec("climb", "Climb the ladder", required_knowledge=[half])
    result = await run_agent_task(task, Climber())
    assert (result.status, result.knowledge.readiness_score) == ("blocked", 0.5)
    assert result.control.score == 0.5
