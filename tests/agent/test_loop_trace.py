"""A loop tells its trace store what it does and no more than it may, and never stops for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from perdure.agent import loop_trace
from perdure.agent.adapter import ControlContext
from perdure.agent.calls import Calls
from perdure.agent.cancel import CancelSignal
from perdure.agent.control import run_agent_control_loop
from perdure.agent.evals import objective_eval, subjective_eval
from perdure.agent.hooks import ControlHooks, ControlOptions
from perdure.agent.steps import Continue, ControlBudget, ControlRunResult, Stop
from perdure.agent.task import run_agent_task
from perdure.core.records import AgentTaskSpec
from perdure.core.wire import to_wire
from perdure.observe.telemetry import RuntimeTelemetryOptions
from perdure.observe.trace_records import TraceRun, TraceSpan, TraceSpanQuery
from perdure.observe.trace_store import InMemoryTraceStore
from tests.agent.robots import Climber

WORDS = RuntimeTelemetryOptions(
    include_text=True, include_control_payloads=True, include_eval_details=True
)
FAR = objective_eval("far", False, score=0.2, severity="error", detail="4 km", evidence="a map")
TASTE = subjective_eval("taste", True)


def hooks(**more: Any) -> ControlHooks:
    given: dict[str, Any] = {
        "observe": lambda context: len(context.history),
        "validate": lambda context: [FAR, TASTE],
        "decide": lambda context: Continue({"go": context.step_index}, reason="it is far"),
        "act": lambda action, context: "done",
    }
    return ControlHooks(**{**given, **more})


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize("action", [CYCLE, {1: "no text"}], ids=["a cycle", "a key"])
async def test_5_2_r2_what_cannot_be_told_is_noted_and_stops_nothing(action: Any) -> None:
    store = InMemoryTraceStore()
    made = hooks(decide=lambda context: Continue(action))
    result = await run(store, made, telemetry=WORDS)
    assert (result.stopped_by, len(result.steps)) == ("budget", 1)
    assert {error.phase for error in result.runtime_errors} == {"trace"}
    [kept] = await store.list_runs()
    assert kept.status == "failed"


def failing(*arguments: object) -> Any:
    raise ConnectionError("no line")


async def run(
    store: Any,
    made: ControlHooks | None = None,
    *,
    budget: ControlBudget | None = None,
    **more: Any,
) -> ControlRunResult:
    calls = more.pop("calls", None)
    options = ControlOptions(trace_store=store, **more)
    budget = budget or ControlBudget(max_steps=1)
    return await run_agent_control_loop(
        "climb", made or hooks(), budget=budget, options=options, calls=calls
    )


async def the_run(store: InMemoryTraceStore) -> TraceRun:
    [found] = await store.list_runs()
    return found


async def test_5_2_r2_a_run_is_begun_with_what_the_loop_is_about() -> None:
    store = InMemoryTraceStore()
    result = await run(
        store,
        budget=ControlBudget(max_steps=2, max_cost_usd=0.5),
        project_id="p",
        variant_id="v2",
        scenario_id="s",
    )
    trace = await the_run(store)
    assert trace.run_id == result.run_id
    assert (trace.scenario_id, trace.project_id, trace.variant_id) == ("s", "p", "v2")
    assert trace.layer == "meta"
    assert trace.tags == {"intent": "climb", "maxSteps": "2", "maxCostUsd": "0.5"}


async def test_5_2_r2_the_scenario_has_a_default_and_the_intent_is_cut() -> None:
    store = InMemoryTraceStore()
    options = ControlOptions(trace_store=store)
    await run_agent_control_loop("i" * 500, hooks(), options=options)
    trace = await the_run(store)
    assert trace.scenario_id == "agent-control-loop"
    assert trace.tags == {"intent": "i" * 120, "maxSteps": "8"}


async def test_5_2_r2_without_a_trace_store_there_is_no_run_id() -> None:
    assert (await run(None)).run_id is None
    assert to_wire(await run(None)).get("runId") is None


class Failing(InMemoryTraceStore):
    """A store in which one method fails; `times` says how often."""

    def __init__(self, name: str, times: int = 1_000) -> None:
        super().__init__()
        self.times = times
        setattr(self, name, self._failing(getattr(self, name)))

    def _failing(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*arguments: Any) -> None:
            if self.times:
                self.times -= 1
                raise OSError("the disk is full")
            await method(*arguments)

        return call


@pytest.mark.parametrize(
    "name", ["append_run", "update_run", "append_span", "update_span", "append_budget_entry"]
)
async def test_5_2_r2_a_failure_of_the_store_is_noted_and_stops_nothing(name: str) -> None:
    made = hooks(get_action_cost_usd=lambda *_: 0.1)
    result = await run(Failing(name), made, budget=ControlBudget(max_steps=1, max_cost_usd=1))
    plain = await run(None, made, budget=ControlBudget(max_steps=1, max_cost_usd=1))
    assert (result.stop_cause, len(result.steps)) == (plain.stop_cause, 1)
    assert {(error.phase, error.message) for error in result.runtime_errors} == {
        ("trace", "the disk is full")
    }


async def test_what_the_store_refused_is_told_as_soon_as_it_can_be() -> None:
    store = Failing("append_run", times=2)
    result = await run(store)
    assert [error.phase for error in result.runtime_errors] == ["trace", "trace"]
    assert (await the_run(store)).status == "failed"
    # What was refused meanwhile is not lost.
    assert len(await store.spans()) == 5


async def test_a_store_that_does_not_answer_is_told_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop_trace, "WRITE_MS", 5)
    asked: list[str] = []

    class Silent(InMemoryTraceStore):
        async def append_span(self, span: TraceSpan) -> None:
            asked.append(span.span_id)
            await asyncio.Event().wait()

    result = await run(Silent())
    assert result.stop_cause == "steps"
    assert len(asked) == 1
    [error] = result.runtime_errors
    assert (error.phase, "silent for 5 ms" in error.message) == ("trace", True)


async def test_5_2_r9_each_step_is_a_tool_span_with_its_action() -> None:
    store = InMemoryTraceStore()
    result = await run(store, budget=ControlBudget(max_steps=2), telemetry=WORDS)
    first, second = await store.spans(TraceSpanQuery(kind="tool"))
    assert (first.name, second.name) == ("control-step-0", "control-step-1")
    assert {first.tool_name, second.tool_name} == {"agent-control-action"}
    assert (first.args, first.result) == ({"go": 0}, "done")
    assert first.status == "ok"
    assert first.attributes == {
        "decision": "it is far",
        "spentCostUsd": 0,
        "scoreBefore": 0.2,
        "scoreAfter": 0.2,
    }
    outcome = result.steps[0].action_outcome
    assert outcome is not None
    assert first.latency_ms == outcome.duration_ms
    assert first.ended_at is not None
    assert first.ended_at >= first.started_at


async def test_an_action_that_no_store_could_keep_is_called_by_its_type() -> None:
    store = InMemoryTraceStore()
    made = hooks(decide=lambda context: Continue({1, 2}), act=lambda action, context: "x" * 2**21)
    result = await run(store, made, telemetry=WORDS)
    [step] = await store.spans(TraceSpanQuery(kind="tool"))
    assert (step.args, step.result) == ("a set", "a str")
    assert result.runtime_errors == ()


async def test_5_2_r9_each_eval_is_a_judge_span_of_what_it_looked_at() -> None:
    store = InMemoryTraceStore()
    result = await run(store, telemetry=WORDS)
    [step] = await store.spans(TraceSpanQuery(kind="tool"))
    before, taste, after, _ = await store.spans(TraceSpanQuery(kind="judge"))
    assert (before.judge_id, taste.judge_id) == ("objective-validator", "subjective-judge")
    assert (before.target_span_id, after.target_span_id) == (result.run_id, step.span_id)
    assert (before.name, before.dimension, before.score) == ("control-eval/far", "far", 0.2)
    assert (before.rationale, before.evidence) == ("4 km", "a map")
    assert before.attributes == {
        "phase": "initial",
        "passed": False,
        "severity": "error",
        "objective": True,
    }
    assert after.attributes is not None
    assert after.attributes["phase"] == "step-0"
    # What has passed without a score counts as the best one.
    assert (taste.score, taste.rationale) == (1.0, None)


async def test_5_2_r9_what_is_spent_stands_in_the_ledger_of_the_budget() -> None:
    store = InMemoryTraceStore()
    made = hooks(get_action_cost_usd=lambda *_: 0.5)
    result = await run(store, made, budget=ControlBudget(max_steps=8, max_cost_usd=1))
    assert result.run_id is not None
    entries = await store.budget(result.run_id)
    assert [(each.consumed, each.remaining, each.breached) for each in entries] == [
        (0.5, 0.5, False),
        (1.0, 0.0, True),
    ]
    assert {(each.dimension, each.limit) for each in entries} == {("usd", 1)}
    steps = await store.spans(TraceSpanQuery(kind="tool"))
    assert [each.span_id for each in entries] == [step.span_id for step in steps]
    [breach] = await store.events()
    assert (breach.kind, breach.payload["consumed"]) == ("budget_breach", 1.0)
    assert result.spent_cost_usd == entries[-1].consumed


@pytest.mark.parametrize(("cost", "cap"), [(0.5, None), (0, 1), (None, 1)])
async def test_5_2_r4f_nothing_is_entered_without_a_cap_or_a_cost(
    cost: float | None, cap: float | None
) -> None:
    store = InMemoryTraceStore()
    made = hooks(get_action_cost_usd=lambda *_: cost)
    result = await run(store, made, budget=ControlBudget(max_steps=1, max_cost_usd=cap))
    assert await store.budget(result.run_id or "") == []


@pytest.mark.parametrize(
    ("decide", "status", "failure_class"),
    [
        (lambda context: Stop("there", passed=True), "completed", None),
        (lambda context: Stop("no way", passed=False), "failed", "unknown"),
        (failing, "failed", "unknown"),
    ],
)
async def test_5_2_r8_the_run_is_ended_as_the_loop_was(
    decide: Any, status: str, failure_class: str | None
) -> None:
    store = InMemoryTraceStore()
    result = await run(store, hooks(decide=decide), telemetry=WORDS)
    trace = await the_run(store)
    assert trace.status == status
    assert trace.ended_at is not None
    assert trace.outcome is not None
    assert to_wire(trace.outcome) == {
        "pass": result.passed,
        "notes": result.reason,
        **({} if failure_class is None else {"failureClass": failure_class}),
        **({} if result.score is None else {"score": result.score}),
    }


async def test_5_2_r8_a_cancelled_loop_is_aborted() -> None:
    store, signal = InMemoryTraceStore(), CancelSignal()

    async def slow(context: ControlContext) -> None:
        signal.cancel("bored")
        await asyncio.Event().wait()

    await run(store, hooks(decide=slow), calls=Calls(signal=signal))
    assert (await the_run(store)).status == "aborted"


async def test_a_loop_whose_caller_is_cancelled_is_aborted() -> None:
    store, begun = InMemoryTraceStore(), asyncio.Event()

    async def slow(context: ControlContext) -> None:
        begun.set()
        await asyncio.Event().wait()

    work = asyncio.ensure_future(run(store, hooks(decide=slow)))
    await begun.wait()
    assert (await the_run(store)).status == "running"
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert (await the_run(store)).status == "aborted"


@pytest.mark.parametrize("broken", ["act", "observe", "validate"])
async def test_a_step_that_failed_or_broke_the_loop_off_has_a_span_that_says_so(
    broken: str,
) -> None:
    def second(context: ControlContext) -> Any:
        return failing() if context.evals else [FAR] if broken == "validate" else 0

    store = InMemoryTraceStore()
    made = hooks(**{broken: failing if broken == "act" else second})
    await run(store, made, telemetry=WORDS)
    [step] = await store.spans(TraceSpanQuery(kind="tool"))
    assert step.status == "error"
    assert "no line" in (step.error or "")


async def test_without_leave_no_word_and_no_payload_is_told() -> None:
    store = InMemoryTraceStore()
    made = hooks(decide=lambda context: Continue("password=hunter2", reason="secret words"))
    await run(store, made)
    [step] = await store.spans(TraceSpanQuery(kind="tool"))
    assert (step.args, step.result) == (None, None)
    assert step.attributes is not None
    assert step.attributes["decision"] == "[redacted]"
    assert {span.evidence for span in await store.spans()} == {None}
    trace = await the_run(store)
    assert trace.outcome is not None
    assert trace.outcome.notes == "[redacted]"


async def test_6_3_r3_a_task_is_its_own_scenario() -> None:
    store = InMemoryTraceStore()
    options = ControlOptions(trace_store=store, variant_id="v1")
    result = await run_agent_task(AgentTaskSpec("t-9", "Climb"), Climber(), control=options)
    trace = await the_run(store)
    assert (trace.scenario_id, trace.variant_id) == ("t-9", "v1")
    assert trace.run_id == result.control.run_id
    judges = await store.spans(TraceSpanQuery(kind="judge"))
    assert [span.dimension for span in judges[:2]] == ["knowledge-ready", "high"]


async def test_4_4_how_ready_a_task_is_stands_in_its_trace() -> None:
    for telemetry, reason in ((None, "[redacted]"), (WORDS, "all that must be known is known")):
        store = InMemoryTraceStore()
        options = ControlOptions(trace_store=store)
        if telemetry is not None:
            options = ControlOptions(trace_store=store, telemetry=telemetry)
        await run_agent_task(AgentTaskSpec("climb", "Climb"), Climber(), control=options)
        [event] = [each for each in await store.events() if each.kind == "custom"]
        trace = await the_run(store)
        assert event.event_id == f"{trace.run_id}:emitted:1"
        assert event.payload["kind"] == "readiness_scored"
        assert (event.payload["taskId"], event.payload["passed"]) == ("climb", True)
        assert str(event.payload["reason"]).startswith(reason)
