"""Each of the 21 events has a wire form that reads back as itself."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from perdure.agent.knowledge import KnowledgeRequirement
from perdure.agent.readiness import decide_knowledge_readiness, score_knowledge_readiness
from perdure.agent.sessions import new_session
from perdure.agent.stream_events import (
    STREAM_EVENTS,
    FinalEvent,
    TextDeltaEvent,
    UnknownEvent,
    event_from_wire,
    event_to_wire,
)
from perdure.core.records import AgentTaskSpec
from perdure.core.secret import Secret
from perdure.errors import UsageError, ValidationError

NOW = "2026-05-10T00:00:00.000Z"
TASK = AgentTaskSpec("t-9", "Answer a policy question")
REPORT = score_knowledge_readiness("t-9", (KnowledgeRequirement("colour", "the colour"),))
SAMPLES: dict[str, Any] = {
    "task": TASK,
    "timestamp": NOW,
    "session": new_session("demo", session_id="s-1"),
    "knowledge": REPORT,
    "decision": decide_knowledge_readiness(REPORT),
    "questions": (),
    "user_answers": {"question_colour": "blue"},
    "acquisition_plans": (),
    "acquired_evidence_ids": ("e-1",),
    "status": "completed",
    "error": None,
    "metadata": {"a_key": 1},
    "recoverable": True,
    "tokens_in": 3,
    "tokens_out": 4,
    "tokens_cached": 2,
    "tokens_cache_written": 1,
    "tokens_reasoning": 1,
    "cost_usd": 0.5,
    "latency_ms": 12.0,
    "args": {"some_key": [1]},
    "result": {"some_key": [1]},
    "content": {"some_key": [1]},
}


def sample(name: str) -> Any:
    kind = STREAM_EVENTS[name]
    names = [field.name for field in fields(kind) if field.name != "type"]
    values = {field: SAMPLES.get(field, field) for field in names}
    if name == "proposal_created":
        values["status"] = "pending"
    return kind(**values)


def test_7_2_there_are_twenty_one_types() -> None:
    assert len(STREAM_EVENTS) == 21


@pytest.mark.parametrize("name", STREAM_EVENTS)
def test_7_2_an_event_reads_back_as_itself(name: str) -> None:
    event = sample(name)
    wire = event_to_wire(event)
    assert wire["type"] == name
    assert event_to_wire(event_from_wire(wire)) == wire
    assert not [key for key in wire if "_" in key]


def test_7_2_an_unknown_type_is_refused_or_kept_as_it_came() -> None:
    value = {"type": "tide_turned", "at": 3}
    with pytest.raises(ValidationError, match="tide_turned"):
        event_from_wire(value)
    unknown = event_from_wire(value, lenient=True)
    assert unknown == UnknownEvent("tide_turned", value)
    assert event_to_wire(unknown) == value


def test_7_2_a_known_type_with_fields_that_do_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="text"):
        event_from_wire({"type": "text_delta"}, lenient=True)


def test_1_1_r2_the_keys_of_users_stay_as_they_are() -> None:
    wire = event_to_wire(sample("tool_call"))
    assert wire["args"] == {"some_key": [1]}


def test_1_1_r3_what_is_absent_is_left_out() -> None:
    assert event_to_wire(TextDeltaEvent(text="a")) == {"type": "text_delta", "text": "a"}


def test_bb_3_the_resume_token_never_becomes_json() -> None:
    session = new_session("demo", resume_token="tok-1")
    event = FinalEvent(task=TASK, timestamp=NOW, status="completed", reason="", session=session)
    assert session.resume_token == Secret("tok-1")
    wire = event_to_wire(event)
    assert "tok-1" not in str(wire)
    again = event_from_wire(wire)
    assert isinstance(again, FinalEvent)
    assert again.session is not None
    assert again.session.resume_token is None
