"""Approvals: what a human is asked before a tool is called, and what becomes of the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

from perdure.agent.tool_schema import problems_of
from perdure.agent.tools import Tool
from perdure.core.records import JsonValue, StepRecord
from perdure.errors import RunNotFoundError, UsageError
from perdure.store.protocol import RunStore

REQUEST_MARK: Final = "approvalRequest"
"""The field of a step's result in which a request stands."""


class ApprovalRequest(NamedTuple):
    """A call that waits for a human. `event` is the key of the event that decides it.

    `asked_at` is ISO text, `timeout_ms` None: it waits for ever.
    """

    event: str
    call: str
    tool: str
    arguments: Mapping[str, JsonValue]
    asked_at: str
    timeout_ms: int | None = None


NotifyApprover = Callable[[ApprovalRequest], Awaitable[object] | object]
"""Tells a human that there is something to decide; plain or async, and may be called twice."""


@dataclass(frozen=True, slots=True)
class Approval:
    """What a human decided; `arguments` None: those that the model gave. `by` says who."""

    approved: bool
    reason: str | None = None
    arguments: Mapping[str, JsonValue] | None = None
    by: str | None = None


async def answer_approval(
    store: RunStore, run_id: str, request: ApprovalRequest | str, approval: Approval
) -> bool:
    """Decide a call of a run, or of a turn by its run id; return whether this was the first answer.

    `request` is the request, or its `event`. The first answer wins for ever. Raises
    RunNotFoundError, and UsageError or NotSerializableError for an answer that is none.
    """
    if type(approval.approved) is not bool:
        raise UsageError(f"approved must be True or False, not {approval.approved!r:.40}")
    if approval.arguments is not None and not approval.approved:
        raise UsageError("a call that is denied has no arguments")
    payload: dict[str, JsonValue] = {"approved": approval.approved}
    if approval.reason is not None:
        payload["reason"] = approval.reason
    if approval.arguments is not None:
        payload["arguments"] = dict(approval.arguments)
    if approval.by is not None:
        payload["by"] = approval.by
    key = request if isinstance(request, str) else request.event
    accepted, _ = await store.emit_event(run_id, key, payload)
    return accepted


class Decided(NamedTuple):
    """Whether this answer was the first, and the payload of the one that counts for ever.

    None counts when the time to decide was over before anybody did.
    """

    accepted: bool
    decision: JsonValue


async def decide(store: RunStore, run_id: str, event: str, approval: Approval) -> Decided:
    """Decide a call for somebody from outside, who may answer only what has been asked.

    Raises RunNotFoundError for a run that is unknown, or has not asked this, and what
    `answer_approval` raises.
    """
    steps = await store.read_steps(run_id)
    if all(request.event != event for request in requests_in(steps)):
        raise RunNotFoundError(f"the run {run_id!r} has not asked to decide {event!r:.80}")
    over = any(step.intent == f"event:{event}" and step.status == "failed" for step in steps)
    accepted = not over and await answer_approval(store, run_id, event, approval)
    decided = await store.load_event(run_id, event)
    return Decided(accepted, None if decided is None else decided.payload)


async def pending_approvals(store: RunStore, run_id: str) -> list[ApprovalRequest]:
    """Return the calls of a run, or of a turn by its run id, that wait for a human, in order."""
    return await pending_in(store, run_id, await store.read_steps(run_id))


async def pending_in(
    store: RunStore, run_id: str, steps: Iterable[StepRecord]
) -> list[ApprovalRequest]:
    """Return the calls of a run with these steps that wait for a human, in order."""
    steps = sorted(steps, key=lambda step: step.step_index)
    answered = {step.intent for step in steps if step.status != "running"}
    return [
        request
        for request in requests_in(steps)
        if f"event:{request.event}" not in answered
        and await store.load_event(run_id, request.event) is None
    ]


def requests_in(steps: Iterable[StepRecord]) -> list[ApprovalRequest]:
    """Return every call that a human was asked about in these steps, decided or not."""
    asked = (_fields(_fields(step.result).get(REQUEST_MARK)) for step in steps)
    return [request_of(found) for found in asked if found]


def request_to_json(request: ApprovalRequest) -> dict[str, JsonValue]:
    """Return a request as it is recorded and shown."""
    return {**request._asdict(), "arguments": dict(request.arguments)}


def request_of(found: Mapping[str, JsonValue]) -> ApprovalRequest:
    """Return a recorded request."""
    fields: dict[str, Any] = {name: found.get(name) for name in ApprovalRequest._fields}
    return ApprovalRequest(**fields)


def approval_of(payload: JsonValue, tool: Tool, *, arguments: Mapping[str, Any]) -> Approval:
    """Return the decision that an event holds. One that cannot be read, or carried out, is a no.

    `arguments` are those of the model, from which a human may have changed some or all.
    """
    found = _fields(payload)
    approved: object = found.get("approved")
    reason, by = found.get("reason"), found.get("by")
    by = by if isinstance(by, str) else None
    reason = reason if isinstance(reason, str) else None
    if not isinstance(approved, bool):
        return Approval(False, "the decision could not be read", by=by)
    given = found.get("arguments")
    if not approved or given is None or given == arguments:
        return Approval(approved, reason, by=by)
    problems = problems_of(given, tool.schema)
    if problems:
        told = f"it was approved with arguments that do not fit: {'; '.join(problems)}"
        return Approval(False, told, by=by)
    return Approval(True, reason, _fields(given), by=by)


def _fields(value: JsonValue) -> dict[str, JsonValue]:
    return cast("dict[str, JsonValue]", value) if isinstance(value, dict) else {}
