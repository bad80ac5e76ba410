"""Running agents durably: until they answer, asking a human in between."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from agents import Agent, RunConfig, Runner, RunResult, RunResultStreaming, RunState
from agents.items import ToolApprovalItem, TResponseInputItem

from perdure.agent.adapter import resolve
from perdure.agent.calls import Recording
from perdure.agent.tool_approval import (
    REQUEST_MARK,
    ApprovalRequest,
    NotifyApprover,
    request_of,
    request_to_json,
)
from perdure.agent.tool_calling import DECISION_FRAME, REQUEST_FRAME
from perdure.core import frames
from perdure.core.effects import iso_time, system_clock
from perdure.core.frames import Frame
from perdure.core.records import Effect, JsonValue, Retry
from perdure.durable.context import DurableContext
from perdure.engines.openai_agents.agents import AnyAgent, RecordedAgents
from perdure.engines.openai_agents.recording import Recorder, arguments_of
from perdure.errors import AwaitEventTimeoutError, UsageError

Given = str | list[TResponseInputItem]
Asked = RunResult | RunResultStreaming


async def run_agent(
    context: DurableContext,
    agent: AnyAgent,
    input: Given,
    *,
    name: str = "agents",
    effects: Mapping[str, Effect] | None = None,
    notify: NotifyApprover | None = None,
    approval_timeout_ms: int | None = None,
    **options: Any,
) -> RunResult:
    """Run an agent within a durable run, and return the SDK's result.

    Each call of a model (of this agent or of those that it hands over to) and of a function tool
    is a step, and so is what a guardrail says: recorded once, never made again once it is. The
    SDK itself runs again in every attempt, with hooks, filters of handoffs and the like.

    A tool that needs an approval waits for a human: `pending_approvals` finds what is asked,
    `answer_approval` decides it, `notify` is told at least once. Nobody in `approval_timeout_ms`
    (None: for ever) is a no. `effects` says of tools by name how often their calls may happen;
    without, they are "idempotent". `name` stands in the records, and tells runs of agents within
    one durable run apart. `options` are those of `Runner.run`, but for `session`.

    Raises UsageError for what is no context or no agent and for agents whose calls could not be
    recorded, StepFailedError when a model does not answer, and what the SDK raises, for a
    guardrail, say.
    """
    if not hasattr(context, "step"):
        raise UsageError(
            f"run_agent records in the context that a task of run_durable gets, not {context!r:.60}"
            ": outside of one use the SDK's Runner.run"
        )
    if not isinstance(cast("object", agent), Agent):
        raise UsageError(f"run_agent runs an Agent of the SDK, Agent(name=…), not {agent!r:.60}")
    recorder = Recorder(context, name, effects or {})
    running = AgentRun(recorder, agent, options, notify, approval_timeout_ms)
    result: list[RunResult] = []

    async def run(given: Any, options: Mapping[str, Any]) -> RunResult:
        result[:] = [await Runner.run(running.agent, given, **options)]
        return result[0]

    async for _ in running.answer(input, run):
        pass
    return result[0]


class AgentRun:
    """One run of agents, with the humans that it asks."""

    def __init__(
        self,
        recorder: Recorder,
        agent: AnyAgent,
        options: Mapping[str, Any],
        notify: NotifyApprover | None,
        approval_timeout_ms: int | None,
    ) -> None:
        if options.get("session") is not None:
            raise UsageError(
                "a session is read and written anew by each attempt: give `run_agent` the items, "
                "or `AgentTurns` the store"
            )
        config: RunConfig = options.get("run_config") or RunConfig()
        self.agent = RecordedAgents(recorder, config).of(agent)
        self._recorder = recorder
        # The model of the config is asked within those that record, not in their place.
        self._options = {**options, "run_config": replace(config, model=None)}
        self._notify = notify
        self._timeout_ms = approval_timeout_ms
        self._asked = 0

    async def answer(
        self, given: Given, run: Callable[[Any, Mapping[str, Any]], Awaitable[Asked]]
    ) -> AsyncIterator[Frame]:
        """Run until nobody is to be asked any more; yield what readers see of the asking."""
        try:
            result = await run(given, self._options)
            await self._recorder.settle()
            while result.interruptions:
                state = result.to_state()
                async for frame in self._ask(state, result.interruptions):
                    yield frame
                options = {
                    each: self._options[each]
                    for each in self._options
                    if each not in ("context", "previous_response_id", "conversation_id")
                }
                result = await run(state, options)
                await self._recorder.settle()
        finally:
            self._recorder.drop()

    async def _ask(
        self, state: RunState[Any, Any], asked: Sequence[ToolApprovalItem]
    ) -> AsyncIterator[Frame]:
        """Ask for all, then wait for one after the other: they are decided in any order."""
        recorder, requests = self._recorder, list[ApprovalRequest]()
        for item in asked:
            self._asked += 1
            found = await recorder.run.step(
                f"{recorder.name}: approval request {self._asked}",
                self._request_body(item, f"approval:{recorder.name}:{self._asked}"),
                retry=Retry(),
            )
            requests.append(request_of(found[REQUEST_MARK]))
            yield frames.data(REQUEST_FRAME, found[REQUEST_MARK])
        approved: list[tuple[str, str]] = []
        for item, request in zip(asked, requests, strict=True):
            decision = await _decided(recorder.run, request)
            if decision["approved"]:
                state.approve(item)
                approved.append((request.tool, request.call))
                if decision.get("arguments") is not None:
                    recorder.arguments[request.call] = json.dumps(decision["arguments"])
            else:
                told = f": {decision['reason']}" if decision.get("reason") else ""
                state.reject(item, rejection_message=f"a human has denied this call{told}")
            yield frames.data(
                DECISION_FRAME,
                {
                    "call": request.call,
                    "approved": decision["approved"],
                    "reason": decision.get("reason"),
                    "by": decision.get("by"),
                },
            )
        recorder.plan_again(approved)

    def _request_body(
        self, item: ToolApprovalItem, event: str
    ) -> Callable[[], Awaitable[JsonValue]]:
        async def body() -> JsonValue:
            request = ApprovalRequest(
                event,
                item.call_id or "",
                item.tool_name or "",
                arguments_of(item.arguments or ""),
                iso_time(system_clock()),
                self._timeout_ms,
            )
            if self._notify is not None:
                await resolve(self._notify(request))
            return {REQUEST_MARK: request_to_json(request)}

        return body


async def _decided(run: Recording, request: ApprovalRequest) -> dict[str, Any]:
    """Return what a human decided. What cannot be read is a no, and so is nobody in time."""
    try:
        payload: Any = await run.await_event(request.event, timeout_ms=request.timeout_ms)
    except AwaitEventTimeoutError:
        return {"approved": False, "reason": "nobody decided in time"}
    found = cast("dict[str, Any]", payload) if isinstance(payload, dict) else {}
    if isinstance(found.get("approved"), bool):
        return found
    return {"approved": False, "reason": "the decision could not be read"}
