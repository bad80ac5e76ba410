"""run_agent_task: one task, gated by what it knows, done by an adapter, told to a sink."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Generic, cast

from perdure.agent.adapter import (
    AgentAdapter,
    AgentKnowledgeProvider,
    AgentTaskContext,
    ControlContext,
    KnowledgeHooks,
    answer_of,
    check_methods,
    optional_method,
    resolve,
)
from perdure.agent.calls import Calls, CutShort
from perdure.agent.cancel import CancelSignal
from perdure.agent.control import run_agent_control_loop
from perdure.agent.endings import cut_off, ends_only_the_attempt
from perdure.agent.evals import ControlEvalResult, Emit
from perdure.agent.events import (
    AgentRuntimeEvent,
    AgentRuntimeEventSink,
    AgentTaskStatus,
    ControlEnd,
    ControlStart,
    ControlStepped,
    TaskEnd,
    TaskStart,
)
from perdure.agent.hooks import ControlHooks, ControlOptions
from perdure.agent.knowledge import (
    Answer,
    DataAcquisitionPlan,
    KnowledgeReadinessDecision,
    KnowledgeReadinessReport,
    UserQuestion,
)
from perdure.agent.preflight import Preflight, ReadinessPolicy
from perdure.agent.run_records import EvaluationRunRecord
from perdure.agent.spec import check_task, manifest_of, requirements_of
from perdure.agent.steps import ControlRunResult, ControlStep, Stop, budget_of
from perdure.agent.type_variables import (
    ActionResultT,
    ActionResultT_co,
    ActionT,
    ActionT_co,
    StateT,
    StateT_co,
)
from perdure.agent.words import checked_ids, checked_records
from perdure.core.records import AgentTaskSpec, JsonValue, RunOutcome
from perdure.core.wording import error_text
from perdure.durable.context import DurableContext
from perdure.durable.runner import run_durable
from perdure.observe.credentials import mask_text
from perdure.store.protocol import RunStore

logger = logging.getLogger("perdure.agent")

BLOCKED_PREFIX: Final = "knowledge readiness blocked: "
"""How the reason of a blocked task begins; whether it is blocked says its status."""

_LOOP_FIELDS: Final = tuple(field.name for field in fields(ControlContext))


@dataclass(frozen=True)
class AgentTaskRunResult(Generic[StateT_co, ActionT_co, ActionResultT_co]):
    """What an agent task came to.

    `knowledge` is the report in force at the end, `decision` what the task's policy makes of it.
    `questions` and `acquisition_plans` are those of the first report, put and carried out if
    somebody was there to do it; `open_questions` those that the last one leaves. `sink_errors`
    are the failures of the event sink, which did not disturb the task.
    """

    task: AgentTaskSpec
    status: AgentTaskStatus
    knowledge: KnowledgeReadinessReport
    decision: KnowledgeReadinessDecision
    control: ControlRunResult[StateT_co, ActionT_co, ActionResultT_co]
    questions: tuple[UserQuestion, ...] = ()
    open_questions: tuple[UserQuestion, ...] = ()
    acquisition_plans: tuple[DataAcquisitionPlan, ...] = ()
    user_answers: dict[str, Answer] | None = None
    acquired_evidence_ids: tuple[str, ...] = ()
    run_records: tuple[JsonValue, ...] = ()
    sink_errors: tuple[str, ...] = ()


async def run_agent_task(
    task: AgentTaskSpec,
    adapter: AgentAdapter[StateT, ActionT, ActionResultT],
    *,
    knowledge: AgentKnowledgeProvider | None = None,
    on_event: AgentRuntimeEventSink | None = None,
    signal: CancelSignal | None = None,
    readiness: ReadinessPolicy | None = None,
    control: ControlOptions | None = None,
    durable: tuple[RunStore, str] | DurableContext | None = None,
) -> AgentTaskRunResult[StateT, ActionT, ActionResultT]:
    """Do `task` with `adapter`, once what it needs to know is known, and return how it ended.

    With `durable=(store, run_id)` each call of the user's code is a step of that durable run:
    called again after a crash, the task goes on where it was, and no recorded call is made a
    second time; events are told again, from the first. How it ended is the run's outcome. A
    worker's handler gives its own context instead.

    `signal` ends the task as aborted, but not while it waits for `answers_event`: there a stop of
    the run ends it, or to cancel the call. What the adapter raises becomes part of the result. What
    the provider raises, and `project_run_records`, is raised after the last event; so is UsageError
    for a bad task, adapter, budget or answer, and what `run_durable` raises. A failing sink is
    recorded in the result.
    """
    check_task(task)
    check_methods(adapter, "AgentAdapter", ("observe", "validate", "decide", "act"))
    requirements_of(task)
    budget_of(task.budget)
    given = control or ControlOptions()
    options = replace(given, scenario_id=given.scenario_id or task.id)
    policy = readiness or ReadinessPolicy()

    async def work(context: DurableContext | None) -> AgentTaskRunResult:
        work = _TaskRun(
            task,
            adapter,
            preflight=Preflight(
                task,
                KnowledgeHooks.of(knowledge),
                policy,
                Calls(context, signal, clock=policy.clock),
            ),
            on_event=on_event,
            options=options,
        )
        result = await work.run()
        if context is not None:
            context.set_outcome(outcome_of(result))
        return result

    if not isinstance(durable, tuple):
        return await work(durable)
    store, run_id = durable
    manifest = manifest_of(
        task,
        project_id=options.project_id,
        scenario_id=options.scenario_id,
        variant_id=options.variant_id,
    )
    return (await run_durable(store, run_id=run_id, manifest=manifest, task=work)).result


def outcome_of(result: AgentTaskRunResult) -> RunOutcome:
    """Return what is recorded of a task with its durable run: pass, score and notes."""
    return RunOutcome(
        passed=result.status == "completed",
        score=result.control.score,
        notes=f"{result.status}: {result.control.reason}",
    )


class _TaskRun:
    """One run of a task: the gate of its loop, and the sender of its events."""

    def __init__(
        self,
        task: AgentTaskSpec,
        adapter: AgentAdapter,
        *,
        preflight: Preflight,
        on_event: AgentRuntimeEventSink | None,
        options: ControlOptions,
    ) -> None:
        self._task = task
        self._adapter = adapter
        self._preflight = preflight
        self._on_event = on_event
        self._options = options
        self._sink_errors: list[str] = []

    async def run(self) -> AgentTaskRunResult:
        """Run to the last event, whatever happens before it."""
        await self._emit(TaskStart(self._task))
        try:
            control = await self._control()
            records = await self._run_records(control)
        except Exception as error:
            if not ends_only_the_attempt(error):
                reason = error_text(error)
                await self._emit(TaskEnd(self._task, "failed", reason))
            raise
        status = status_of(control)
        await self._emit(TaskEnd(self._task, status, control.reason))
        return self._result(status, control, records)

    async def _control(self) -> ControlRunResult:
        preflight, budget = self._preflight, budget_of(self._task.budget)
        try:
            await self._emit_all(preflight.run())
        except CutShort:
            preflight.settle_for_requirements()
            return _cancelled_early(self._task)
        await self._emit(ControlStart(self._task, preflight.report))
        control = await run_agent_control_loop(
            self._task.intent,
            self._hooks(),
            budget=budget,
            options=self._options,
            calls=preflight.calls,
            gate=self,
        )
        await self._emit(ControlEnd(self._task, control))
        return control

    # The hooks of the loop.

    def _hooks(self) -> ControlHooks:
        adapter = self._adapter
        should_stop = optional_method(adapter, "should_stop")
        cost_of = optional_method(adapter, "get_action_cost_usd")
        return ControlHooks(
            observe=lambda context: adapter.observe(self._context(context)),
            validate=lambda context: adapter.validate(self._context(context)),
            decide=self._decide,
            act=lambda action, context: adapter.act(action, self._context(context)),
            should_stop=should_stop and (lambda context: should_stop(self._context(context))),
            get_action_cost_usd=cost_of
            and (lambda action, result, context: cost_of(action, result, self._context(context))),
            on_step=self._stepped,
        )

    async def _decide(self, context: ControlContext) -> Any:
        """Ask the adapter; while the gate is shut, only what it does about that."""
        own = self._context(context)
        if not self.is_blocked:
            return await resolve(self._adapter.decide(own))
        ask = optional_method(self._adapter, "on_knowledge_blocked")
        if ask is not None:
            preflight = self._preflight
            return await resolve(ask(own, preflight.open_questions, preflight.open_plans))
        report = self._preflight.report
        reason = f"{BLOCKED_PREFIX}{self._preflight.decision.reason}"
        return Stop(reason, passed=False, score=report.readiness_score)

    async def _stepped(self, step: ControlStep) -> None:
        await self._emit(ControlStepped(self._task, step))

    def _context(self, context: ControlContext) -> AgentTaskContext:
        stand = {name: getattr(context, name) for name in _LOOP_FIELDS}
        return AgentTaskContext(**stand, task=self._task, knowledge=self._preflight.report)

    # The gate of the loop.

    @property
    def is_blocked(self) -> bool:
        return self._preflight.is_blocked

    def evals(self, emit: Emit | None = None) -> Sequence[ControlEvalResult]:
        return (self._preflight.readiness_eval(emit),)

    async def acted(
        self, action: JsonValue, result: JsonValue, context: ControlContext
    ) -> str | None:
        """Look at readiness again if the action has found evidence."""
        ask = optional_method(self._adapter, "get_evidence_ids")
        if ask is None:
            return None
        own = self._context(context)

        async def found() -> tuple[str, ...]:
            ids = await resolve(ask(action, result, own))
            return checked_ids(() if ids is None else ids, "get_evidence_ids")

        called = await self._preflight.calls.call(
            f"evidence:{context.step_index}",
            found,
            timeout_ms=context.budget.max_wall_ms - context.wall_ms,
        )
        if called.cut is not None:
            raise cut_off(called.cut)
        if called.error is not None:
            return f"the evidence of the action is unknown: {called.message}"
        try:
            await self._emit_all(self._preflight.add_evidence(called.value))
        except CutShort:
            raise cut_off("cancelled") from None
        return None

    # Telling.

    async def _emit_all(self, events: AsyncGenerator[AgentRuntimeEvent, None]) -> None:
        async with aclosing(events):
            async for event in events:
                await self._emit(event)

    async def _emit(self, event: AgentRuntimeEvent) -> None:
        if self._on_event is None:
            return
        try:
            await answer_of(self._on_event, event)
        except Exception as error:
            message = error_text(error)
            logger.warning("the sink of a task failed at %s: %s", event.type, mask_text(message))
            self._sink_errors.append(f"{event.type}: {message}")

    async def _run_records(self, control: ControlRunResult) -> tuple[JsonValue, ...]:
        project = optional_method(self._adapter, "project_run_records")
        if project is None:
            return ()
        found = await Calls().value("run_records", lambda: project(control, self._task))
        scenario_id = cast("str", self._options.scenario_id)
        return tuple(_with_scenario(record, scenario_id) for record in checked_records(found))

    def _result(
        self,
        status: AgentTaskStatus,
        control: ControlRunResult,
        records: tuple[JsonValue, ...],
    ) -> AgentTaskRunResult:
        preflight = self._preflight
        return AgentTaskRunResult(
            task=self._task,
            status=status,
            knowledge=preflight.report,
            decision=preflight.decision,
            control=control,
            questions=preflight.questions,
            open_questions=preflight.open_questions,
            acquisition_plans=preflight.acquisition_plans,
            user_answers=preflight.user_answers,
            acquired_evidence_ids=preflight.acquired_evidence_ids,
            run_records=records,
            sink_errors=tuple(self._sink_errors),
        )


def status_of(control: ControlRunResult) -> AgentTaskStatus:
    """Return the status of a task whose loop ended so."""
    if control.stop_cause == "cancelled":
        return "aborted"
    if control.blocked:
        return "blocked"
    return "completed" if control.passed else "failed"


def _cancelled_early(task: AgentTaskSpec) -> ControlRunResult:
    return ControlRunResult(
        intent=task.intent,
        passed=False,
        completed=False,
        reason="the task was cancelled",
        stopped_by="abort",
        stop_cause="cancelled",
        failure_class="cancelled",
    )


def _with_scenario(record: object, scenario_id: str) -> JsonValue:
    """Return a record, in its own form, with the run's scenario id if it names none."""
    if isinstance(record, EvaluationRunRecord):
        return (
            record if record.scenario_id is not None else replace(record, scenario_id=scenario_id)
        )
    if not isinstance(record, Mapping):
        return record
    given = cast("Mapping[str, JsonValue]", record)
    if any(given.get(name) is not None for name in ("scenario_id", "scenarioId")):
        return dict(given)
    return {**given, "scenarioId" if "runId" in given else "scenario_id": scenario_id}
