"""Nothing leaves of an event that the table does not name; each switch opens its own class."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

import pytest

from perdure.agent.evals import objective_eval
from perdure.agent.events import (
    ControlEnd,
    ControlStepped,
    QuestionsEnd,
    ReadinessEnd,
    TaskEnd,
    TaskStart,
)
from perdure.agent.gaps import (
    acquisition_plans_for_knowledge_gaps,
    user_questions_for_knowledge_gaps,
    wrap_answers,
)
from perdure.agent.knowledge import KnowledgeRequirement
from perdure.agent.readiness import decide_knowledge_readiness, score_knowledge_readiness
from perdure.agent.steps import Continue, ControlActionOutcome, ControlRunResult, ControlStep
from perdure.core.records import AgentTaskSpec
from perdure.core.secret import Secret
from perdure.core.wire import to_wire
from perdure.errors import UsageError
from perdure.observe.sanitize import (
    EVENTS,
    sanitize_event,
    sanitize_knowledge_readiness_report,
)
from perdure.observe.sanitize import REPORT as REPORT_PART
from perdure.observe.sanitize import REQUIREMENT as REQUIREMENT_PART
from perdure.observe.sanitized import (
    SanitizedKnowledgeReadinessReport,
    SanitizedKnowledgeRequirement,
)
from perdure.observe.telemetry import (
    RuntimeTelemetryOptions,
    telemetry_client,
    telemetry_log,
)

# A word that looks like no credential, so that only the table can keep it in.
CANARY: Final = "canary-7f3q9z"
SECRET_WORDS: Final = "hush-7f3q9z"
SWITCHES: Final = RuntimeTelemetryOptions._fields[:8]
ALL: Final = RuntimeTelemetryOptions()._replace(
    **dict.fromkeys(SWITCHES, True), text_characters_max=None
)

NEED = KnowledgeRequirement("need", f"needs {CANARY}", evidence_ids=(f"e {CANARY}",))
HIDDEN = KnowledgeRequirement("hidden", f"the {SECRET_WORDS}", sensitivity="secret")
TASK = AgentTaskSpec(
    "t",
    "an intent",
    inputs={"x": CANARY},
    metadata={"x": CANARY},
    required_knowledge=[NEED, HIDDEN],
)
REPORT = score_knowledge_readiness("t", [NEED, HIDDEN])
QUESTIONS = user_questions_for_knowledge_gaps([NEED, HIDDEN])
PLANS = acquisition_plans_for_knowledge_gaps([NEED, HIDDEN])
EVAL = objective_eval("e", False, detail=CANARY, evidence=CANARY, metadata={"x": SECRET_WORDS})
STEP = ControlStep(
    index=0,
    decision=Continue({"args": CANARY}, reason=CANARY),
    before_state=SECRET_WORDS,
    after_state=SECRET_WORDS,
    evals_before=(EVAL,),
    evals_after=(EVAL,),
    action_outcome=ControlActionOutcome(ok=True, result={"result": CANARY}, duration_ms=3),
    started_at="2026-05-10T00:00:00.000Z",
    ended_at="2026-05-10T00:00:01.000Z",
)
CONTROL = ControlRunResult(
    intent="an intent",
    passed=True,
    completed=True,
    reason=CANARY,
    stopped_by="policy",
    stop_cause="decided",
    steps=(STEP,),
    final_state=SECRET_WORDS,
    final_evals=(EVAL,),
)
TASK_EVENTS: Final = [
    TaskStart(TASK),
    ReadinessEnd(TASK, REPORT, decide_knowledge_readiness(REPORT)),
    QuestionsEnd(
        TASK,
        QUESTIONS,
        wrap_answers({"question_need": CANARY, "question_hidden": SECRET_WORDS}, QUESTIONS),
    ),
    ControlStepped(TASK, STEP),
    ControlEnd(TASK, CONTROL),
    TaskEnd(TASK, "completed", CANARY),
]
SESSION: Final = {
    "id": "s",
    "backend": "b",
    "status": "active",
    "resumeToken": SECRET_WORDS,
    "metadata": {"x": CANARY},
}
FIELDS: Final[list[tuple[str, dict[str, Any]]]] = [
    ("session_created", {"task": to_wire(TASK), "session": SESSION}),
    ("text_delta", {"text": CANARY}),
    ("reasoning_delta", {"text": CANARY}),
    ("tool_call", {"toolName": "n", "toolCallId": "c", "args": {"x": CANARY}}),
    ("tool_result", {"toolName": "n", "toolCallId": "c", "result": {"x": CANARY}}),
    ("acquisition_end", {"acquisitionPlans": [], "acquiredEvidenceIds": [CANARY]}),
    (
        "artifact",
        {"artifactId": "a", "uri": CANARY, "content": CANARY, "metadata": {"x": CANARY}},
    ),
    ("proposal_created", {"proposalId": "p", "title": CANARY, "content": CANARY}),
    ("backend_error", {"backend": "b", "message": CANARY, "recoverable": False}),
    (
        "final",
        {
            "status": "failed",
            "reason": CANARY,
            "text": CANARY,
            "metadata": {"x": CANARY},
            "error": {"kind": "transport", "message": CANARY, "status": 500, "body": CANARY},
        },
    ),
]
STREAM_EVENTS: Final[list[dict[str, Any]]] = [
    {"type": kind, "timestamp": "2026-05-10T00:00:00.000Z", **fields} for kind, fields in FIELDS
]
EVERY: Final[list[Any]] = [*TASK_EVENTS, *STREAM_EVENTS]


def kind_of_event(event: Any) -> str:
    return str(event["type"] if isinstance(event, dict) else event.type)


@pytest.mark.parametrize("event", EVERY, ids=kind_of_event)
@pytest.mark.parametrize("options", [None, telemetry_log(), RuntimeTelemetryOptions()])
def test_appendix_b_no_canary_leaves_by_default(
    event: Any, options: RuntimeTelemetryOptions | None
) -> None:
    sent = json.dumps(sanitize_event(event, options))
    assert CANARY not in sent
    assert SECRET_WORDS not in sent


@pytest.mark.parametrize("event", EVERY, ids=kind_of_event)
def test_appendix_b_every_canary_leaves_with_all_switches_but_what_never_leaves(event: Any) -> None:
    sent = json.dumps(sanitize_event(event, ALL))
    assert CANARY in sent
    # Resume tokens, credentials, descriptions of secrets, states: no switch lets them out.
    assert SECRET_WORDS not in sent


@pytest.mark.parametrize(
    ("event", "place", "switch"),
    [
        (TASK_EVENTS[0], ("task", "inputs"), "include_inputs"),
        (TASK_EVENTS[0], ("task", "metadata"), "include_metadata"),
        (TASK_EVENTS[3], ("step", "action"), "include_control_payloads"),
        (TASK_EVENTS[3], ("step", "result"), "include_control_payloads"),
        (TASK_EVENTS[2], ("userAnswers", "question_need"), "include_user_answers"),
        (STREAM_EVENTS[3], ("args",), "include_control_payloads"),
        (STREAM_EVENTS[5], ("acquiredEvidenceIds",), "include_evidence_ids"),
        (STREAM_EVENTS[6], ("uri",), "include_evidence_ids"),
        (STREAM_EVENTS[1], ("text",), "include_text"),
        (STREAM_EVENTS[-1], ("text",), "include_text"),
    ],
)
def test_11_1_a_switch_opens_its_own_class_and_no_other(
    event: Any, place: tuple[str, ...], switch: str
) -> None:
    def found(options: RuntimeTelemetryOptions) -> str:
        value: Any = sanitize_event(event, options)
        for name in place:
            value = value.get(name) if isinstance(value, dict) else None
        return json.dumps(value)

    assert CANARY in found(RuntimeTelemetryOptions(**{switch: True}))
    others = {name: True for name in SWITCHES if name != switch}
    if place != ("text",):  # The final text also leaves with the payloads.
        assert CANARY not in found(RuntimeTelemetryOptions(**others))


def test_bb_2_the_owner_of_a_task_reads_its_words_but_no_payloads() -> None:
    for event in STREAM_EVENTS[1:]:
        sent = sanitize_event(event, telemetry_client())
        assert (CANARY in json.dumps(sent)) == (
            event["type"] in ("text_delta", "reasoning_delta", "backend_error", "final")
        )


def test_11_1_a_question_for_a_credential_is_not_worded() -> None:
    questions = sanitize_event(TASK_EVENTS[2], telemetry_client())["questions"]
    assert [("question" in question) for question in questions] == [True, False]


def test_11_1_a_report_keeps_numbers_and_ids() -> None:
    sent = sanitize_knowledge_readiness_report(REPORT)
    assert sent["missingRequirementIds"] == ["need", "hidden"]
    assert sent["evidenceCount"] == 1
    assert [each["id"] for each in sent["blockingMissingRequirements"]] == ["hidden"]
    assert sent["reason"] == "[redacted]"
    assert "evidenceIds" not in sent
    assert "bundle" not in sent


def test_the_reason_of_a_report_may_be_a_providers_words_and_leaves_as_such() -> None:
    report = replace(REPORT, reason=CANARY)
    event = ReadinessEnd(TASK, report, decide_knowledge_readiness(report))
    kept = sanitize_event(event)
    assert CANARY not in json.dumps(kept)
    assert kept["decision"]["blockingGapIds"] == ["hidden"]
    told = sanitize_event(event, telemetry_client())
    assert (told["knowledge"]["reason"], told["decision"]["reason"]) == (CANARY, CANARY)


def test_11_1_the_types_of_a_report_have_what_the_table_lets_out() -> None:
    assert SanitizedKnowledgeRequirement.__annotations__.keys() == REQUIREMENT_PART.keys()
    assert SanitizedKnowledgeReadinessReport.__annotations__.keys() == REPORT_PART.keys()


def test_11_2_r4_a_step_and_a_loop_keep_how_they_went() -> None:
    step = sanitize_event(TASK_EVENTS[3])["step"]
    assert (step["decisionType"], step["actionOk"], step["durationMs"]) == ("continue", True, 3)
    assert step["reason"] == "[redacted]"
    assert step["evalsAfter"] == [{"id": "e", "passed": False, "objective": True}]
    control = sanitize_event(TASK_EVENTS[4])["control"]
    assert (control["pass"], control["stepCount"], control["runtimeErrorCount"]) == (True, 1, 0)


def test_11_1_a_session_says_whether_it_has_a_token_and_no_more() -> None:
    assert sanitize_event(STREAM_EVENTS[0])["session"] == {
        "id": "s",
        "backend": "b",
        "status": "active",
        "hasResumeToken": True,
        "metadata": "[redacted]",
    }


def test_11_1_absent_and_empty_inputs_are_told_apart() -> None:
    bare = sanitize_event(TaskStart(AgentTaskSpec("t", "i")))
    assert "inputs" not in bare["task"]
    empty = sanitize_event(TaskStart(AgentTaskSpec("t", "i", inputs={})))
    assert empty["task"]["inputs"] == "[redacted]"


def test_11_2_r12_an_unknown_type_keeps_only_the_common_part() -> None:
    event = {"type": "brand_new", "task": {"id": "t", "intent": "i"}, "payload": CANARY}
    assert sanitize_event(event, ALL) == {
        "type": "brand_new",
        "task": {"id": "t", "intent": "i"},
    }


def test_bb_2_free_texts_are_cut_in_a_log() -> None:
    options = RuntimeTelemetryOptions(include_text=True, text_characters_max=5)
    long = "far too long"
    event = {"type": "final", "status": "failed", "reason": long, "text": long}
    sent = sanitize_event(event, options)
    assert (sent["reason"], sent["text"]) == ("far t…", "far t…")


def test_bb_2_what_looks_like_a_credential_is_masked_in_the_last_pass() -> None:
    key = "sk-" + "proj-Ab12Cd34Ef56Gh78Ij90"
    event = {"type": "tool_call", "toolName": "n", "args": {"note": f"use {key}", "password": "x"}}
    assert sanitize_event(event, ALL)["args"] == {
        "note": "use [redacted]",
        "password": "[redacted]",
    }


def test_bb_3_a_secret_is_redacted_wherever_it_stands() -> None:
    event = {"type": "tool_call", "args": {"a": [Secret(SECRET_WORDS)]}}
    assert sanitize_event(event, ALL)["args"] == {"a": ["[redacted]"]}


def test_what_is_no_event_is_refused() -> None:
    for value in ("text", {"no": "type"}, None):
        with pytest.raises(UsageError):
            sanitize_event(value)


def test_the_table_names_every_type_that_has_fields_of_its_own() -> None:
    assert len(EVENTS) == 20
