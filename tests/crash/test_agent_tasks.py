"""An agent task comes to the same end wherever its process dies; no record is paid for twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

from perdure.agent.adapter import AgentTaskContext
from perdure.agent.knowledge import KnowledgeRequirement
from perdure.agent.steps import ControlDecision
from perdure.agent.task import AgentTaskRunResult, run_agent_task
from perdure.core.records import AgentTaskSpec, JsonValue
from perdure.store.protocol import RunStore
from perdure.testing.contract import NewLab
from perdure.testing.faults import crash_everywhere
from tests.agent.robots import Climber, Librarian

COLOUR = KnowledgeRequirement("colour", "the colour of the ladder", fallback_policy="block")
KEY = KnowledgeRequirement("key", "the key of the shed", sensitivity="secret")
TASK = AgentTaskSpec("climb", "Climb the ladder", required_knowledge=[COLOUR, KEY])


class Watched(Climber):
    """Climbs a ladder outside its process; notes calls that were made after their record."""

    def __init__(self, store: RunStore, paid: Counter[str], again: list[str]) -> None:
        super().__init__(aim=3)
        self._store = store
        self._paid = paid
        self._again = again

    async def observe(self, context: AgentTaskContext) -> JsonValue:
        """Look at the ladder itself, which no crash moves: it is where the last action left it."""
        steps = await self._store.read_steps("run")
        done = [step.result["value"]["result"] for step in steps if step.intent[:4] == "act:"]
        self.rung = max((result["at"] for result in done), default=0)
        return await super().observe(context)

    async def decide(self, context: AgentTaskContext) -> ControlDecision:
        await self._pay(f"decide:{context.step_index}")
        return await super().decide(context)

    async def act(self, action: JsonValue, context: AgentTaskContext) -> JsonValue:
        await self._pay(f"act:{context.step_index}")
        return await super().act(action, context)

    async def _pay(self, intent: str) -> None:
        steps = await self._store.read_steps("run")
        if any(step.intent == intent and step.status == "completed" for step in steps):
            self._again.append(intent)
        self._paid[intent] += 1


def shape(result: AgentTaskRunResult) -> tuple[Any, ...]:
    control = result.control
    return (
        result.status,
        control.passed,
        control.score,
        control.run_id,
        [(step.index, step.decision, step.after_state) for step in control.steps],
        result.user_answers,
        result.knowledge.bundle.user_answers,
    )


async def test_a_task_comes_to_the_same_end_wherever_its_process_dies(
    new_lab: NewLab,
) -> None:
    paid: Counter[str] = Counter()
    again: list[str] = []

    async def scenario(store: RunStore) -> tuple[Any, ...]:
        result = await run_agent_task(
            TASK,
            Watched(store, paid, again),
            knowledge=Librarian("open sesame"),
            durable=(store, "run"),
        )
        run = await store.read_run("run")
        assert run is not None
        assert run.outcome is not None
        intents = [step.intent for step in await store.read_steps("run")]
        return (*shape(result), run.state, run.outcome.passed, run.outcome.notes, intents)

    report = await crash_everywhere(scenario, new_lab)
    assert again == []
    crashes = len(report.points)
    assert crashes >= 20
    # A call is paid once for each of its runs, and once more only if its own record was lost.
    runs = 1 + crashes
    assert all(runs <= count <= runs + 6 for count in paid.values()), paid
    assert report.outcome[0] == "completed"
