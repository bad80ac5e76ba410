"""Adapters and providers for the tests of agent tasks: a counter that climbs to its aim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from perdure.agent.adapter import AgentTaskContext
from perdure.agent.evals import ControlEvalResult, objective_eval
from perdure.agent.events import AgentRuntimeEvent
from perdure.agent.knowledge import DataAcquisitionPlan, UserQuestion
from perdure.agent.steps import Continue, ControlDecision, Stop
from perdure.core.records import AgentTaskSpec, JsonValue
from perdure.core.secret import Secret


class Climber:
    """Climbs one rung for each action, and stops (passed) once it is at `aim`.

    `executed` counts the calls of each method, `failing` says which of them fail.
    """

    def __init__(self, aim: int = 2, *, failing: Mapping[str, str] | None = None) -> None:
        self.aim = aim
        self.rung = 0
        self.executed: Counter[str] = Counter()
        self.contexts: list[AgentTaskContext] = []
        self._failing = failing or {}

    async def observe(self, context: AgentTaskContext) -> JsonValue:
        self._called("observe", context)
        return {"rung": self.rung}

    def validate(self, context: AgentTaskContext) -> list[ControlEvalResult]:
        self._called("validate", context)
        rung = context.state["rung"]
        score = min(1.0, rung / self.aim)
        return [objective_eval("high", rung >= self.aim, score=score, severity="error")]

    async def decide(self, context: AgentTaskContext) -> ControlDecision:
        self._called("decide", context)
        if context.state["rung"] >= self.aim:
            return Stop("there", passed=True)
        return Continue({"climb": context.state["rung"] + 1})

    async def act(self, action: JsonValue, context: AgentTaskContext) -> JsonValue:
        self._called("act", context)
        # Idempotent: the same action twice leads to the same rung.
        self.rung = action["climb"]
        return {"at": self.rung}

    def _called(self, name: str, context: AgentTaskContext) -> None:
        self.executed[name] += 1
        self.contexts.append(context)
        if name in self._failing:
            raise ConnectionError(self._failing[name])


class Librarian:
    """Answers every question with `answer`, and finds the evidence it was given."""

    def __init__(self, answer: str | Secret = "blue", evidence: Sequence[str] = ()) -> None:
        self.executed: Counter[str] = Counter()
        self._answer = answer
        self._evidence = evidence

    async def answer_questions(
        self, questions: Sequence[UserQuestion], task: AgentTaskSpec
    ) -> Mapping[str, Any]:
        self.executed["answer"] += 1
        return {question.id: self._answer for question in questions}

    def execute_acquisition_plans(
        self, plans: Sequence[DataAcquisitionPlan], task: AgentTaskSpec
    ) -> list[str]:
        self.executed["acquire"] += 1
        return list(self._evidence)


class Sink:
    """Keeps the events; fails at those of the types in `failing`."""

    def __init__(self, *failing: str) -> None:
        self.events: list[AgentRuntimeEvent] = []
        self._failing = failing

    async def __call__(self, event: AgentRuntimeEvent) -> None:
        self.events.append(event)
        if event.type in self._failing:
            raise OSError("the pipe is closed")

    @property
    def types(self) -> list[str]:
        return [event.type for event in self.events]
