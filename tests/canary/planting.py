"""Canaries: a word of its own for each place that may hold something secret."""

from __future__ import annotations

from collections.abc import Iterable

PLACES = (
    "task_inputs",
    "task_metadata",
    "session_metadata",
    "tool_args",
    "tool_result",
    "artifact_uri",
    "artifact_content",
    "artifact_metadata",
    "proposal_title",
    "final_text",
    "final_metadata",
    "answer",
    "requirement_description",
    "eval_detail",
    "eval_evidence",
    "action",
    "action_result",
    "error_message",
    "error_body",
)
"""What leaves with its switch, and not without."""

NEVER = ("resume_token", "secret_description", "credential_answer", "state")
"""What no switch lets out."""


def canary(place: str) -> str:
    """Return the word of a place; it looks like no credential, so that nothing masks it."""
    assert place in PLACES + NEVER
    return f"canary-{place.replace('_', '-')}-7f3q9z"


def seen(shown: str, places: Iterable[str] = PLACES + NEVER) -> set[str]:
    """Return the places whose words are shown."""
    return {place for place in places if canary(place) in shown}
