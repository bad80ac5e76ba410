"""An agent task: what it must know is asked first, and a crash costs no second decision."""

from __future__ import annotations

import asyncio
from typing import Any

from perdure import AgentTaskSpec, agent, emit_event, open_store

COLOUR = agent.KnowledgeRequirement("colour", "the colour of the door", fallback_policy="block")
TASK = AgentTaskSpec("door", "Paint the door", required_knowledge=[COLOUR])
door = {"coats": 0}
decisions = 0
is_wet = asyncio.Event()

# The types of the states, actions and results.
Context = agent.AgentTaskContext[dict[str, int], int, None]


class Painter:
    """Puts on one coat after the other; in the first process the third one never dries."""

    def __init__(self, *, hangs: bool) -> None:
        self.hangs = hangs

    def observe(self, context: agent.AgentTaskContext) -> dict[str, int]:
        return dict(door)

    def validate(self, context: Context) -> list[agent.ControlEvalResult]:
        coats = context.state["coats"]
        return [agent.objective_eval("covered", coats == 3, score=coats / 3, severity="error")]

    def decide(self, context: Context) -> agent.ControlDecision[int]:
        global decisions
        decisions += 1
        return agent.Continue(context.state["coats"] + 1)

    async def act(self, coat: int, context: Context) -> None:
        if self.hangs and coat == 3:
            is_wet.set()
            await asyncio.Event().wait()
        [answer] = (context.knowledge.bundle.user_answers or {}).values()
        print(f"coat {coat} of {answer}")
        door["coats"] = coat


async def main() -> None:
    store = await open_store("memory:")
    asking = agent.ReadinessPolicy(answers_event="answers")

    def work(*, hangs: bool) -> Any:
        adapter = Painter(hangs=hangs)
        return agent.run_agent_task(TASK, adapter, readiness=asking, durable=(store, "door:1"))

    first = asyncio.create_task(work(hangs=True))
    while (run := await store.read_run("door:1")) is None or run.state != "waiting":
        await store.wait_for_change("door:1", timeout_ms=50)
    await emit_event(store, "door:1", "answers", {"question_colour": "blue"})
    await is_wet.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    result = await work(hangs=False)
    await store.close()
    print(f"{result.status} after {len(result.control.steps)} coats and {decisions} decisions")


if __name__ == "__main__":
    asyncio.run(main())
