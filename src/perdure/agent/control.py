"""The control loop: observe, validate, decide, act, under a budget; failures become a result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from perdure.agent.adapter import ControlContext, answer_of, resolve
from perdure.agent.calls import Called, Calls, Cut
from perdure.agent.endings import Ended, Ending, cut_off, ends_only_the_attempt, failed
from perdure.agent.evals import KNOWLEDGE_READY, ControlEvalResult, mean_score
from perdure.agent.hooks import ControlHooks, ControlOptions, Gate, OpenGate
from perdure.agent.loop_trace import LoopTrace
from perdure.agent.steps import (
    Continue,
    ControlActionOutcome,
    ControlBudget,
    ControlDecision,
    ControlRunResult,
    ControlRuntimeError,
    ControlStep,
    Phase,
    Stop,
    StopDecision,
)
from perdure.agent.stopping import Streaks, stop_if_harmless
from perdure.agent.type_variables import ActionResultT, ActionT, StateT
from perdure.agent.words import (
    checked_decision,
    checked_evals,
    checked_stop,
    read_decision,
    read_evals,
    read_stop,
)
from perdure.core.effects import iso_time
from perdure.core.finite import is_finite
from perdure.core.pricing import usd_sum
from perdure.core.records import JsonValue, Retry, StepKind
from perdure.core.wording import error_text
from perdure.errors import ValidationError


async def run_agent_control_loop(
    intent: str,
    hooks: ControlHooks[StateT, ActionT, ActionResultT],
    *,
    budget: ControlBudget | None = None,
    options: ControlOptions | None = None,
    calls: Calls | None = None,
    gate: Gate | None = None,
) -> ControlRunResult[StateT, ActionT, ActionResultT]:
    """Run a loop to its end and return how it ended; no hook's exception is raised.

    `calls` decides whether the loop is durable, and carries the signal that cancels it.
    """
    if not intent:
        raise ValidationError("intent must not be empty")
    loop = ControlLoop(
        intent,
        hooks,
        budget=budget or ControlBudget(),
        options=options or ControlOptions(),
        calls=calls or Calls(),
        gate=gate or OpenGate(),
    )
    return await loop.run()


class ControlLoop:
    """One run of the loop; it keeps the newest state, evals and spend."""

    def __init__(
        self,
        intent: str,
        hooks: ControlHooks,
        *,
        budget: ControlBudget,
        options: ControlOptions,
        calls: Calls,
        gate: Gate,
    ) -> None:
        self._intent = intent
        self._hooks = hooks
        self._budget = budget
        self._options = options
        self._calls = calls
        self._gate = gate
        self._begun_ms = calls.work_ms
        self._state: JsonValue = None
        self._evals: tuple[ControlEvalResult, ...] = ()
        self._steps: list[ControlStep] = []
        self._errors: list[ControlRuntimeError] = []
        self._spent = 0.0
        self._index = 0
        self._looks = 0
        self._streaks = Streaks(options.stop_policies)
        self._trace = LoopTrace(
            intent,
            budget,
            options,
            calls=calls,
            note=lambda message: self._note("trace", message),
        )

    async def run(self) -> ControlRunResult:
        """Run to the end."""
        try:
            await self._trace.begin()
            await self._look()
            self._check_cost()
            await self._ask_stop_policy()
            for index in range(self._budget.max_steps):
                self._index = index
                await self._step()
            ending = Ending("budget", "steps", "the steps are used up", None, "budget_exceeded")
        except Ended as ended:
            ending = ended.ending
        except Exception as error:
            if ends_only_the_attempt(error):
                raise
            ending = self._broken("act", error_text(error)).ending
        except asyncio.CancelledError:
            await self._trace.abandon()
            raise
        result = self._result(ending)
        await self._trace.end(result)
        return replace(result, runtime_errors=tuple(self._errors))

    # One step.

    async def _step(self) -> None:
        before, evals = self._state, self._evals
        action, decision = await self._decide()
        await self._trace.act(self._index, decision)
        called, outcome = await self._act(action)
        ended: Ended | None = None
        try:
            if outcome.ok:
                missed = await self._gate.acted(action, outcome.result, self._context())
                if missed is not None:
                    self._note("act", missed)
            elif called.cut is not None:
                raise cut_off(called.cut)
            elif self._options.action_failure == "stop":
                raise failed(f"the action failed: {outcome.error}")
            await self._look()
        except Ended as error:
            ended = error
        step = ControlStep(
            index=self._index,
            decision=decision,
            before_state=before,
            after_state=self._state,
            evals_before=evals,
            evals_after=self._evals,
            action_outcome=outcome,
            started_at=iso_time(called.at_ms),
            ended_at=iso_time(max(called.at_ms, self._calls.now_ms)),
        )
        self._steps.append(step)
        broken = None if ended is None else ended.ending.reason
        await self._trace.end_step(step, broken=broken, spent_usd=self._spent)
        await self._tell(step)
        if ended is not None:
            raise ended
        await self._after(step)

    async def _after(self, step: ControlStep) -> None:
        """Stop if the step got nowhere, cost too much, or reached the aim."""
        if self._counted(
            lambda: self._streaks.stands_still(
                step.before_state,
                step.after_state,
                evals_before=step.evals_before,
                evals_after=step.evals_after,
            )
        ):
            raise self._stuck("no_progress", "there was no progress")
        self._check_cost()
        self._index += 1
        await self._ask_stop_policy()

    async def _decide(self) -> tuple[JsonValue, Continue]:
        decision: ControlDecision = await self._call(
            "decide",
            self._hooks.decide,
            check=checked_decision,
            read=read_decision,
            kind=self._options.decide_kind,
            retry=self._options.decide_retry,
        )
        if isinstance(decision, Stop):
            raise Ended(self._decided(decision))
        if self._counted(lambda: self._streaks.repeats(decision.action)):
            raise self._stuck("repeated_action", "the same action was chosen over and over")
        return decision.action, decision

    def _decided(self, decision: Stop) -> Ending:
        score = decision.score if decision.score is not None else mean_score(self._evals)
        if self._gate.is_blocked:
            return Ending(
                "policy", "knowledge", decision.reason, score, "knowledge_readiness_blocked"
            )
        return Ending(
            "policy",
            "decided",
            decision.reason,
            score,
            "unknown" if decision.passed is False else None,
            passed=bool(decision.passed),
        )

    async def _act(self, action: JsonValue) -> tuple[Called, ControlActionOutcome]:
        context = self._context()
        called = await self._calls.call(
            f"act:{self._index}",
            lambda: self._perform(action, context),
            kind="tool",
            timeout_ms=self._left_ms(),
            effect=self._options.action_effect,
        )
        if called.error is not None or called.cut is not None:
            message = called.message if called.cut is None else _cut_message(called.cut)
            self._note("act", message)
            return called, ControlActionOutcome(
                ok=False, error=message, duration_ms=called.duration_ms
            )
        found: dict[str, JsonValue] = called.value
        cost = found.get("costUsd")
        if found.get("costError") is not None:
            self._note("act", f"the cost of the action is unknown: {found['costError']}")
        if cost:
            self._spent = usd_sum(self._spent, cost)
            await self._trace.spend(self._index, self._spent)
        return called, ControlActionOutcome(
            ok=True, result=found.get("result"), cost_usd=cost, duration_ms=called.duration_ms
        )

    async def _perform(self, action: JsonValue, context: ControlContext) -> JsonValue:
        """Act, and ask what it cost; a failure to tell the cost is no failure of the action."""
        result = await resolve(self._hooks.act(action, context))
        found: dict[str, JsonValue] = {"result": result}
        cost_of = self._hooks.get_action_cost_usd
        if cost_of is not None:
            try:
                cost = await answer_of(cost_of, action, result, context)
                if cost is not None and not (is_finite(cost) and cost >= 0):
                    raise ValidationError(f"get_action_cost_usd returned {cost!r:.40}")
                found["costUsd"] = cost
            except Exception as error:
                found["costError"] = error_text(error)
        return found

    async def _look(self) -> None:
        """Observe and validate."""
        look = self._looks
        self._looks += 1
        self._state = await self._call("observe", self._hooks.observe, number=look)
        evals: tuple[ControlEvalResult, ...] = await self._call(
            "validate", self._hooks.validate, check=checked_evals, read=read_evals, number=look
        )
        self._evals = (*self._gate.evals(self._trace.emit), *evals)
        await self._trace.judge(look, self._evals)

    # Stopping.

    async def _ask_stop_policy(self) -> None:
        """Stop if the policy says so. A pass does not count while the gate is shut."""
        ask = self._hooks.should_stop
        word: StopDecision
        if ask is None:
            word = stop_if_harmless([each for each in self._evals if each.id != KNOWLEDGE_READY])
        else:
            word = await self._call("stop-policy", ask, check=checked_stop, read=read_stop)
        if not word.stop or (self._gate.is_blocked and word.passed):
            return
        blocked = self._gate.is_blocked
        raise Ended(
            Ending(
                "stop-policy",
                "knowledge" if blocked else "judged",
                word.reason,
                word.score if word.score is not None else mean_score(self._evals),
                "knowledge_readiness_blocked" if blocked else word.failure_class,
                passed=word.passed,
            )
        )

    def _check_cost(self) -> None:
        most = self._budget.max_cost_usd
        if most is not None and self._spent >= most:
            reason, score = f"the cost cap of {most:g} USD is reached", mean_score(self._evals)
            raise Ended(Ending("budget", "cost", reason, score, "budget_exceeded"))

    def _stuck(self, cause: Literal["no_progress", "repeated_action"], reason: str) -> Ended:
        score = mean_score(self._evals)
        return Ended(Ending("stop-policy", cause, reason, score, "tool_recovery_failure"))

    # Calling.

    async def _call(
        self,
        phase: Phase,
        hook: Callable[[ControlContext], Any],
        *,
        check: Callable[[object], object] | None = None,
        read: Callable[[JsonValue], Any] | None = None,
        kind: StepKind = "logic",
        retry: Retry | None = None,
        number: int | None = None,
    ) -> Any:
        """Return the value of a hook; raise Ended if there is none, or none that fits."""
        context = self._context()

        async def checked() -> object:
            value: object = await resolve(hook(context))
            return value if check is None else check(value)

        called = await self._calls.call(
            f"{phase}:{self._index if number is None else number}",
            checked,
            read=read,
            kind=kind,
            retry=retry,
            timeout_ms=self._left_ms(),
        )
        if called.cut is not None:
            raise cut_off(called.cut)
        if called.error is not None:
            raise self._broken(phase, called.message)
        return called.value

    def _counted(self, count: Callable[[], bool]) -> bool:
        """Return what a streak says; a fingerprint is code of the user, which may fail."""
        try:
            return count()
        except Exception as error:
            raise self._broken("stop-policy", error_text(error)) from error

    def _broken(self, phase: Phase, message: str) -> Ended:
        self._note(phase, message)
        return failed(f"{phase} failed: {message}")

    def _note(self, phase: Phase, message: str) -> None:
        self._errors.append(ControlRuntimeError(phase, self._index, message))

    async def _tell(self, step: ControlStep) -> None:
        for listener in filter(None, (self._hooks.on_step, self._options.on_step)):
            try:
                await answer_of(listener, step)
            except Exception as error:
                self._note("on-step", error_text(error))

    def _wall_ms(self) -> float:
        return self._calls.work_ms - self._begun_ms

    def _left_ms(self) -> float:
        return self._budget.max_wall_ms - self._wall_ms()

    def _context(self) -> ControlContext:
        return ControlContext(
            intent=self._intent,
            state=self._state,
            evals=self._evals,
            history=tuple(self._steps),
            budget=self._budget,
            step_index=self._index,
            wall_ms=self._wall_ms(),
            spent_cost_usd=self._spent,
            cancel_signal=self._calls.signal,
        )

    def _result(self, ending: Ending) -> ControlRunResult:
        context = self._calls.context
        scored = ending.stopped_by not in ("abort", "runtime-error") and ending.score is None
        return ControlRunResult(
            intent=self._intent,
            passed=ending.passed,
            completed=ending.stopped_by in ("policy", "stop-policy"),
            reason=ending.reason,
            stopped_by=ending.stopped_by,
            stop_cause=ending.cause,
            blocked=ending.cause == "knowledge",
            score=mean_score(self._evals) if scored else ending.score,
            steps=tuple(self._steps),
            final_state=self._state,
            final_evals=self._evals,
            wall_ms=self._wall_ms(),
            spent_cost_usd=self._spent,
            run_id=self._trace.run_id or (None if context is None else context.run_id),
            failure_class=ending.failure_class,
        )


def _cut_message(cut: Cut) -> str:
    return "the action was cancelled" if cut == "cancelled" else "the action ran out of time"
