"""Two variants of an agent climb the same ladder, and their traces say which came how far."""

from __future__ import annotations

import asyncio
from typing import TypedDict

from perdure import AgentTaskSpec, agent, erase_run, open_store
from perdure.observe import TraceSpanQuery

TASK = AgentTaskSpec("ladder", "Climb to the fifth rung")


class Stride(TypedDict):
    """An action: so many rungs at a time."""

    rungs: int


Context = agent.AgentTaskContext[int, Stride, str]


class Climber:
    """Goes up by so many rungs at a time."""

    def __init__(self, stride: int) -> None:
        self.stride = stride
        self.rung = 0

    def observe(self, context: agent.AgentTaskContext) -> int:
        return self.rung

    def validate(self, context: Context) -> list[agent.ControlEvalResult]:
        score = min(context.state / 5, 1)
        return [agent.objective_eval("up", score == 1, score=score, severity="error")]

    def decide(self, context: Context) -> agent.ControlDecision[Stride]:
        return agent.Continue(Stride(rungs=self.stride))

    def act(self, action: Stride, context: Context) -> str:
        self.rung += action["rungs"]
        return f"on rung {self.rung}"


async def main() -> None:
    store = await open_store("memory:")
    traces = agent.DurableTraceStore(store)
    for variant, stride in (("careful", 1), ("brisk", 3)):
        options = agent.ControlOptions(trace_store=traces, variant_id=variant)
        await agent.run_agent_task(
            TASK, Climber(stride), durable=(store, f"climb:{variant}"), control=options
        )
    told: list[str] = []
    for run in await traces.list_runs():
        steps = await traces.spans(TraceSpanQuery(run.run_id, kind="tool"))
        print(f"{run.variant_id}: {run.status}, {[step.name for step in steps]}")
        told.append(f"{run.variant_id} in {len(steps)}")
    # A trace goes with the run that it tells of.
    await erase_run(store, "climb:careful")
    left = [run.variant_id for run in await traces.list_runs()]
    await store.close()
    print(f"{' and '.join(told)} steps; after an erasure there is {left}")


if __name__ == "__main__":
    asyncio.run(main())
