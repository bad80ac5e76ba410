"""What a client sees of calls that wait for a human, and of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from perdure.agent.tool_approval import Approval, Decided, pending_approvals, requests_in
from perdure.core.records import JsonValue, RunRecord
from perdure.observe.credentials import as_asked, shown
from perdure.store.protocol import RunStore
from perdure.web.bodies import Decision


async def approvals_view(store: RunStore, run: RunRecord) -> dict[str, JsonValue]:
    """Return the calls of a turn that wait for a human, in the order in which they were asked."""
    pending = await pending_approvals(store, run.run_id)
    return {
        "approvals": [
            {
                "event": request.event,
                "call": request.call,
                "tool": request.tool,
                "arguments": shown(dict(request.arguments)),
                "askedAt": request.asked_at,
                "timeoutMs": request.timeout_ms,
            }
            for request in pending
        ]
    }


async def approval_of(store: RunStore, run: RunRecord, decision: Decision, *, by: str) -> Approval:
    """Return what a client decides, in its name.

    What it was shown as `[redacted]`, and gives back so among changed arguments, is what it was.
    """
    given = decision.arguments
    if given is not None:
        for request in requests_in(await store.read_steps(run.run_id)):
            if request.event == decision.event:
                whole = as_asked(dict(given), dict(request.arguments))
                given = cast("Mapping[str, JsonValue]", whole)
    return Approval(decision.approved, decision.reason, given, by)


def decided_view(decided: Decided) -> dict[str, JsonValue]:
    """Return what became of an answer."""
    return {"accepted": decided.accepted, "decision": shown(decided.decision)}
