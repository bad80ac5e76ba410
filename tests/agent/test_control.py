"""The loop observes, validates, decides and acts until it is done, stuck, spent or broken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from perdure.agent.adapter import ControlContext
from perdure.agent.calls import Calls
from perdure.agent.cancel import CancelSignal
from perdure.agent.control import run_agent_control_loop
from perdure.agent.evals import ControlEvalResult, objective_eval
from perdure.agent.hooks import ControlHooks, ControlOptions, OpenGate
from perdure.agent.steps import (
    Continue,
    ControlBudget,
    ControlRunResult,
    ControlStep,
    ControlStopPolicies,
    Stop,
    StopDecision,
)
from perdure.core.records import JsonValue
from perdure.errors import ValidationError

FAR = objective_eval("far", False, score=0.2, severity="error")
THERE = objective_eval("there", True, score=1)


def hooks(
    *,
    observe: Callable[[ControlContext], Any] = lambda context: len(context.history),
    validate: Callable[[ControlContext], Any] = lambda context: [FAR],
    decide: Callable[[ControlContext], Any] = lambda context: Continue(f"go {context.step_index}"),
    act: Callable[[JsonValue, ControlContext], Any] = lambda action, context: "done",
    **more: Any,
) -> ControlHooks:
    return ControlHooks(observe=observe, validate=validate, decide=decide, act=act, **more)


def failing(*arguments: object) -> Any:
    raise ConnectionError("no line")


async def run(made: ControlHooks, **more: Any) -> ControlRunResult:
    return await run_agent_control_loop("climb", made, **more)


async def test_5_2_r6_it_stops_as_soon_as_no_eval_does_harm() -> None:
    seen: list[int] = []

    def third(context: ControlContext) -> list[ControlEvalResult]:
        seen.append(context.step_index)
        return [THERE] if len(seen) == 3 else [FAR]

    result = await run(hooks(validate=third))
    assert (result.passed, result.completed, result.stopped_by) == (True, True, "stop-policy")
    assert (result.score, len(result.steps)) == (1, 2)


async def test_bb_6_it_asks_for_a_decision_when_there_is_nothing_to_validate() -> None:
    """An adapter without evals does not pass without having done anything."""
    made = hooks(validate=lambda context: [], decide=lambda context: Stop("enough", passed=True))
    result = await run(made)
    assert (result.stopped_by, result.stop_cause, result.passed) == ("policy", "decided", True)


@pytest.mark.parametrize(
    ("passed", "expected", "failure_class"),
    [(True, True, None), (None, False, None), (False, False, "unknown")],
)
async def test_5_2_r4d_a_stop_passes_only_if_it_says_so(
    passed: bool | None, expected: bool, failure_class: str | None
) -> None:
    result = await run(hooks(decide=lambda context: Stop("enough", passed=passed)))
    assert (result.passed, result.completed) == (expected, True)
    assert result.failure_class == failure_class
    assert result.score == 0.2


async def test_5_2_r4j_success_on_the_last_allowed_step_is_success() -> None:
    made = hooks(
        should_stop=lambda context: StopDecision(
            stop=context.step_index == 2, passed=True, reason="two steps"
        )
    )
    result = await run(made, budget=ControlBudget(max_steps=2))
    assert (result.passed, result.stopped_by, len(result.steps)) == (True, "stop-policy", 2)


@pytest.mark.parametrize(
    ("cap", "still", "cause"),
    [(None, None, "judged"), (1, None, "cost"), (1, 1, "no_progress"), (2, 1, "no_progress")],
)
async def test_5_2_r4j_no_progress_goes_before_the_cost_and_that_before_the_aim(
    cap: float | None, still: int | None, cause: str
) -> None:
    made = hooks(
        observe=lambda context: 0,
        get_action_cost_usd=lambda action, result, context: 1,
        should_stop=lambda context: StopDecision(
            stop=bool(context.history), passed=True, reason="there"
        ),
    )
    policies = ControlStopPolicies(max_no_progress_steps=still)
    budget = ControlBudget(max_cost_usd=cap)
    result = await run(made, budget=budget, options=ControlOptions(policies))
    assert (result.stop_cause, result.passed) == (cause, cause == "judged")
    assert len(result.steps) == 1


async def test_bb_8_a_stop_policy_is_asked_once_for_each_state() -> None:
    asked: list[int] = []

    def should_stop(context: ControlContext) -> StopDecision:
        asked.append(context.step_index)
        return StopDecision(stop=False)

    await run(hooks(should_stop=should_stop), budget=ControlBudget(max_steps=3))
    assert asked == [0, 1, 2, 3]


async def test_5_2_r5_the_steps_are_a_budget() -> None:
    result = await run(hooks(), budget=ControlBudget(max_steps=3))
    assert (result.stopped_by, result.stop_cause) == ("budget", "steps")
    assert (result.failure_class, result.completed) == ("budget_exceeded", False)
    assert [step.index for step in result.steps] == [0, 1, 2]
    # A step is part of the history once it is complete: what follows its action sees it not yet.
    assert [step.before_state for step in result.steps] == [0, 0, 1]
    assert [step.after_state for step in result.steps] == [0, 1, 2]


async def test_5_2_r4b_the_cost_is_a_budget() -> None:
    made = hooks(get_action_cost_usd=lambda action, result, context: 0.4)
    result = await run(made, budget=ControlBudget(max_cost_usd=1))
    assert (result.stop_cause, result.failure_class) == ("cost", "budget_exceeded")
    assert result.spent_cost_usd == pytest.approx(1.2)
    assert result.steps[0].action_outcome is not None
    assert result.steps[0].action_outcome.cost_usd == 0.4


async def test_5_2_r4b_nothing_is_done_without_any_money() -> None:
    result = await run(hooks(), budget=ControlBudget(max_cost_usd=0))
    assert (result.stop_cause, result.steps) == ("cost", ())


@pytest.mark.parametrize("cost", [-1, float("nan"), float("inf"), True, "much"])
async def test_5_2_r4f_a_cost_that_is_none_is_no_failure_of_the_action(cost: object) -> None:
    made = hooks(get_action_cost_usd=lambda action, result, context: cost)
    result = await run(made, budget=ControlBudget(max_steps=1))
    assert result.spent_cost_usd == 0
    assert [error.phase for error in result.runtime_errors] == ["act"]
    assert result.steps[0].action_outcome is not None
    assert result.steps[0].action_outcome.ok


async def test_bb_8_an_action_is_cut_off_when_the_time_is_up() -> None:
    cleaned: list[str] = []

    async def slow(action: JsonValue, context: ControlContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append("up")

    result = await run(hooks(act=slow), budget=ControlBudget(max_wall_ms=20))
    assert (result.stopped_by, result.stop_cause) == ("budget", "wall_time")
    assert result.failure_class == "timeout"
    assert cleaned == ["up"]
    outcome = result.steps[0].action_outcome
    assert outcome is not None
    assert not outcome.ok


async def test_5_2_r1_r4a_a_fired_signal_cuts_off_what_runs() -> None:
    signal = CancelSignal()

    async def slow(context: ControlContext) -> None:
        signal.cancel("bored")
        await asyncio.Event().wait()

    result = await run(hooks(decide=slow), calls=Calls(signal=signal))
    assert (result.stopped_by, result.stop_cause) == ("abort", "cancelled")
    assert (result.failure_class, result.score) == ("cancelled", None)
    assert result.final_evals == (FAR,)


async def cancel_itself(*_: object) -> None:
    raise asyncio.CancelledError("its own")


@pytest.mark.parametrize("hook", ["observe", "validate", "decide", "should_stop"])
async def test_5_2_r10_a_hook_that_cancels_itself_has_failed(hook: str) -> None:
    made: dict[str, Any] = {hook: cancel_itself}
    result = await run(hooks(**made))
    assert (result.stopped_by, result.passed) == ("runtime-error", False)
    assert "cancelled from within" in result.reason


async def test_1_2_r3_cancelling_the_caller_passes_through_and_cleans_up() -> None:
    cleaned = asyncio.Event()
    begun = asyncio.Event()

    async def slow(context: ControlContext) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    work = asyncio.ensure_future(run(hooks(decide=slow)))
    await begun.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert cleaned.is_set()


@pytest.mark.parametrize(
    ("broken", "phase"),
    [("observe", "observe"), ("validate", "validate"), ("decide", "decide")],
)
async def test_5_2_r3_a_failure_ends_the_loop_with_a_result(broken: str, phase: str) -> None:
    result = await run(hooks(**{broken: failing}))
    assert (result.stopped_by, result.completed) == ("runtime-error", False)
    assert result.failure_class == "unknown"
    assert [(error.phase, error.message) for error in result.runtime_errors] == [(phase, "no line")]


async def test_5_2_r4c_a_failing_stop_policy_ends_the_loop() -> None:
    result = await run(hooks(should_stop=failing))
    assert [error.phase for error in result.runtime_errors] == ["stop-policy"]
    assert result.final_state == 0


@pytest.mark.parametrize(
    ("broken", "value"),
    [("decide", "go"), ("validate", None), ("validate", ["good"]), ("should_stop", True)],
)
async def test_5_2_r3_what_a_hook_may_not_return_is_its_failure(broken: str, value: object) -> None:
    more: dict[str, Any] = {broken: lambda context: value}
    result = await run(hooks(**more))
    assert result.stopped_by == "runtime-error"
    assert broken in result.runtime_errors[0].message


async def test_5_2_r4f_a_failed_action_is_a_step_and_the_loop_goes_on() -> None:
    result = await run(hooks(act=failing), budget=ControlBudget(max_steps=2))
    assert result.stop_cause == "steps"
    outcomes = [step.action_outcome for step in result.steps]
    assert [outcome and (outcome.ok, outcome.error) for outcome in outcomes] == [
        (False, "no line"),
        (False, "no line"),
    ]


async def test_5_2_r4f_a_failed_action_ends_the_loop_if_it_is_told_to() -> None:
    steps: list[ControlStep] = []
    result = await run(
        hooks(act=failing, on_step=steps.append), options=ControlOptions(action_failure="stop")
    )
    assert (result.stopped_by, len(result.steps)) == ("runtime-error", 1)
    assert steps == list(result.steps)


async def test_5_2_r4g_a_failed_second_look_is_a_step_and_the_end() -> None:
    def observe(context: ControlContext) -> str:
        if context.evals:
            raise ConnectionError("blind")
        return "seen"

    steps: list[ControlStep] = []
    result = await run(hooks(observe=observe, on_step=steps.append))
    assert (result.stopped_by, result.final_state) == ("runtime-error", "seen")
    assert len(steps) == 1


async def test_5_2_r4i_a_failing_listener_is_noted_and_disturbs_nothing() -> None:
    result = await run(hooks(on_step=failing), budget=ControlBudget(max_steps=1))
    assert [error.phase for error in result.runtime_errors] == ["on-step"]
    assert result.stop_cause == "steps"


async def test_5_2_r4e_the_same_action_over_and_over_is_not_performed_again() -> None:
    policies = ControlStopPolicies(max_repeated_actions=3)
    made = hooks(decide=lambda context: Continue({"b": 1, "a": [2]}))
    result = await run(made, options=ControlOptions(policies))
    assert (result.stop_cause, result.failure_class) == ("repeated_action", "tool_recovery_failure")
    assert (len(result.steps), result.completed, result.passed) == (2, True, False)


async def test_5_2_r4h_steps_without_progress_are_counted_in_a_row() -> None:
    policies = ControlStopPolicies(max_no_progress_steps=2)
    states = iter([0, 0, 1, 1, 1])
    result = await run(
        hooks(observe=lambda context: next(states)), options=ControlOptions(policies)
    )
    assert (result.stop_cause, len(result.steps)) == ("no_progress", 4)


async def test_5_2_r4h_a_failing_fingerprint_ends_the_loop_with_a_result() -> None:
    policies = ControlStopPolicies(max_repeated_actions=3, action_fingerprint=failing)
    result = await run(hooks(), options=ControlOptions(policies))
    assert [error.phase for error in result.runtime_errors] == ["stop-policy"]


async def test_1_2_r1_hooks_may_be_async_and_see_how_the_loop_stands() -> None:
    contexts: list[ControlContext] = []

    async def decide(context: ControlContext) -> Stop:
        contexts.append(context)
        return Stop("enough")

    await run(hooks(decide=decide), budget=ControlBudget(max_cost_usd=2))
    (context,) = contexts
    assert (context.state, context.evals, context.step_index) == (0, (FAR,), 0)
    assert context.remaining_cost_usd == 2


@pytest.mark.parametrize(
    "budget",
    [
        {"max_steps": 0},
        {"max_steps": 1.5},
        {"max_steps": True},
        {"max_wall_ms": 0},
        {"max_wall_ms": float("inf")},
        {"max_cost_usd": -1},
        {"max_cost_usd": float("nan")},
    ],
)
def test_5_1_a_budget_out_of_range_is_refused(budget: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(budget))):
        ControlBudget(**budget)


async def test_3_1_a_loop_has_an_intent() -> None:
    with pytest.raises(ValidationError, match="intent"):
        await run_agent_control_loop("", hooks())


class Broken(OpenGate):
    """A gate that fails on the second look."""

    def __init__(self) -> None:
        self.looks = 0

    def evals(self, emit: Any = None) -> list[ControlEvalResult]:
        self.looks += 1
        if self.looks == 2:
            raise RuntimeError("the gate is off its hinges")
        return []


async def test_5_2_r10_whatever_else_fails_ends_the_loop_and_what_was_known_is_kept() -> None:
    result = await run(hooks(), gate=Broken())
    assert (result.stopped_by, result.completed) == ("runtime-error", False)
    assert [error.phase for error in result.runtime_errors] == ["act"]
    assert "hinges" in result.reason
    assert (result.final_state, result.final_evals) == (0, (FAR,))


async def test_5_2_r1_the_time_of_the_budget_ends_what_runs() -> None:
    signal = CancelSignal()

    async def slow(context: ControlContext) -> None:
        await asyncio.Event().wait()

    result = await run_agent_control_loop(
        "Work", hooks(observe=slow), budget=ControlBudget(max_wall_ms=1), calls=Calls(None, signal)
    )
    assert (result.stop_cause, result.failure_class) == ("wall_time", "timeout")
    assert not signal.cancelled
