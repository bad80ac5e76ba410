"""The trace of one control loop: what it tells its trace store, if it has one, and what of that."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeAlias, cast
from weakref import WeakKeyDictionary

from perdure.agent.calls import Calls
from perdure.agent.evals import ControlEvalResult, mean_score
from perdure.agent.hooks import ControlOptions
from perdure.agent.steps import (
    ControlBudget,
    ControlDecision,
    ControlRunResult,
    ControlStep,
)
from perdure.core.effects import epoch_ms, new_uuid, system_clock
from perdure.core.jsonvalue import encode_value
from perdure.core.limits import VALUE_BYTES_MAX
from perdure.core.records import JsonValue
from perdure.core.wire import to_wire
from perdure.core.wording import error_text
from perdure.durable.context import DurableContext
from perdure.durable.traces import trace_id
from perdure.errors import NotSerializableError, PerdureError
from perdure.observe.credentials import mask_text
from perdure.observe.sanitize import sanitize_event
from perdure.observe.trace import TraceEvent
from perdure.observe.trace_records import (
    TraceBudgetEntry,
    TraceOutcome,
    TraceRun,
    TraceSpan,
)
from perdure.observe.trace_store import TraceStore

SCENARIO_ID: Final = "agent-control-loop"
"""The scenario of a loop that is told none."""

INTENT_CHARACTERS_MAX: Final = 120
PAYLOAD_BYTES_MAX: Final = VALUE_BYTES_MAX // 2
"""What an action or a result may have; the rest is left to what a span has beside it."""
WRITE_MS: Final = 5_000
"""How long a loop waits for its trace store; one that does not answer is told nothing more."""

Write = Callable[[TraceStore], Awaitable[None]]
P = ParamSpec("P")
Tell: TypeAlias = Callable[Concatenate["LoopTrace", P], Coroutine[Any, Any, None]]

_traced: Final[WeakKeyDictionary[DurableContext, int]] = WeakKeyDictionary()
"""How many loops an attempt at a durable run has begun to trace."""


def noted(method: Tell[P]) -> Tell[P]:
    """Return the method of a trace so that its failure, of whatever kind, stops no loop."""

    @wraps(method)
    async def tell(self: LoopTrace, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            await method(self, *args, **kwargs)
        except Exception as error:
            self.note(error_text(error))

    return tell


class LoopTrace:
    """Tells a trace store of one loop; without a store it does nothing.

    What it tells is what the options of the loop let out: `sanitize` decides, as of events.
    Ids and times come from what a durable run has recorded, so that each attempt tells the same.
    A failure, of the store or of what is told, goes to `note`, and never further.
    """

    def __init__(
        self,
        intent: str,
        budget: ControlBudget,
        options: ControlOptions,
        *,
        calls: Calls,
        note: Callable[[str], None],
    ) -> None:
        self.run_id: str | None = None
        self._intent = intent
        self._budget = budget
        self._options = options
        self._calls = calls
        self.note = note
        self._store: TraceStore | None = options.trace_store
        self._owed: deque[Write] = deque()
        self._opening: dict[str, JsonValue] = {}
        self._emitted: tuple[int, dict[str, JsonValue] | None] = 0, None
        if self._store is not None:
            self.run_id = _run_id_of(calls.context)

    @noted
    async def begin(self) -> None:
        """Begin the run of the trace."""
        if self.run_id is None:
            return
        budget, options = self._budget, self._options
        tags = {
            "intent": mask_text(self._intent[:INTENT_CHARACTERS_MAX]),
            "maxSteps": str(budget.max_steps),
        }
        if budget.max_cost_usd is not None:
            tags["maxCostUsd"] = format(budget.max_cost_usd, ".15g")
        run = TraceRun(
            run_id=self.run_id,
            scenario_id=options.scenario_id or SCENARIO_ID,
            started_at=self._now_ms(),
            project_id=options.project_id,
            variant_id=options.variant_id,
            layer="meta",
            tags=tags,
        )
        await self._tell(lambda store: store.append_run(run))

    def emit(self, kind: str, payload: dict[str, JsonValue]) -> None:
        """Tell of an event with the next thing that is told; again the same is no news."""
        if self.run_id is None or payload == self._emitted[1]:
            return
        number = self._emitted[0] + 1
        self._emitted = number, payload
        decision = {"reason": payload.get("reason")}
        left = sanitize_event(
            {"type": "readiness_end", "decision": decision}, self._options.telemetry
        )
        event = TraceEvent(
            event_id=f"{self.run_id}:emitted:{number}",
            run_id=self.run_id,
            kind=cast("Any", kind),
            timestamp=self._now_ms(),
            payload={**payload, **cast("dict[str, Any]", left["decision"])},
        )
        self._owed.append(lambda store: store.append_event(event))

    @noted
    async def judge(self, look: int, evals: Sequence[ControlEvalResult]) -> None:
        """Tell of the evals of a look at the state: the first one, or that behind a step."""
        if self.run_id is None:
            return
        left = cast("list[dict[str, Any]]", self._left(evalsAfter=to_wire(evals))["evalsAfter"])
        for number, (judged, kept) in enumerate(zip(evals, left, strict=True)):
            await self._append_span(self._verdict(look, number, judged, kept))

    def _verdict(
        self, look: int, number: int, judged: ControlEvalResult, kept: dict[str, Any]
    ) -> TraceSpan:
        assert self.run_id is not None
        default = 1.0 if judged.passed else 0.0
        return TraceSpan(
            span_id=f"{self.run_id}:judge:{look}:{number}",
            run_id=self.run_id,
            kind="judge",
            name=f"control-eval/{kept['id']}",
            started_at=self._now_ms(),
            ended_at=self._now_ms(),
            status="ok",
            judge_id="objective-validator" if judged.objective else "subjective-judge",
            target_span_id=self._step_id(look - 1) if look else self.run_id,
            dimension=kept["id"],
            score=default if judged.score is None else judged.score,
            rationale=kept.get("detail"),
            evidence=kept.get("evidence"),
            attributes={
                "phase": f"step-{look - 1}" if look else "initial",
                **{
                    name: kept[name] for name in ("passed", "severity", "objective") if name in kept
                },
            },
        )

    @noted
    async def act(self, index: int, decision: ControlDecision) -> None:
        """Begin the span of a step: its action is about to be done."""
        if self.run_id is None:
            return
        left = self._left(decision=to_wire(decision))
        self._opening = {"decision": left.get("reason", left.get("decisionType"))}
        span = TraceSpan(
            span_id=self._step_id(index),
            run_id=self.run_id,
            kind="tool",
            name=f"control-step-{index}",
            started_at=self._now_ms(),
            tool_name="agent-control-action",
            args=_plain(left.get("action")),
            attributes=self._opening,
        )
        await self._append_span(span)

    @noted
    async def spend(self, index: int, spent_usd: float) -> None:
        """Tell how the budget of money stands, if there is one."""
        limit = self._budget.max_cost_usd
        if self.run_id is None or limit is None:
            return
        entry = TraceBudgetEntry(
            run_id=self.run_id,
            dimension="usd",
            limit=limit,
            consumed=spent_usd,
            remaining=max(0.0, limit - spent_usd),
            breached=spent_usd >= limit,
            timestamp=self._now_ms(),
            span_id=self._step_id(index),
        )
        await self._tell(lambda store: store.append_budget_entry(entry))
        if entry.breached:
            event = TraceEvent(
                event_id=f"{self.run_id}:breach:{index}",
                run_id=self.run_id,
                kind="budget_breach",
                timestamp=entry.timestamp,
                payload={"dimension": "usd", "limit": limit, "consumed": spent_usd},
                span_id=entry.span_id,
            )
            await self._tell(lambda store: store.append_event(event))

    @noted
    async def end_step(self, step: ControlStep, *, broken: str | None, spent_usd: float) -> None:
        """End the span of a step; `broken` says what broke the loop off in it."""
        outcome = step.action_outcome
        if self.run_id is None or outcome is None:
            return
        failure = broken if outcome.ok else outcome.error
        left = self._left(actionOutcome={**to_wire(outcome), "error": failure})
        patch = {
            "started_at": epoch_ms(step.started_at),
            "ended_at": epoch_ms(step.ended_at),
            "status": "ok" if failure is None else "error",
            "error": left.get("actionError"),
            "result": _plain(left.get("result")),
            "latency_ms": outcome.duration_ms,
            "attributes": {
                **self._opening,
                **_given(
                    actionCostUsd=outcome.cost_usd,
                    spentCostUsd=spent_usd,
                    scoreBefore=mean_score(step.evals_before),
                    scoreAfter=mean_score(step.evals_after),
                ),
            },
        }
        await self._tell(lambda store: store.update_span(self._step_id(step.index), patch))

    @noted
    async def end(self, result: ControlRunResult) -> None:
        """End the run of the trace as the loop has ended."""
        if self.run_id is None:
            return
        cancelled = result.stop_cause == "cancelled"
        event = sanitize_event(
            {"type": "control_end", "control": {"reason": result.reason}}, self._options.telemetry
        )
        patch = {
            "ended_at": self._now_ms(),
            "status": "aborted" if cancelled else "completed" if result.passed else "failed",
            "outcome": TraceOutcome(
                passed=result.passed,
                score=result.score,
                failure_class=result.failure_class,
                notes=cast("dict[str, Any]", event["control"])["reason"],
            ),
        }
        await self._update(patch)

    @noted
    async def abandon(self) -> None:
        """End the run of the trace: whoever runs the loop is cancelled, and nobody goes on."""
        if self.run_id is None or self._calls.context is not None:
            return
        outcome = TraceOutcome(passed=False, failure_class="cancelled")
        await self._update({"ended_at": self._now_ms(), "status": "aborted", "outcome": outcome})

    async def _update(self, patch: dict[str, Any]) -> None:
        run_id = cast("str", self.run_id)
        await self._tell(lambda store: store.update_run(run_id, patch))

    async def _append_span(self, span: TraceSpan) -> None:
        await self._tell(lambda store: store.append_span(span))

    async def _tell(self, write: Write) -> None:
        """Write to the store, behind what it could not take before; give up one that is silent."""
        store = self._store
        if store is None:
            return
        self._owed.append(write)
        limit = asyncio.timeout(WRITE_MS / 1_000)
        try:
            async with limit:
                await self._pay(store)
        except TimeoutError:
            self._store = None
            self.note(f"the trace store was silent for {WRITE_MS} ms, and is told no more")

    async def _pay(self, store: TraceStore) -> None:
        while self._owed:
            try:
                await self._owed[0](store)
            except Exception as error:
                self.note(error_text(error))
                if _may_pass(error):
                    return
            self._owed.popleft()

    def _left(self, **step: JsonValue) -> dict[str, JsonValue]:
        """Return what may leave of a part of a step."""
        event = sanitize_event({"type": "control_step", "step": step}, self._options.telemetry)
        return cast("dict[str, JsonValue]", event["step"])

    def _step_id(self, index: int) -> str:
        return f"{self.run_id}:step:{index}"

    def _now_ms(self) -> int:
        return self._calls.now_ms or system_clock()


def _may_pass(error: Exception) -> bool:
    """Return whether the same write may succeed later."""
    return error.retryable if isinstance(error, PerdureError) else isinstance(error, OSError)


def _plain(value: object) -> JsonValue:
    """Return an action or a result as a store can keep it: what it cannot is called by its type."""
    try:
        encode_value(value, bytes_max=PAYLOAD_BYTES_MAX)
    except NotSerializableError:
        return f"a {type(value).__qualname__}"
    return value


def _given(**values: JsonValue) -> dict[str, JsonValue]:
    return {name: value for name, value in values.items() if value is not None}


def _run_id_of(context: DurableContext | None) -> str:
    """Return the id of a trace: that of the durable run, with a number behind its first loop."""
    if context is None:
        return new_uuid()
    number = _traced[context] = _traced.get(context, 0) + 1
    return trace_id(context.run_id, number)
