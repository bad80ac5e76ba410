"""What an agent asks of humans in the middle of its work: approvals of calls, and input."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple, cast

from pydantic_ai import DeferredToolRequests, DeferredToolResults, ToolApproved, ToolDenied
from pydantic_ai.durable_exec import ExternalEventError, ExternalEventWaiter
from pydantic_ai.messages import ToolCallPart

from perdure.agent.adapter import resolve
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
from perdure.core.records import JsonValue, Retry
from perdure.engines.pydantic_ai.shown import plain
from perdure.engines.pydantic_ai.work import AgentWork
from perdure.errors import AwaitEventTimeoutError


class Approving(NamedTuple):
    """How the calls of an agent that a human must approve are asked about."""

    agent: str
    notify: NotifyApprover | None
    timeout_ms: int | None

    async def decided(
        self, work: AgentWork, requests: DeferredToolRequests
    ) -> DeferredToolResults | None:
        """Ask about all calls that need an approval, and wait for one answer after the other."""
        if not requests.approvals:
            return None
        asked = [await self._ask(work, call) for call in requests.approvals]
        decisions = [await _decision(work, request) for request in asked]
        answers = {
            request.call: _answer(decision)
            for request, decision in zip(asked, decisions, strict=True)
        }
        by = {
            request.call: decision["by"]
            for request, decision in zip(asked, decisions, strict=True)
            if isinstance(decision.get("by"), str)
        }
        return requests.build_results(approvals=answers, answered_by=by)

    async def _ask(self, work: AgentWork, call: ToolCallPart) -> ApprovalRequest:
        number = work.number_of(self.agent, call.tool_call_id)
        found = await work.run.step(
            f"{self.agent}__approval_request #{number}",
            self._request_body(call, f"approval:{self.agent}:{number}"),
            retry=Retry(),
        )
        await _show(work, frames.data(REQUEST_FRAME, found[REQUEST_MARK]))
        return request_of(found[REQUEST_MARK])

    def _request_body(self, call: ToolCallPart, event: str) -> Callable[[], Awaitable[JsonValue]]:
        async def body() -> JsonValue:
            arguments = cast("Mapping[str, JsonValue]", plain(call.args_as_dict()))
            asked_at = iso_time(system_clock())
            request = ApprovalRequest(
                event, call.tool_call_id, call.tool_name, arguments, asked_at, self.timeout_ms
            )
            if self.notify is not None:
                await resolve(self.notify(request))
            return {REQUEST_MARK: request_to_json(request)}

        return body


class EventWaiter(ExternalEventWaiter):
    """Waits for input from outside as for an event of the run: the token names both.

    `run_id, _, key = token.partition("/")`, then `store.emit_event(run_id, key, payload)`.
    """

    def __init__(self, work: AgentWork, agent: str) -> None:
        self._work = work
        self._agent = agent

    async def wait(
        self,
        name: str,
        *,
        ask: Callable[[str], Awaitable[Any]],
        timeout: timedelta | None,  # noqa: ASYNC109 - the name is Pydantic AI's
    ) -> Any:
        work = self._work
        number = work.next_number(f"{self._agent} input")
        key = f"input:{self._agent}:{number}"
        intent = f"{self._agent}__ask:{name} #{number}"
        answer = await work.run.step(intent, lambda: ask(f"{work.run_id}/{key}"))
        if answer is not None:
            return answer
        timeout_ms = None if timeout is None else int(timeout.total_seconds() * 1_000)
        try:
            return await work.run.await_event(key, timeout_ms=timeout_ms)
        except AwaitEventTimeoutError as error:
            raise ExternalEventError(f"nobody answered {name!r} in {timeout}") from error


async def _decision(work: AgentWork, request: ApprovalRequest) -> Mapping[str, Any]:
    """Return what a human decided. What cannot be read is a no, and so is nobody in time."""
    try:
        payload = await work.run.await_event(request.event, timeout_ms=request.timeout_ms)
    except AwaitEventTimeoutError:
        payload = {"approved": False, "reason": "nobody decided in time"}
    found: Mapping[str, Any] = {}
    if isinstance(payload, Mapping):
        found = cast("Mapping[str, Any]", payload)
    if not isinstance(found.get("approved"), bool):
        found = {"approved": False, "reason": "the decision could not be read"}
    decided: dict[str, JsonValue] = {
        "call": request.call,
        "approved": found["approved"],
        "reason": found.get("reason"),
        "by": found.get("by"),
    }
    await _show(work, frames.data(DECISION_FRAME, decided))
    return found


def _answer(decision: Mapping[str, Any]) -> ToolApproved | ToolDenied:
    """Return a decision as Pydantic AI has it; it checks arguments that were changed itself."""
    if decision["approved"]:
        return ToolApproved(override_args=decision.get("arguments"))
    reason = decision.get("reason")
    return ToolDenied("a human has denied this call" + (f": {reason}" if reason else ""))


async def _show(work: AgentWork, frame: Frame) -> None:
    if work.showing is not None:
        await work.showing.show(frame)
