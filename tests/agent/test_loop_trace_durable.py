"""The trace of a durable task is one trace, whatever it went through."""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from perdure.agent.calls import Calls
from perdure.agent.control import run_agent_control_loop
from perdure.agent.evals import objective_eval
from perdure.agent.hooks import ControlHooks, ControlOptions
from perdure.agent.steps import Continue, ControlBudget, ControlRunResult
from perdure.agent.stored_traces import DurableTraceStore
from perdure.agent.task import run_agent_task
from perdure.core.records import AgentTaskSpec
from perdure.core.wire import to_wire
from perdure.durable.context import DurableContext
from perdure.durable.runner import run_durable
from perdure.observe.telemetry import RuntimeTelemetryOptions
from perdure.observe.trace import TraceEvent
from perdure.observe.trace_records import (
    TraceBudgetEntry,
    TraceEventQuery,
    TraceSpan,
    TraceSpanQuery,
)
from perdure.observe.trace_store import InMemoryTraceStore
from perdure.store.memory import MemoryStore
from perdure.store.protocol import RunStore
from perdure.testing import crash_everywhere
from perdure.testing.samples import manifest
from tests.agent.robots import Climber
from tests.contract.test_stores import LABS

WORDS = RuntimeTelemetryOptions(
    include_text=True, include_control_payloads=True, include_eval_details=True
)
TASK = AgentTaskSpec("climb", "Climb the ladder", budget={"maxCostUsd": 10})


async def everything(store: Any) -> list[Any]:
    runs = await store.list_runs()
    budget = [entry for each in runs for entry in await store.budget(each.run_id)]
    return [*runs, *await store.spans(), *await store.events(), *budget]


class Paid(Climber):
    def get_action_cost_usd(self, *_: Any) -> float:
        return 0.25


class Counting(InMemoryTraceStore):
    """Counts the calls that write."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[object] = []

    async def append_span(self, span: TraceSpan) -> None:
        self.written.append(span)
        await super().append_span(span)

    async def append_event(self, event: TraceEvent) -> None:
        self.written.append(event)
        await super().append_event(event)

    async def append_budget_entry(self, entry: TraceBudgetEntry) -> None:
        self.written.append(entry)
        await super().append_budget_entry(entry)


async def test_the_trace_of_a_durable_run_has_its_id_and_is_told_the_same_in_a_replay() -> None:
    runs, store = MemoryStore(), Counting()
    options = ControlOptions(trace_store=store, variant_id="v")
    result = await run_agent_task(TASK, Paid(), durable=(runs, "r"), control=options)
    assert result.control.run_id == "r"
    told, told_first = await everything(store), list(store.written)
    await run_agent_task(TASK, Paid(), durable=(runs, "r"), control=options)
    assert store.written == told_first * 2
    assert await everything(store) == told
    kept = await runs.read_run("r")
    assert kept is not None
    assert kept.manifest is not None
    assert kept.manifest.tags == {"variantId": "v"}


class Dies(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("crashes_in", ["decide", "act", "observe"])
async def test_a_task_that_crashed_ends_with_the_trace_of_one_that_did_not(crashes_in: str) -> None:
    async def traced(crashes: bool) -> list[Any]:
        runs = MemoryStore()
        options = ControlOptions(trace_store=DurableTraceStore(runs), telemetry=WORDS)
        robot = Paid()
        method = getattr(robot, crashes_in)

        def dying(*arguments: Any) -> Any:
            if robot.rung == 1:
                raise Dies
            return method(*arguments)

        if crashes:
            setattr(robot, crashes_in, dying)
            with pytest.raises(Dies):
                await run_agent_task(TASK, robot, durable=(runs, "r"), control=options)
            [half] = await DurableTraceStore(runs).list_runs()
            assert half.status == "running"
            setattr(robot, crashes_in, method)
        options = ControlOptions(trace_store=DurableTraceStore(runs), telemetry=WORDS)
        await run_agent_task(TASK, robot, durable=(runs, "r"), control=options)
        told = await everything(DurableTraceStore(runs))
        # The ledger has the calls of the lost attempt too, which may have been billed.
        loop = [each for each in told if getattr(each, "kind", "") != "llm"]
        assert len(loop) < len(told)
        return [without_times(each) for each in loop]

    assert await traced(crashes=True) == await traced(crashes=False)


async def test_wherever_the_process_dies_the_trace_is_one_and_whole() -> None:
    worlds = [Paid(aim=1)]

    def new_lab() -> Any:
        worlds.append(Paid(aim=1))
        return LABS["memory"](Path())

    async def scenario(runs: RunStore) -> list[Any]:
        traces = DurableTraceStore(runs)
        options = ControlOptions(trace_store=traces, telemetry=WORDS)
        await run_agent_task(TASK, worlds[-1], durable=(runs, "r"), control=options)
        loop = [span for span in await traces.spans(TraceSpanQuery("r")) if span.kind != "llm"]
        events = await traces.events(TraceEventQuery("r"))
        told = [await traces.get_run("r"), *loop, *events, *await traces.budget("r")]
        return [without_times(each) for each in told]

    report = await crash_everywhere(scenario, new_lab)
    # What is kept is written once each; the run and its step once more, when they end.
    assert report.calls.count("emit_event") == len(report.outcome) + 2
    # On a busy machine one run may write a begin of its own, and another reach no such point.
    assert max(point.attempts for point in report.points) == 2


def without_times(record: Any) -> Any:
    wire = to_wire(record)
    times = ("startedAt", "endedAt", "timestamp", "latencyMs")
    return {name: value for name, value in wire.items() if name not in times}


async def test_two_loops_of_one_durable_run_have_a_trace_each() -> None:
    store = InMemoryTraceStore()

    async def both(context: DurableContext) -> list[str | None]:
        return [(await loop(context, name)).run_id for name in "ab"]

    def loop(context: DurableContext, name: str) -> Awaitable[ControlRunResult]:
        hooks = ControlHooks(
            observe=lambda context: "here",
            validate=lambda context: [objective_eval("far", False, severity="error")],
            decide=lambda context: Continue("go"),
            act=lambda action, context: None,
        )
        options = ControlOptions(trace_store=store, scenario_id=name)
        budget = ControlBudget(max_steps=1)
        return run_agent_control_loop(
            "walk", hooks, budget=budget, options=options, calls=Calls(context)
        )

    runs = MemoryStore()
    for _ in range(2):
        done = await run_durable(runs, run_id="r", manifest=manifest(), task=both)
        assert done.result == ["r", "r#2"]
    assert [(each.run_id, each.scenario_id) for each in await store.list_runs()] == [
        ("r", "a"),
        ("r#2", "b"),
    ]
    assert len(await store.spans(TraceSpanQuery("r#2", kind="tool"))) == 1
