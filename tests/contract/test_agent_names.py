"""Every name that the specification of agent tasks gives is there, under the module it lives in."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from typing import get_args

import pytest

from perdure import agent, errors
from perdure.agent import events

NAMES = {
    "agent.adapter": "AgentAdapter AgentKnowledgeProvider AgentTaskContext",
    "agent.backend": "AgentBackendContext AgentBackendInput AgentExecutionBackend "
    "IterableBackend create_iterable_backend",
    "agent.cancel": "CancelSignal",
    "agent.chat_turn": "ChatTurnMessage ChatTurnOverlay ChatTurnSandbox compose_turn_profile "
    "run_chat_turn sandbox_as_chat_turn_target",
    "agent.conformance": "ConformanceIssue ConformanceOptions ConformanceResult "
    "assert_profile_conformance check_profile_conformance",
    "agent.control": "run_agent_control_loop",
    "agent.evals": "ControlEvalResult blocking_knowledge_eval objective_eval subjective_eval",
    "agent.events": "AgentRuntimeEvent AgentRuntimeEventSink AgentTaskStatus",
    "agent.gaps": "acquisition_plans_for_knowledge_gaps user_questions_for_knowledge_gaps",
    "agent.intent": "ClassifyIntentResult SubagentMatcher classify_intent",
    "agent.knowledge": "DataAcquisitionPlan KnowledgeBundle KnowledgeReadinessDecision "
    "KnowledgeReadinessReport KnowledgeRequirement UserQuestion",
    "agent.model_backend": "BackendRetryPolicy create_openai_compatible_backend",
    "agent.profile": "AgentProfile AgentSubagentProfile merge_agent_profiles",
    "agent.readiness": "decide_knowledge_readiness score_knowledge_readiness",
    "agent.run_records": "validate_run_record",
    "agent.runtime_run": "RuntimeRun RuntimeRunCost RuntimeRunPersistenceAdapter RuntimeRunRow "
    "RuntimeRunStatus start_runtime_run",
    "agent.sandbox_backend": "create_sandbox_prompt_backend",
    "agent.sessions": "InMemoryRuntimeSessionStore RuntimeSession RuntimeSessionStore",
    "agent.steps": "Continue ControlActionOutcome ControlBudget ControlDecision ControlRunResult "
    "ControlRuntimeError ControlStep Stop StopDecision",
    "agent.stopping": "ControlStopPolicies",
    "agent.stream": "run_agent_task_stream",
    "agent.stream_events": "RuntimeStreamEvent RuntimeStreamEventSink UnknownEvent event_from_wire",
    "agent.summary": "AgentTaskRunSummary summarize_agent_task_run",
    "agent.task": "AgentTaskRunResult run_agent_task",
    "core.records": "AgentTaskSpec",
    "errors": "AgentRuntimeError BackendTransportError CaptureIntegrityError ChatTurnError "
    "ConfigError JudgeError NotFoundError ReplayError RuntimeRunStateError SessionMismatchError "
    "ValidationError VerificationError",
    "observe.collector": "RuntimeEventCollector RuntimeStreamEventCollector "
    "RuntimeStreamEventSummary create_runtime_event_collector "
    "create_runtime_stream_event_collector",
    "observe.sanitize": "sanitize_agent_runtime_event sanitize_knowledge_readiness_report "
    "sanitize_runtime_stream_event",
    "observe.sanitized": "SanitizedKnowledgeReadinessReport SanitizedKnowledgeRequirement",
    "observe.sse": "encode_server_sent_event readiness_server_sent_event "
    "runtime_stream_server_sent_event sse_stream",
    "observe.telemetry": "RuntimeTelemetryOptions telemetry_client telemetry_log",
    "observe.trace": "TraceBridge TraceEvent create_trace_bridge to_agent_eval_trace",
    "observe.trace_records": "TraceBudgetEntry TraceOutcome TraceRun TraceSpan",
    "observe.trace_store": "InMemoryTraceStore TraceStore",
    "sync": "run_agent_task_sync",
    "testing": "backend_conformance session_store_conformance trace_store_conformance",
}
KEYWORDS = {
    "agent.task.run_agent_task": "knowledge on_event signal readiness control durable",
    "agent.stream.run_agent_task_stream": "input knowledge session signal readiness raise_errors",
    "agent.runtime_run.start_runtime_run": "workspace_id session_id agent_id adapter id now",
    "agent.intent.classify_intent": "default_min_score skip filter whole_words",
    "agent.chat_turn.run_chat_turn": "overlay prior_messages model_override signal calling",
    "observe.trace.create_trace_bridge": "run_id span_id new_event_id",
    "observe.sse.encode_server_sent_event": "event id retry",
}
"""The records of options that became keyword arguments."""


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in NAMES for name in NAMES[module].split()]
)
def test_appendix_a_the_name_is_there(module: str, name: str) -> None:
    found = getattr(importlib.import_module(f"perdure.{module}"), name)
    if inspect.isfunction(found) or dataclasses.is_dataclass(found):
        assert inspect.getdoc(found)


@pytest.mark.parametrize("place", KEYWORDS)
def test_appendix_a_options_are_keyword_arguments(place: str) -> None:
    module, _, name = place.rpartition(".")
    function = getattr(importlib.import_module(f"perdure.{module}"), name)
    known = inspect.signature(function).parameters.values()
    keywords = {each.name for each in known if each.kind is each.KEYWORD_ONLY}
    assert set(KEYWORDS[place].split()) <= keywords


def test_what_hooks_and_backends_of_users_give_is_in_the_package() -> None:
    made = (
        "ArtifactEvent DROP FinalEvent KnowledgeBundle LlmCallEvent ReasoningDeltaEvent Secret "
        "StopDecision TextDeltaEvent ToolCallEvent ToolResultEvent event_from_wire event_to_wire "
        "new_session"
    )
    assert set(made.split()) <= set(agent.__all__)


CODES = {
    "ValidationError": ("AgentRuntimeError", "validation", False),
    "NotFoundError": ("AgentRuntimeError", "not_found", False),
    "ConfigError": ("AgentRuntimeError", "config", False),
    "CaptureIntegrityError": ("AgentRuntimeError", "capture_integrity", False),
    "JudgeError": ("AgentRuntimeError", "judge", False),
    "VerificationError": ("AgentRuntimeError", "verification", False),
    "ReplayError": ("AgentRuntimeError", "replay", False),
    "SessionMismatchError": ("ValidationError", "validation", False),
    "RuntimeRunStateError": ("ValidationError", "validation", False),
    "BackendTransportError": ("AgentRuntimeError", "transport", True),
    "ChatTurnError": ("BackendTransportError", "transport", True),
}
"""Each class with its base, its code, and whether the same may succeed later."""


@pytest.mark.parametrize("name", CODES)
def test_2_bb_1_every_failure_has_its_place_its_code_and_a_word_on_trying_again(name: str) -> None:
    base, code, retryable = CODES[name]
    found = getattr(errors, name)
    assert found.__bases__[0].__name__ == base
    assert issubclass(found, errors.AgentRuntimeError)
    assert issubclass(errors.AgentRuntimeError, errors.PerdureError)
    assert (found.code, found.retryable) == (code, retryable)


def test_2_a_failure_tells_what_it_was_about() -> None:
    lost = errors.BackendTransportError("lost", backend="b", status=0, body="x", retryable=False)
    assert (lost.backend, lost.status, lost.body, lost.retryable) == ("b", 0, "x", False)
    other = errors.SessionMismatchError("no", session_backend="a", requested_backend="b")
    assert (other.session_backend, other.requested_backend) == ("a", "b")


def test_2_the_codes_of_agents_are_those_of_the_classes_and_no_other() -> None:
    kinds = [each for each in vars(errors).values() if inspect.isclass(each)]
    codes = {each.code for each in kinds if issubclass(each, errors.AgentRuntimeError)}
    assert codes == set(get_args(events.AgentRuntimeErrorCode))
    asked = "validation not_found config capture_integrity judge verification replay transport"
    assert set(asked.split()) <= codes


def test_2_a_failure_that_may_pass_says_so_by_itself_and_no_other_does() -> None:
    assert errors.BackendTransportError("no", backend="b").retryable
    assert not errors.BackendTransportError("no", backend="b", retryable=False).retryable
    assert not errors.ChatTurnError("no", backend="b", retryable=False).retryable
    assert not errors.AgentRuntimeError("no").retryable
    bad = errors.ValidationError("no")
    assert (bad.retryable, isinstance(bad, errors.UsageError)) == (False, True)


EVENT_FIELDS = {
    "TaskStart": "",
    "ReadinessStart": "",
    "ReadinessEnd": "knowledge decision",
    "QuestionsStart": "questions",
    "QuestionsEnd": "questions user_answers",
    "AcquisitionStart": "acquisition_plans",
    "AcquisitionEnd": "acquisition_plans acquired_evidence_ids",
    "ControlStart": "knowledge",
    "ControlStepped": "step",
    "ControlEnd": "control",
    "TaskEnd": "status reason",
}


def test_6_2_each_event_of_a_task_has_its_fields_beside_type_and_task() -> None:
    kinds = {kind.__name__: kind for kind in get_args(events.AgentRuntimeEvent)}
    assert kinds.keys() == EVENT_FIELDS.keys()
    for name, kind in kinds.items():
        own = [field.name for field in dataclasses.fields(kind)]
        assert own == ["task", *EVENT_FIELDS[name].split(), "type"]


def test_6_1_a_task_takes_all_that_its_run_may_need() -> None:
    parameters = inspect.signature(agent.run_agent_task).parameters
    assert list(parameters)[:2] == ["task", "adapter"]
    assert set(KEYWORDS["agent.task.run_agent_task"].split()) == set(list(parameters)[2:])
    control = {field.name for field in dataclasses.fields(agent.ControlOptions)}
    assert {"trace_store", "scenario_id", "project_id", "variant_id"} <= control
    assert agent.ReadinessPolicy().minimum_score == 0.7
