"""Events in wire form as their readers see them, for the type checkers; nothing is executed."""

from __future__ import annotations

from typing import assert_type

from perdure.agent import RuntimeStreamEvent
from perdure.observe import SanitizedStreamEvent, sanitize_runtime_stream_event


def shown(event: RuntimeStreamEvent) -> str:
    """Return what a page shows of an event."""
    left: SanitizedStreamEvent = sanitize_runtime_stream_event(event)
    assert_type(left["task"]["intent"], str)
    if left["type"] == "text_delta":
        return left["text"]
    if left["type"] == "llm_call":
        assert_type(left.get("tokensIn"), int | None)
        return left["model"]
    if left["type"] == "readiness_end":
        gaps = left["knowledge"]["blockingMissingRequirements"]
        return ", ".join(gap["id"] for gap in gaps)
    if left["type"] == "final":
        return left.get("text", left["reason"])
    return left["type"]


def mistaken(event: SanitizedStreamEvent) -> object:
    """Read what an event of its type does not have."""
    if event["type"] == "task_end":
        return event["text"]  # type: ignore[typeddict-item]  # on purpose: only `final` has one
    return None
