"""What a client sees of calls that wait for a human, and of an answer."""

from __future__ import annotations

from perdure.agent.tool_approval import Approval, Decided, pending_approvals
from perdure.core.records import JsonValue, RunRecord
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
                "arguments": dict(request.arguments),
                "askedAt": request.asked_at,
                "timeoutMs": request.timeout_ms,
            }
            for request in pending
        ]
    }


def approval_of(decision: Decision, *, by: str) -> Approval:
    """Return what a client decides, in its name."""
    return Approval(decision.approved, decision.reason, decision.arguments, by)


def decided_view(decided: Decided) -> dict[str, JsonValue]:
    """Return what became of an answer."""
    return {"accepted": decided.accepted, "decision": decided.decision}
