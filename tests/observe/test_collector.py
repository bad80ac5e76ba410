"""Collectors keep what may leave, sum it up, and never disturb who tells them."""

from __future__ import annotations

from typing import Any

from perdure.agent.task import run_agent_task
from perdure.core.records import AgentTaskSpec
from perdure.observe.collector import (
    create_runtime_event_collector,
    create_runtime_stream_event_collector,
)
from perdure.observe.telemetry import RuntimeTelemetryOptions, telemetry_client
from tests.agent.robots import Climber

STREAM: list[dict[str, Any]] = [
    {"type": "task_start", "task": {"id": "t", "intent": "i"}},
    {"type": "session_created", "session": {"id": "s1"}},
    {"type": "text_delta", "text": "Hel"},
    {"type": "text_delta", "text": "lo"},
    {"type": "session_resumed", "session": {"id": "s2"}},
    {"type": "final", "status": "completed", "reason": "done", "text": "Hello"},
]


async def test_11_3_r1_it_is_the_sink_of_a_task() -> None:
    collector = create_runtime_event_collector()
    await run_agent_task(AgentTaskSpec("t", "i"), Climber(), on_event=collector.on_event)
    assert [event["type"] for event in collector.events][::7] == ["task_start", "task_end"]


def test_11_3_r2_a_stream_is_summed_up() -> None:
    collector = create_runtime_stream_event_collector(telemetry_client())
    for event in STREAM:
        collector.on_event(event)
    summary = collector.summary()
    assert summary.event_count == 6
    assert summary.event_counts_by_type["text_delta"] == 2
    assert summary.first_session_id == "s1"
    assert (summary.final_status, summary.final_reason) == ("completed", "done")
    assert summary.final_text == "Hello"


def test_the_text_of_a_stream_is_not_kept_without_its_switch() -> None:
    collector = create_runtime_stream_event_collector()
    for event in STREAM:
        collector.on_event(event)
    assert collector.summary().final_text == ""
    assert "Hel" not in str(collector.events)


def test_a_credential_that_two_deltas_share_is_masked_in_the_whole() -> None:
    collector = create_runtime_stream_event_collector(telemetry_client())
    for text in ("the key is sk-" + "proj", "-Ab12Cd34Ef56Gh78Ij90, keep it"):
        collector.on_event({"type": "text_delta", "text": text})
    assert collector.summary().final_text == "the key is [redacted], keep it"


def test_11_3_r4_the_oldest_events_go_first_and_are_still_counted() -> None:
    collector = create_runtime_stream_event_collector(events_max=2)
    for event in STREAM:
        collector.on_event(event)
    assert [event["type"] for event in collector.events] == ["session_resumed", "final"]
    assert collector.summary().event_count == 6


def test_11_3_r4_what_cannot_be_sanitised_is_kept_as_a_mark() -> None:
    collector = create_runtime_event_collector()
    collector.on_event("nonsense")
    assert collector.events == [{"type": "unknown", "sanitizeError": True}]


async def test_11_3_r3_each_family_of_events_has_a_collector_of_its_own() -> None:
    told: list[Any] = []
    await run_agent_task(AgentTaskSpec("t", "i"), Climber(), on_event=told.append)
    one, other = create_runtime_event_collector(), create_runtime_stream_event_collector()
    for event in told:
        one.on_event(event)
    for event in STREAM:
        other.on_event(event)
    assert not hasattr(one, "summary")
    assert [each["type"] for each in one.events] == [each.type for each in told]
    assert "decision" in one.events[2]
    assert [each["type"] for each in other.events] == [each["type"] for each in STREAM]


def test_what_lets_deltas_out_lets_out_the_text_that_they_make() -> None:
    collector = create_runtime_stream_event_collector(
        RuntimeTelemetryOptions(include_control_payloads=True)
    )
    for event in STREAM:
        collector.on_event(event)
    assert collector.events[2]["text"] == "Hel"
    assert collector.summary().final_text == "Hello"
