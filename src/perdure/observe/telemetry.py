"""What may leave with an event: one switch for each class of data, and a preset for each reader."""

from __future__ import annotations

from typing import Final, NamedTuple

TEXT_CHARACTERS_MAX: Final = 1_000
"""A free text in a log is cut to so many characters."""


class RuntimeTelemetryOptions(NamedTuple):
    """Which classes of data an event keeps when it leaves; without a switch none of them.

    `include_text` is for what a model, an adapter or a provider put into words: deltas, the final
    text, reasons and error messages. A kept text is cut to `text_characters_max` (None: never).
    """

    include_inputs: bool = False
    include_requirement_descriptions: bool = False
    include_evidence_ids: bool = False
    include_user_answers: bool = False
    include_control_payloads: bool = False
    include_metadata: bool = False
    include_eval_details: bool = False
    include_text: bool = False
    text_characters_max: int | None = TEXT_CHARACTERS_MAX


def telemetry_log() -> RuntimeTelemetryOptions:
    """Return the options for logs, collectors and shared databases: no words, no payloads."""
    return RuntimeTelemetryOptions()


def telemetry_client() -> RuntimeTelemetryOptions:
    """Return the options for the browser of who owns the task: the words, whole; no payloads.

    The questions that wait for an answer are worded too, except that credentials stay unnamed.
    """
    return RuntimeTelemetryOptions(
        include_text=True, include_requirement_descriptions=True, text_characters_max=None
    )
