"""Carrying out what one answer of a model asks for: approvals, calls at once, their outcomes."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from perdure.agent.adapter import resolve
from perdure.agent.calls import Recording
from perdure.agent.tool_approval import (
    REQUEST_MARK,
    Approval,
    ApprovalRequest,
    NotifyApprover,
    approval_of,
    request_of,
    request_to_json,
)
from perdure.agent.tool_limits import free_at_ms
from perdure.agent.tools import Tool, ToolCall, ToolOutcome, unfinished_outcome
from perdure.core import frames, observing
from perdure.core.effects import iso_time, monotonic_ms, system_clock
from perdure.core.frames import Frame
from perdure.core.observing import Told
from perdure.core.records import Effect, JsonValue, Retry
from perdure.durable.scope import current_step
from perdure.errors import AwaitEventTimeoutError, StepFailedError, UnfinishedStepError
from perdure.observe.credentials import shown

REQUEST_FRAME: Final = "tool_approval_request"
"""The name of the `data` frame that says what a human is asked."""
DECISION_FRAME: Final = "tool_approval"
"""The name of the `data` frame that says what a human decided."""


@dataclass(slots=True)
class Planned:
    """One call: what it is to be, and what it came to."""

    number: str
    call: Mapping[str, Any]
    tool: Tool | None
    arguments: dict[str, JsonValue]
    outcome: ToolOutcome | None = None
    note: str | None = None
    duration_ms: float | None = None
    """How long the call took; None: it has not ended."""

    @property
    def effect(self) -> Effect:
        """What its step declares; one that only tells what is unknown may be begun again."""
        if self.tool is None or self.tool.on_unfinished == "tell":
            return "idempotent"
        return self.tool.effect


class ToolBatch:
    """The calls of one answer, planned: what cannot be called has its outcome already.

    `name` is that of the loop, `number` that of the answer; `limit_ms` is what is left of the
    loop's time, `at_once_max` how many calls are made at once.
    """

    def __init__(
        self,
        run: Recording,
        tools: Mapping[str, Tool],
        calls: Sequence[Mapping[str, Any]],
        *,
        name: str,
        number: int,
        limit_ms: float | None,
        at_once_max: int | None,
        notify: NotifyApprover | None,
    ) -> None:
        self.planned = [
            _plan(tools, call, f"{number}.{place}") for place, call in enumerate(calls, 1)
        ]
        self.work_ms = 0.0
        """How long the calls took that were made, those at once as long as the longest."""
        self._run = run
        self._name = name
        self._limit_ms = limit_ms
        self._at_once_max = at_once_max
        self._notify = notify

    async def perform(self) -> AsyncIterator[Frame]:
        """Carry all out, and yield what readers see of it; then every call has its outcome.

        Calls that a human decides come last, so that nothing else waits for them.
        """
        asking = [one for one in self.planned if await _asks_first(one)]
        async for frame in self._round([one for one in self.planned if one not in asking]):
            yield frame
        if asking:
            async for frame in self._ask(asking):
                yield frame
            async for frame in self._round(asking):
                yield frame

    async def _round(self, planned: Sequence[Planned]) -> AsyncIterator[Frame]:
        for one in planned:
            # The step says whether the call may be made again. A frame that said so too would
            # fail a turn that was interrupted before the tool began.
            yield frames.tool_call(
                one.call["id"],
                one.call["name"],
                one.arguments if one.tool is not None else one.call["arguments"],
                effect="idempotent",
            )
        await self._call_at_once([one for one in planned if one.outcome is None])
        for one in planned:
            assert one.outcome is not None
            yield frames.tool_result(one.call["id"], one.outcome.value, error=one.outcome.error)

    async def _call_at_once(self, planned: Sequence[Planned]) -> None:
        """Make the calls beside each other; all end before the first failure is raised."""
        ends = await self._ends(planned)
        for end in ends:
            if isinstance(end, UnfinishedStepError):
                raise end
        for one, end in zip(planned, ends, strict=True):
            if isinstance(end, StepFailedError):
                told = f"the tool {one.call['name']!r} failed"
                one.outcome = ToolOutcome.failed("tool_failed", told)
            else:
                one.outcome = ToolOutcome(value=end.get("value"), error=end.get("error"))
        self.work_ms += self._free_ms(planned, len(planned))[-1]

    async def _ends(self, planned: Sequence[Planned]) -> list[Any]:
        """Return the result or the failure of each call, in order; no more run than may.

        All positions are taken first: what one call came to must not look as if the loop had gone
        on behind it. Steps are begun in the order of the calls, each when one before it has ended:
        one that waits has not begun, so a crash leaves nothing unfinished of it.
        """
        ends: list[Any] = [None] * len(planned)
        steps = [self._step(planned, place) for place in range(len(planned))]
        waiting = iter(enumerate(planned))

        async def lane() -> None:
            for place, one in waiting:
                try:
                    ends[place] = end = await steps[place]
                    one.duration_ms = end["durationMs"]
                except StepFailedError as failure:
                    ends[place], one.duration_ms = failure, 0.0
                except BaseException:
                    # It ends the attempt: nothing more is begun.
                    for _ in waiting:
                        pass
                    raise

        lanes = [lane() for _ in planned[: self._at_once_max]]
        try:
            failures = await asyncio.gather(*lanes, return_exceptions=True)
        finally:
            for step in steps:
                _drop(step)
        for failure in failures:
            if failure is not None:
                raise failure
        return ends

    def _step(self, planned: Sequence[Planned], place: int) -> Awaitable[Any]:
        one = planned[place]
        return self._run.step(
            f"{self._name}: {one.call['name']} {one.number}",
            self._body(one, partial(self._left_ms, planned, place)),
            kind="tool",
            effect=one.effect,
        )

    def _free_ms(self, planned: Sequence[Planned], count: int) -> list[float]:
        """Return when each place is free behind the first `count` calls, by their records alone."""
        durations_ms = [one.duration_ms for one in planned[:count]]
        return free_at_ms(durations_ms, self._at_once_max or max(1, len(planned)))

    def _left_ms(self, planned: Sequence[Planned], place: int) -> float | None:
        """Return how long the call at this place may take: others may have had to end first."""
        if self._limit_ms is None:
            return None
        return self._limit_ms - self.work_ms - self._free_ms(planned, place)[0]

    def _body(
        self, one: Planned, left_ms: Callable[[], float | None]
    ) -> Callable[[], Awaitable[JsonValue]]:
        tool = one.tool
        assert tool is not None

        async def body() -> JsonValue:
            step, begun_ms = current_step(), monotonic_ms()
            call = ToolCall(one.call["id"], tool.name, step.idempotency_key, step.tries)
            observing.tell(Told(tool=tool.name, call=call.id))
            limit_ms = left_ms()
            if step.tries > 1 and tool.effect == "at_most_once" and tool.on_unfinished == "tell":
                outcome = unfinished_outcome(tool.name)
            elif limit_ms is not None and limit_ms <= 0:
                told = f"the tool {tool.name!r} was not called, since the time is over"
                outcome = ToolOutcome.failed("not_called", told)
            else:
                outcome = await tool.perform(one.arguments, call, limit_ms=limit_ms)
            made: dict[str, JsonValue] = {"durationMs": round(monotonic_ms() - begun_ms, 3)}
            if outcome.error is not None:
                observing.tell(Told(error=outcome.error["code"]))
                return {**made, "error": dict(outcome.error)}
            return {**made, "value": outcome.value}

        return body

    # Asking a human.

    async def _ask(self, planned: Sequence[Planned]) -> AsyncIterator[Frame]:
        """Ask all, then wait for one after the other: they are decided in any order."""
        requests: list[ApprovalRequest] = []
        for one in planned:
            found = await self._run.step(
                f"{self._name}: approval request {one.number}",
                self._request_body(one),
                retry=Retry(),
            )
            requests.append(request_of(found[REQUEST_MARK]))
            yield frames.data(REQUEST_FRAME, shown(found[REQUEST_MARK]))
        for one, request in zip(planned, requests, strict=True):
            approval = await self._decision(one, request)
            self._apply(approval, one)
            decided: dict[str, JsonValue] = {
                "call": request.call,
                "approved": approval.approved,
                "reason": approval.reason,
                "by": approval.by,
            }
            yield frames.data(DECISION_FRAME, decided)

    def _request_body(self, one: Planned) -> Callable[[], Awaitable[JsonValue]]:
        async def body() -> JsonValue:
            assert one.tool is not None
            request = ApprovalRequest(
                f"approval:{self._name}:{one.number}",
                one.call["id"],
                one.tool.name,
                one.arguments,
                iso_time(system_clock()),
                one.tool.approval_timeout_ms,
            )
            if self._notify is not None:
                await resolve(self._notify(request))
            return {REQUEST_MARK: request_to_json(request)}

        return body

    async def _decision(self, one: Planned, request: ApprovalRequest) -> Approval:
        assert one.tool is not None
        try:
            payload = await self._run.await_event(request.event, timeout_ms=request.timeout_ms)
        except AwaitEventTimeoutError:
            return Approval(False, "nobody decided in time")
        return approval_of(payload, one.tool, arguments=one.arguments)

    def _apply(self, approval: Approval, one: Planned) -> None:
        if not approval.approved:
            told = "a human has denied this call"
            if approval.reason:
                told = f"{told}: {approval.reason}"
            one.outcome = ToolOutcome.failed("denied", told)
        elif approval.arguments is not None:
            one.arguments = dict(approval.arguments)
            changed = json.dumps(one.arguments, ensure_ascii=False)
            one.note = f"a human has changed the arguments to {changed}"
            if approval.reason:
                one.note = f"{one.note}: {approval.reason}"


def _drop(step: Awaitable[Any]) -> None:
    """Forget a step that nobody has begun; one that has ended is left as it is."""
    if inspect.iscoroutine(step):
        step.close()


def _plan(tools: Mapping[str, Tool], call: Mapping[str, Any], number: str) -> Planned:
    tool = tools.get(call["name"])
    if tool is None:
        known = ", ".join(tools)
        told = f"there is no tool {call['name']!r:.80}; there are: {known}"
        return Planned(number, call, None, {}, ToolOutcome.failed("unknown_tool", told))
    arguments: Any = call["arguments"]
    problem = tool.problem_of(arguments)
    if problem is not None:
        told = f"the tool {tool.name!r} was not called: {problem}"
        return Planned(number, call, None, {}, ToolOutcome.failed("bad_arguments", told))
    return Planned(number, call, tool, dict(arguments))


async def _asks_first(one: Planned) -> bool:
    if one.outcome is not None or one.tool is None:
        return False
    return await one.tool.asks_first(one.arguments)
