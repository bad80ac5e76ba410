"""The trace bridge: which events it projects, under which kinds, and what a payload may hold."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.errors import ValidationError
from perdure.observe.telemetry import telemetry_client
from perdure.observe.trace import create_trace_bridge, to_agent_eval_trace
from tests.observe.test_sanitize import ALL

TASK = {"id": "t", "intent": "Answer"}
STAMP = "2026-05-10T00:00:00.000Z"
STAMP_MS = 1_778_371_200_000


def project(event: dict[str, Any]) -> Any:
    return to_agent_eval_trace(event, run_id="r", options=telemetry_client())


DECISION = {
    "passed": True,
    "status": "ready",
    "readinessScore": 1.0,
    "blockingGapIds": [],
    "nonBlockingGapIds": ["k"],
    "reason": "ready",
}


@pytest.mark.parametrize(
    ("event", "kind", "payload"),
    [
        ({"type": "task_start"}, "log", {"taskId": "t", "intent": "Answer"}),
        ({"type": "readiness_start"}, "log", {"taskId": "t"}),
        (
            {"type": "readiness_end", "decision": DECISION},
            "log",
            {"taskId": "t", **{name: DECISION[name] for name in DECISION if name != "passed"}},
        ),
        (
            {"type": "readiness_end", "decision": {"passed": False, "status": "caveat"}},
            "policy_violation",
            {"taskId": "t", "status": "caveat"},
        ),
        ({"type": "questions_start", "questions": [{}, {}]}, "log", {"questionCount": 2}),
        (
            {"type": "questions_end", "questions": [{}], "userAnswers": {"q": "a"}},
            "log",
            {"questionCount": 1, "answerCount": 1},
        ),
        ({"type": "acquisition_start", "acquisitionPlans": [{}]}, "log", {"planCount": 1}),
        (
            {"type": "acquisition_end", "acquisitionPlans": [], "acquiredEvidenceIds": ["e"]},
            "log",
            {"planCount": 0, "evidenceCount": 1},
        ),
        (
            {"type": "session_created", "session": {"id": "s", "backend": "b"}},
            "log",
            {"sessionId": "s", "backend": "b"},
        ),
        ({"type": "backend_start", "backend": "b"}, "log", {"backend": "b"}),
        (
            {"type": "backend_error", "backend": "b", "message": "m", "recoverable": True},
            "error",
            {"backend": "b", "message": "m", "recoverable": True},
        ),
        (
            {"type": "tool_call", "toolName": "n", "toolCallId": "c", "args": {"a": 1}},
            "log",
            {"toolName": "n", "toolCallId": "c"},
        ),
        (
            {"type": "llm_call", "model": "m", "tokensIn": 0, "costUsd": 0.5},
            "log",
            {"model": "m", "tokensIn": 0, "costUsd": 0.5},
        ),
        (
            {"type": "artifact", "artifactId": "a", "name": "n", "uri": "file:x"},
            "state_mutation",
            {"artifactId": "a", "name": "n"},
        ),
        (
            {"type": "task_end", "status": "blocked", "reason": "r"},
            "log",
            {"status": "blocked", "reason": "r"},
        ),
        (
            {"type": "final", "status": "aborted", "reason": "r", "text": "x"},
            "error",
            {"status": "aborted", "reason": "r"},
        ),
    ],
)
def test_13_an_event_becomes_a_trace_event(event: Any, kind: str, payload: dict[str, Any]) -> None:
    traced = project({"task": TASK, "timestamp": STAMP, **event})
    assert (traced.kind, traced.payload) == (kind, {"phase": event["type"], **payload})
    assert traced.timestamp == STAMP_MS


@pytest.mark.parametrize(("kind", "name"), [("tool_call", "args"), ("tool_result", "result")])
def test_13_what_a_tool_gets_and_gives_is_in_no_trace_whatever_the_options(
    kind: str, name: str
) -> None:
    event = {"type": kind, "toolName": "n", "toolCallId": "c", name: {"x": 1}}
    traced = to_agent_eval_trace(event, run_id="r", options=ALL)
    assert traced is not None
    assert traced.payload == {"phase": kind, "toolName": "n", "toolCallId": "c"}


def test_13_r1_r3_deltas_and_unknown_types_take_no_id() -> None:
    bridge = create_trace_bridge(run_id="r", span_id="s")
    kinds = ("text_delta", "reasoning_delta", "task_start", "new_type", "readiness_start")
    traced = list(bridge.drain({"type": kind, "task": TASK} for kind in kinds))
    assert [event.event_id for event in traced] == ["r:1", "r:2"]
    assert {event.span_id for event in traced} == {"s"}


@pytest.mark.parametrize("stamp", [None, "soon", 7])
def test_13_r2_a_time_that_cannot_be_read_is_now(stamp: Any) -> None:
    bridge = create_trace_bridge(run_id="r", now=lambda: 42)
    traced = bridge.project({"type": "task_start", "task": TASK, "timestamp": stamp})
    assert traced is not None
    assert traced.timestamp == 42


def test_words_are_redacted_without_their_switch() -> None:
    traced = to_agent_eval_trace(
        {"type": "task_end", "status": "failed", "reason": "the canary sings"}, run_id="r"
    )
    assert traced is not None
    assert traced.payload["reason"] == "[redacted]"


def test_13_r4_bb_16_two_one_shots_have_two_ids() -> None:
    event = {"type": "task_start", "task": TASK}
    assert project(event).event_id != project(event).event_id


def test_13_a_bridge_needs_a_run() -> None:
    with pytest.raises(ValidationError):
        create_trace_bridge(run_id="")
