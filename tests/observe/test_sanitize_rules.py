"""What leaves of each type of event, rule by rule: with every switch, with one, and with none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest

from perdure.agent.readiness import decide_knowledge_readiness
from perdure.agent.stream_events import LlmCallEvent, event_from_wire, event_to_wire
from perdure.core.wire import camel, to_wire
from perdure.observe.sanitize import (
    EVENTS,
    sanitize_event,
    sanitize_knowledge_readiness_report,
)
from perdure.observe.telemetry import RuntimeTelemetryOptions, telemetry_client
from tests.observe.test_sanitize import (
    ALL,
    CANARY,
    PLANS,
    QUESTIONS,
    REPORT,
    SESSION,
    TASK,
    TASK_EVENTS,
)

GATED = RuntimeTelemetryOptions(include_control_payloads=True)


def sent(
    kind: str, members: Mapping[str, Any], options: RuntimeTelemetryOptions | None = None
) -> Any:
    """Return what leaves of an event beside its type."""
    left = sanitize_event({"type": kind, **members}, options)
    assert left.pop("type") == kind
    return left


def test_11_2_r1_every_event_has_type_task_session_and_time_as_far_as_they_are_there() -> None:
    stamp = "2026-05-10T00:00:00.000Z"
    common = {"task": to_wire(TASK), "session": SESSION, "timestamp": stamp}
    left = sent("backend_start", {**common, "backend": "b"})
    assert list(left) == ["task", "session", "timestamp", "backend"]
    assert (left["timestamp"], left["task"]["id"], left["session"]["id"]) == (stamp, "t", "s")
    assert [each["id"] for each in left["task"]["requiredKnowledge"]] == ["need", "hidden"]
    budgeted = {"task": {"id": "t", "intent": "i", "budget": {"maxSteps": 1}}}
    assert sent("task_start", budgeted, ALL) == {"task": {"id": "t", "intent": "i"}}
    assert sent("backend_start", {"backend": "b"}) == {"backend": "b"}


def test_11_2_r2_the_end_of_readiness_has_report_and_decision() -> None:
    left = sanitize_event(TASK_EVENTS[1], telemetry_client())
    assert left["decision"] == to_wire(decide_knowledge_readiness(REPORT))
    assert left["knowledge"] == sanitize_knowledge_readiness_report(REPORT, telemetry_client())


def test_11_2_r3_questions_and_answers_are_gated() -> None:
    asked = {"questions": to_wire(QUESTIONS), "userAnswers": {"question_need": CANARY}}
    for kind in ("questions_start", "questions_end"):
        ids = [each["id"] for each in sent(kind, asked)["questions"]]
        assert ids == ["question_need", "question_hidden"]
    assert "userAnswers" not in sent("questions_start", asked, ALL)
    assert sent("questions_end", asked)["userAnswers"] == {"question_need": "[redacted]"}
    opened = RuntimeTelemetryOptions(include_user_answers=True)
    assert sent("questions_end", asked, opened)["userAnswers"] == {"question_need": CANARY}


def test_11_2_r3_plans_and_evidence_are_counted() -> None:
    found = {"acquisitionPlans": to_wire(PLANS), "acquiredEvidenceIds": ["e1", "e2"]}
    for kind in ("acquisition_start", "acquisition_end"):
        assert [each["mode"] for each in sent(kind, found)["acquisitionPlans"]] == ["ask_user"]
    assert sent("acquisition_end", found)["acquiredEvidenceCount"] == 2
    assert "acquiredEvidenceIds" not in sent("acquisition_end", found)
    assert sent("acquisition_end", found, ALL)["acquiredEvidenceIds"] == ["e1", "e2"]


@pytest.mark.parametrize(("kind", "gated"), [("tool_call", "args"), ("tool_result", "result")])
def test_11_2_r5_of_a_tool_name_and_id_are_kept(kind: str, gated: str) -> None:
    tool = {"toolName": "n", "toolCallId": "c"}
    event = {**tool, gated: {"x": 1}, "other": CANARY}
    assert sent(kind, event) == tool
    assert sent(kind, event, GATED) == {**tool, gated: {"x": 1}}


def test_11_2_r6_of_a_call_of_a_model_every_field_is_kept() -> None:
    wire: dict[str, Any] = {"type": "llm_call", "timestamp": "2026-05-10T00:00:00.000Z"}
    for name in event_names(LlmCallEvent):
        wire[name] = 7 if name.startswith(("tokens", "cost", "latency")) else "x"
    call = event_from_wire(wire)
    assert isinstance(call, LlmCallEvent)
    assert sanitize_event(call) == event_to_wire(call) == wire


def event_names(kind: type[Any]) -> list[str]:
    """Return the names on the wire of an event's own fields."""
    common = ("task", "session", "timestamp", "type")
    own = [field.name for field in fields(kind) if field.name not in common]
    return [camel(name) for name in own]


def test_11_2_r7_of_an_artifact_what_it_is_is_kept() -> None:
    told = {"artifactId": "a", "name": "n", "mimeType": "text/plain"}
    rest = {"uri": "file:x", "metadata": {"m": 1}, "content": "words"}
    event = {**told, **rest}
    assert sent("artifact", event) == told
    for switch, name in (
        ("include_evidence_ids", "uri"),
        ("include_metadata", "metadata"),
        ("include_control_payloads", "content"),
    ):
        opened = RuntimeTelemetryOptions()._replace(**{switch: True})
        assert sent("artifact", event, opened) == {**told, name: rest[name]}


def test_11_2_r8_of_the_end_the_status_is_kept() -> None:
    error = {"kind": "transport", "message": "m", "status": 503, "body": "b"}
    end = {"status": "failed", "reason": "r", "text": "t", "metadata": {"m": 1}, "error": error}
    told = {"kind": "transport", "message": "[redacted]", "status": 503}
    closed = {"status": "failed", "reason": "[redacted]", "error": told}
    assert sent("final", end) == closed
    assert sent("final", end, GATED) == {**closed, "text": "t", "error": {**told, "body": "b"}}
    assert sent("final", end, ALL) == end


def test_11_2_r9_of_a_backend_and_its_failure_no_body_is_ever_kept() -> None:
    for kind in ("backend_start", "backend_end"):
        assert sent(kind, {"backend": "b", "other": CANARY}, ALL) == {"backend": "b"}
    error = {"kind": "transport", "message": CANARY, "status": 503, "body": CANARY}
    failure = {"backend": "b", "message": "m", "recoverable": True, "error": error}
    told = {**failure, "error": {"kind": "transport", "status": 503}}
    assert sent("backend_error", failure, ALL) == told
    assert sent("backend_error", failure) == {**told, "message": "[redacted]"}


@pytest.mark.parametrize("kind", ["text_delta", "reasoning_delta"])
def test_11_2_r10_bb_2_the_words_of_a_model_leave_for_their_owner_and_for_no_log(kind: str) -> None:
    assert sent(kind, {"text": "Hel"}) == {"text": "[redacted]"}
    assert sent(kind, {"text": "Hel"}, telemetry_client()) == {"text": "Hel"}


def test_11_2_r11_of_a_proposal_id_and_status_are_kept() -> None:
    told = {"proposalId": "p", "status": "pending"}
    event = {**told, "title": "t", "content": "c"}
    assert sent("proposal_created", event) == told
    assert sent("proposal_created", event, GATED) == event


def test_11_2_r12_of_an_unknown_type_nothing_leaves_but_what_every_event_has() -> None:
    names = {name for part in EVENTS.values() for name in part}
    told = dict.fromkeys(names - {"status"}, CANARY)
    assert sent("tide_turned", {**told, "status": "high", "own": CANARY}, ALL) == {}
    assert sent("tide_turned", {**told, "task": {"id": "t", "intent": "i"}}, ALL) == {
        "task": {"id": "t", "intent": "i"}
    }


def test_11_1_the_words_of_a_plan_and_what_a_question_offers_never_leave() -> None:
    question = replace(QUESTIONS[0], options=(CANARY,), default_if_skipped=CANARY)
    question = replace(question, question="q", reason="r", metadata={"m": CANARY})
    [asked] = sent("questions_start", {"questions": to_wire([question])}, ALL)["questions"]
    assert (asked["optionCount"], asked["question"]) == (1, "q")
    assert CANARY not in json.dumps(asked)
    plan = replace(PLANS[0], description=CANARY, metadata={"m": CANARY})
    [planned] = sent("acquisition_start", {"acquisitionPlans": to_wire([plan])}, ALL)[
        "acquisitionPlans"
    ]
    assert planned["id"] == plan.id
    assert CANARY not in json.dumps(planned)
