"""What LangGraph and the OpenAI Agents SDK cost on Perdure, beside themselves and `run_durable`.

    python -m bench.agents_and_graphs [STEPS]

Sides take turns, five times; each figure is a median in microseconds for one step, of time and of
the process's own work: a superstep of a graph with one node, a call of a model or of a tool, a step
of `run_durable`. All on SQLite with WAL and FULL, but for the SDKs alone. LangGraph's own
checkpointer takes part where `langgraph-checkpoint-sqlite` is installed.
"""

from __future__ import annotations

import asyncio
import operator
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypedDict

from agents import Agent, Runner, function_tool, set_tracing_disabled
from agents.testing import ScriptedModel, assistant_message, function_call
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from perdure import (
    AgentTaskSpec,
    ChatTurnEngine,
    ChatTurnIdentity,
    DurableContext,
    RunManifest,
    RunStore,
    open_store,
    run_durable,
)
from perdure.engines.langgraph import GraphTurns, PerdureSaver
from perdure.engines.openai_agents import run_agent

MANIFEST = RunManifest("bench", AgentTaskSpec("bench", "Count"))
ROUNDS = 5
Side = Callable[[Path, int], Awaitable[None]]


class Count(TypedDict):
    count: Annotated[int, operator.add]


def counting(steps: int, saver: Any) -> Any:
    """Return a graph whose node runs so many times."""
    builder = StateGraph(Count)
    builder.add_node("one", lambda state: {"count": 1})
    builder.add_edge(START, "one")
    builder.add_conditional_edges("one", lambda state: "one" if state["count"] < steps else END)
    return builder.compile(checkpointer=saver)


async def invoked(graph: Any, steps: int, thread: str) -> None:
    config = {"configurable": {"thread_id": thread}, "recursion_limit": steps + 5}
    done = await graph.ainvoke({"count": 0}, config)
    assert done["count"] >= steps


async def on_store(folder: Path, work: Callable[[RunStore], Awaitable[None]]) -> None:
    store = await open_store(f"sqlite:{folder / 'runs.db'}")
    await work(store)
    await store.close()


async def durable_steps(folder: Path, steps: int) -> None:
    async def task(context: DurableContext) -> None:
        for _ in range(steps):
            await context.step("one", lambda: 1)

    async def work(store: RunStore) -> None:
        await run_durable(store, run_id="run", manifest=MANIFEST, task=task)

    await on_store(folder, work)


async def graph_alone(folder: Path, steps: int) -> None:
    await invoked(counting(steps, InMemorySaver()), steps, "t")


async def graph_on_perdure(folder: Path, steps: int) -> None:
    await on_store(folder, lambda store: invoked(counting(steps, PerdureSaver(store)), steps, "t"))


async def graph_on_its_own(folder: Path, steps: int) -> None:
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    async with AsyncSqliteSaver.from_conn_string(str(folder / "own.db")) as saver:
        await invoked(counting(steps, saver), steps, "t")


async def graph_in_a_turn(folder: Path, steps: int) -> None:
    async def work(store: RunStore) -> None:
        turns = GraphTurns(
            counting(steps, PerdureSaver(store)),
            input_of=lambda turn, state: {"count": 0},
            config={"recursion_limit": steps + 5},
        )
        engine = ChatTurnEngine(store, produce=turns, name="bench")
        turn = await engine.submit(ChatTurnIdentity("", "t", "u", 0), "Go")
        async for _ in turn.lines():
            pass
        run = await store.read_run("chat:t:0")
        assert run is not None
        assert run.state == "completed"
        await engine.aclose()

    await on_store(folder, work)


def calling(steps: int) -> Agent[Any]:
    """Return an agent that calls a tool again and again: half of its steps are tool calls."""

    @function_tool
    def one() -> str:
        return "1"

    calls = [[function_call("one", {}, call_id=f"c{at}")] for at in range(steps // 2)]
    return Agent("bench", model=ScriptedModel([*calls, [assistant_message("Done.")]]), tools=[one])


async def agent_alone(folder: Path, steps: int) -> None:
    await Runner.run(calling(steps), "Go", max_turns=steps)


async def agent_on_perdure(folder: Path, steps: int) -> None:
    async def task(context: DurableContext) -> None:
        await run_agent(context, calling(steps), "Go", max_turns=steps)

    async def work(store: RunStore) -> None:
        await run_durable(store, run_id="run", manifest=MANIFEST, task=task)

    await on_store(folder, work)


SIDES: dict[str, Side] = {
    "run_durable": durable_steps,
    "graph, in memory": graph_alone,
    "graph, PerdureSaver": graph_on_perdure,
    "graph, AsyncSqliteSaver": graph_on_its_own,
    "graph, in a durable turn": graph_in_a_turn,
    "agent, the SDK alone": agent_alone,
    "agent, run_agent": agent_on_perdure,
}


async def main(steps: int) -> None:
    set_tracing_disabled(True)
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
    for _ in range(ROUNDS):
        for name, side in SIDES.items():
            with tempfile.TemporaryDirectory() as folder:
                begun, worked = time.perf_counter(), time.process_time()
                try:
                    await side(Path(folder), steps)
                except ModuleNotFoundError as error:
                    took.pop(name, None)
                    print(f"{name}: left out, {error}")
                    continue
                each = (time.perf_counter() - begun, time.process_time() - worked)
                took[name].append((each[0] / steps * 1e6, each[1] / steps * 1e6))
    for name, rounds in took.items():
        wall, own = (statistics.median(each) for each in zip(*rounds, strict=True))
        print(f"{name:28} {wall:8.0f} us a step, {own:8.0f} us of work")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
