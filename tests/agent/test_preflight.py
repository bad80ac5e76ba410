"""A preflight takes ids for evidence, and waits for an event only where it can."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

import pytest

from perdure.agent.adapter import AgentTaskContext
from perdure.agent.knowledge import KnowledgeRequirement
from perdure.agent.preflight import ReadinessPolicy
from perdure.agent.readiness import score_knowledge_readiness
from perdure.agent.steps import Continue
from perdure.agent.task import run_agent_task
from perdure.core.records import AgentTaskSpec, JsonValue
from perdure.errors import UsageError
from tests.agent.robots import Climber, Librarian, Sink

TASK = AgentTaskSpec("climb", "Climb the ladder")
COLOUR = KnowledgeRequirement("colour", "the colour of the ladder", fallback_policy="block")
MAP = KnowledgeRequirement(
    "map", "a map", acquisition_mode="inspect_repo", fallback_policy="block", evidence_ids=("e1",)
)
CAVEAT = KnowledgeRequirement("wind", "the wind", acquisition_mode="search_web")


def needing(requirement: KnowledgeRequirement) -> AgentTaskSpec:
    return TASK._replace(required_knowledge=[requirement])


class Scout(Climber):
    """While it is blocked it finds one piece of evidence after the other."""

    def on_knowledge_blocked(self, *_: object) -> Continue:
        return Continue({"climb": 0})

    def get_evidence_ids(
        self, action: JsonValue, result: JsonValue, context: AgentTaskContext
    ) -> list[str]:
        return [f"e{context.step_index + 1}"]


async def test_bb_7_evidence_of_several_actions_counts_together() -> None:
    needed = KnowledgeRequirement("map", "a map", importance="blocking", evidence_ids=("e1", "e2"))
    scout = Scout(aim=1)
    result = await run_agent_task(needing(needed), scout)
    assert (result.status, scout.executed["decide"]) == ("completed", 1)
    assert result.acquired_evidence_ids[:2] == ("e1", "e2")


class Careless:
    def __init__(self, found: object) -> None:
        self._found = found

    def execute_acquisition_plans(self, *_: object) -> object:
        return self._found


class Clerk:
    """Notes what it is asked and told to find out."""

    def __init__(self, evidence: Sequence[str] = ()) -> None:
        self.asked: list[str] = []
        self.plans: list[str] = []
        self._evidence = evidence

    def answer_questions(self, questions: Any, task: AgentTaskSpec) -> dict[str, str]:
        self.asked += [each.requirement_id for each in questions]
        return {}

    def execute_acquisition_plans(self, plans: Any, task: AgentTaskSpec) -> list[str]:
        self.plans += [f"{each.mode} {' '.join(each.requirement_ids)}" for each in plans]
        return list(self._evidence)


async def test_4_7_r1_only_what_blocks_is_asked_and_its_plans_come_first() -> None:
    taste = KnowledgeRequirement("taste", "the taste")
    task = TASK._replace(required_knowledge=[CAVEAT, taste, MAP, COLOUR])
    clerk = Clerk()
    result = await run_agent_task(task, Climber(), knowledge=clerk)
    assert clerk.asked == ["colour"]
    assert clerk.plans == ["inspect_repo map", "ask_user colour taste", "search_web wind"]
    assert [each.requirement_id for each in result.questions] == ["colour"]


@pytest.mark.parametrize(("evidence", "looks"), [((), 1), (("e1",), 2)])
async def test_4_7_r3_evidence_alone_has_the_report_made_again(
    evidence: tuple[str, ...], looks: int
) -> None:
    sink = Sink()
    task = needing(MAP)
    result = await run_agent_task(task, Climber(), knowledge=Clerk(evidence), on_event=sink)
    assert sink.types.count("readiness_start") == looks
    assert sink.types.count("readiness_end") == looks
    assert (result.status == "blocked") == (not evidence)


@pytest.mark.parametrize("found", ["e1", ["e1", 7], {"e1": 1}])
async def test_what_a_provider_acquires_are_ids(found: Any) -> None:
    with pytest.raises(UsageError, match="execute_acquisition_plans"):
        await run_agent_task(needing(CAVEAT), Climber(), knowledge=Careless(found))


async def test_only_a_durable_task_can_wait_for_answers() -> None:
    policy, sink = ReadinessPolicy(answers_event="answers"), Sink()
    with pytest.raises(UsageError, match="durable="):
        await run_agent_task(needing(COLOUR), Climber(), readiness=policy, on_event=sink)
    assert not sink.events
    provided = await run_agent_task(
        needing(COLOUR), Climber(), readiness=policy, knowledge=Librarian()
    )
    assert provided.status == "completed"


@pytest.mark.parametrize(
    "given",
    [{"answers_event": ""}, {"answers_timeout_ms": -1}, {"answers_timeout_ms": True}],
)
def test_a_policy_waits_for_an_event_with_a_name_and_a_limit(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(given))):
        ReadinessPolicy(**given)


class Knowing:
    """Is told what it may be asked."""

    def __init__(self, *names: str) -> None:
        self.told: list[tuple[str, ...]] = []
        for name in names:
            setattr(self, name, partial(self._asked, name))

    def _asked(self, name: str, *given: Any) -> Any:
        self.told.append((name, *(type(each).__name__ for each in given)))
        return {
            "build_readiness": score_knowledge_readiness("door", [COLOUR, MAP]),
            "answer_questions": {"question_colour": "red"},
            "execute_acquisition_plans": ["e1"],
            "refresh_readiness": score_knowledge_readiness("door", []),
        }[name]


METHODS = {
    "build_readiness": ("AgentTaskSpec",),
    "answer_questions": ("tuple", "AgentTaskSpec"),
    "execute_acquisition_plans": ("tuple", "AgentTaskSpec"),
    "refresh_readiness": ("AgentTaskSpec", "KnowledgeReadinessReport", "dict", "tuple"),
}


@pytest.mark.parametrize(
    "names", [each for size in range(5) for each in combinations(METHODS, size)]
)
async def test_4_6_each_method_of_a_provider_is_optional_and_told_what_it_is_about(
    names: tuple[str, ...],
) -> None:
    knowing = Knowing(*names)
    task = AgentTaskSpec("door", "Paint the door", required_knowledge=[COLOUR, MAP])
    result = await run_agent_task(task, Climber(), knowledge=knowing)
    due = [name for name in METHODS if name in names]
    if not {"answer_questions", "execute_acquisition_plans"} & set(names):
        due = [name for name in due if name != "refresh_readiness"]
    assert knowing.told == [(name, *METHODS[name]) for name in due]
    closed = {"answer_questions", "execute_acquisition_plans"} <= set(names)
    assert (result.status == "completed") == (closed or "refresh_readiness" in due)
