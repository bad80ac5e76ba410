"""Agent tasks: readiness, the control loop, streams, tool loops, profiles, and their sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure.core.lazily import lazily

if TYPE_CHECKING:
    from perdure.agent.adapter import AgentAdapter as AgentAdapter
    from perdure.agent.adapter import AgentAdapterHooks as AgentAdapterHooks
    from perdure.agent.adapter import AgentKnowledgeHooks as AgentKnowledgeHooks
    from perdure.agent.adapter import AgentKnowledgeProvider as AgentKnowledgeProvider
    from perdure.agent.adapter import AgentTaskContext as AgentTaskContext
    from perdure.agent.backend import AgentBackendContext as AgentBackendContext
    from perdure.agent.backend import AgentBackendInput as AgentBackendInput
    from perdure.agent.backend import AgentExecutionBackend as AgentExecutionBackend
    from perdure.agent.backend import IterableBackend as IterableBackend
    from perdure.agent.backend import UpstreamAnswer as UpstreamAnswer
    from perdure.agent.backend import create_iterable_backend as create_iterable_backend
    from perdure.agent.callable_backend import CallableBackend as CallableBackend
    from perdure.agent.cancel import CancelSignal as CancelSignal
    from perdure.agent.chat_turn import ChatTurnAuth as ChatTurnAuth
    from perdure.agent.chat_turn import ChatTurnCalling as ChatTurnCalling
    from perdure.agent.chat_turn import ChatTurnMessage as ChatTurnMessage
    from perdure.agent.chat_turn import ChatTurnOverlay as ChatTurnOverlay
    from perdure.agent.chat_turn import ChatTurnSandbox as ChatTurnSandbox
    from perdure.agent.chat_turn import compose_turn_profile as compose_turn_profile
    from perdure.agent.chat_turn import run_chat_turn as run_chat_turn
    from perdure.agent.chat_turn import sandbox_as_chat_turn_target as sandbox_as_chat_turn_target
    from perdure.agent.chat_turn_events import ChatTurnResult as ChatTurnResult
    from perdure.agent.chat_turn_events import collect_chat_turn as collect_chat_turn
    from perdure.agent.conformance import ConformanceIssue as ConformanceIssue
    from perdure.agent.conformance import ConformanceOptions as ConformanceOptions
    from perdure.agent.conformance import ConformanceResult as ConformanceResult
    from perdure.agent.conformance import assert_profile_conformance as assert_profile_conformance
    from perdure.agent.conformance import check_profile_conformance as check_profile_conformance
    from perdure.agent.control import run_agent_control_loop as run_agent_control_loop
    from perdure.agent.evals import ControlEvalResult as ControlEvalResult
    from perdure.agent.evals import blocking_knowledge_eval as blocking_knowledge_eval
    from perdure.agent.evals import objective_eval as objective_eval
    from perdure.agent.evals import subjective_eval as subjective_eval
    from perdure.agent.events import AgentRuntimeErrorCode as AgentRuntimeErrorCode
    from perdure.agent.events import AgentRuntimeEvent as AgentRuntimeEvent
    from perdure.agent.events import AgentRuntimeEventSink as AgentRuntimeEventSink
    from perdure.agent.events import AgentTaskStatus as AgentTaskStatus
    from perdure.agent.gaps import (
        acquisition_plans_for_knowledge_gaps as acquisition_plans_for_knowledge_gaps,
    )
    from perdure.agent.gaps import (
        user_questions_for_knowledge_gaps as user_questions_for_knowledge_gaps,
    )
    from perdure.agent.hooks import ControlHooks as ControlHooks
    from perdure.agent.hooks import ControlOptions as ControlOptions
    from perdure.agent.intent import ClassifyIntentResult as ClassifyIntentResult
    from perdure.agent.intent import SubagentMatcher as SubagentMatcher
    from perdure.agent.intent import classify_intent as classify_intent
    from perdure.agent.knowledge import DataAcquisitionPlan as DataAcquisitionPlan
    from perdure.agent.knowledge import KnowledgeBundle as KnowledgeBundle
    from perdure.agent.knowledge import KnowledgeReadinessDecision as KnowledgeReadinessDecision
    from perdure.agent.knowledge import KnowledgeReadinessReport as KnowledgeReadinessReport
    from perdure.agent.knowledge import KnowledgeRequirement as KnowledgeRequirement
    from perdure.agent.knowledge import UserQuestion as UserQuestion
    from perdure.agent.model_backend import BackendRetryPolicy as BackendRetryPolicy
    from perdure.agent.model_backend import ModelBackend as ModelBackend
    from perdure.agent.model_backend import ModelOptions as ModelOptions
    from perdure.agent.model_backend import (
        create_openai_compatible_backend as create_openai_compatible_backend,
    )
    from perdure.agent.preflight import ReadinessPolicy as ReadinessPolicy
    from perdure.agent.profile import AgentProfile as AgentProfile
    from perdure.agent.profile import AgentSubagentProfile as AgentSubagentProfile
    from perdure.agent.profile import ProfileModel as ProfileModel
    from perdure.agent.profile import ProfilePrompt as ProfilePrompt
    from perdure.agent.profile import ProfileResources as ProfileResources
    from perdure.agent.profile import merge_agent_profiles as merge_agent_profiles
    from perdure.agent.readiness import decide_knowledge_readiness as decide_knowledge_readiness
    from perdure.agent.readiness import score_knowledge_readiness as score_knowledge_readiness
    from perdure.agent.runtime_run import RuntimeRun as RuntimeRun
    from perdure.agent.runtime_run import RuntimeRunCost as RuntimeRunCost
    from perdure.agent.runtime_run import (
        RuntimeRunPersistenceAdapter as RuntimeRunPersistenceAdapter,
    )
    from perdure.agent.runtime_run import RuntimeRunRow as RuntimeRunRow
    from perdure.agent.runtime_run import RuntimeRunStatus as RuntimeRunStatus
    from perdure.agent.runtime_run import start_runtime_run as start_runtime_run
    from perdure.agent.sandbox_backend import DROP as DROP
    from perdure.agent.sandbox_backend import SandboxPromptBackend as SandboxPromptBackend
    from perdure.agent.sandbox_backend import (
        create_sandbox_prompt_backend as create_sandbox_prompt_backend,
    )
    from perdure.agent.session_life import SessionChoice as SessionChoice
    from perdure.agent.sessions import InMemoryRuntimeSessionStore as InMemoryRuntimeSessionStore
    from perdure.agent.sessions import RuntimeSession as RuntimeSession
    from perdure.agent.sessions import RuntimeSessionStore as RuntimeSessionStore
    from perdure.agent.sessions import new_session as new_session
    from perdure.agent.steps import Continue as Continue
    from perdure.agent.steps import ControlBudget as ControlBudget
    from perdure.agent.steps import ControlDecision as ControlDecision
    from perdure.agent.steps import ControlRunResult as ControlRunResult
    from perdure.agent.steps import ControlStep as ControlStep
    from perdure.agent.steps import ControlStopPolicies as ControlStopPolicies
    from perdure.agent.steps import Stop as Stop
    from perdure.agent.steps import StopDecision as StopDecision
    from perdure.agent.stored_rows import DurableRunRows as DurableRunRows
    from perdure.agent.stored_sessions import DurableSessionStore as DurableSessionStore
    from perdure.agent.stored_traces import DurableTraceStore as DurableTraceStore
    from perdure.agent.stream import run_agent_task_stream as run_agent_task_stream
    from perdure.agent.stream_events import ArtifactEvent as ArtifactEvent
    from perdure.agent.stream_events import FinalEvent as FinalEvent
    from perdure.agent.stream_events import LlmCallEvent as LlmCallEvent
    from perdure.agent.stream_events import ReasoningDeltaEvent as ReasoningDeltaEvent
    from perdure.agent.stream_events import RuntimeStreamEvent as RuntimeStreamEvent
    from perdure.agent.stream_events import RuntimeStreamEventSink as RuntimeStreamEventSink
    from perdure.agent.stream_events import TextDeltaEvent as TextDeltaEvent
    from perdure.agent.stream_events import ToolCallEvent as ToolCallEvent
    from perdure.agent.stream_events import ToolResultEvent as ToolResultEvent
    from perdure.agent.stream_events import event_from_wire as event_from_wire
    from perdure.agent.stream_events import event_to_wire as event_to_wire
    from perdure.agent.stream_frames import AgentTaskProducer as AgentTaskProducer
    from perdure.agent.summary import AgentTaskRunSummary as AgentTaskRunSummary
    from perdure.agent.summary import summarize_agent_task_run as summarize_agent_task_run
    from perdure.agent.task import AgentTaskRunResult as AgentTaskRunResult
    from perdure.agent.task import run_agent_task as run_agent_task
    from perdure.agent.tool_approval import Approval as Approval
    from perdure.agent.tool_approval import ApprovalRequest as ApprovalRequest
    from perdure.agent.tool_approval import answer_approval as answer_approval
    from perdure.agent.tool_approval import pending_approvals as pending_approvals
    from perdure.agent.tool_limits import ModelUsage as ModelUsage
    from perdure.agent.tool_limits import ToolLimits as ToolLimits
    from perdure.agent.tool_limits import usd_by as usd_by
    from perdure.agent.tool_loop import ToolLoop as ToolLoop
    from perdure.agent.tool_loop import ToolLoopResult as ToolLoopResult
    from perdure.agent.tools import Tool as Tool
    from perdure.agent.tools import ToolCall as ToolCall
    from perdure.core.secret import Secret as Secret

__all__ = [
    "DROP",
    "AgentAdapter",
    "AgentAdapterHooks",
    "AgentBackendContext",
    "AgentBackendInput",
    "AgentExecutionBackend",
    "AgentKnowledgeHooks",
    "AgentKnowledgeProvider",
    "AgentProfile",
    "AgentRuntimeErrorCode",
    "AgentRuntimeEvent",
    "AgentRuntimeEventSink",
    "AgentSubagentProfile",
    "AgentTaskContext",
    "AgentTaskProducer",
    "AgentTaskRunResult",
    "AgentTaskRunSummary",
    "AgentTaskStatus",
    "Approval",
    "ApprovalRequest",
    "ArtifactEvent",
    "BackendRetryPolicy",
    "CallableBackend",
    "CancelSignal",
    "ChatTurnAuth",
    "ChatTurnCalling",
    "ChatTurnMessage",
    "ChatTurnOverlay",
    "ChatTurnResult",
    "ChatTurnSandbox",
    "ClassifyIntentResult",
    "ConformanceIssue",
    "ConformanceOptions",
    "ConformanceResult",
    "Continue",
    "ControlBudget",
    "ControlDecision",
    "ControlEvalResult",
    "ControlHooks",
    "ControlOptions",
    "ControlRunResult",
    "ControlStep",
    "ControlStopPolicies",
    "DataAcquisitionPlan",
    "DurableRunRows",
    "DurableSessionStore",
    "DurableTraceStore",
    "FinalEvent",
    "InMemoryRuntimeSessionStore",
    "IterableBackend",
    "KnowledgeBundle",
    "KnowledgeReadinessDecision",
    "KnowledgeReadinessReport",
    "KnowledgeRequirement",
    "LlmCallEvent",
    "ModelBackend",
    "ModelOptions",
    "ModelUsage",
    "ProfileModel",
    "ProfilePrompt",
    "ProfileResources",
    "ReadinessPolicy",
    "ReasoningDeltaEvent",
    "RuntimeRun",
    "RuntimeRunCost",
    "RuntimeRunPersistenceAdapter",
    "RuntimeRunRow",
    "RuntimeRunStatus",
    "RuntimeSession",
    "RuntimeSessionStore",
    "RuntimeStreamEvent",
    "RuntimeStreamEventSink",
    "SandboxPromptBackend",
    "Secret",
    "SessionChoice",
    "Stop",
    "StopDecision",
    "SubagentMatcher",
    "TextDeltaEvent",
    "Tool",
    "ToolCall",
    "ToolCallEvent",
    "ToolLimits",
    "ToolLoop",
    "ToolLoopResult",
    "ToolResultEvent",
    "UpstreamAnswer",
    "UserQuestion",
    "acquisition_plans_for_knowledge_gaps",
    "answer_approval",
    "assert_profile_conformance",
    "blocking_knowledge_eval",
    "check_profile_conformance",
    "classify_intent",
    "collect_chat_turn",
    "compose_turn_profile",
    "create_iterable_backend",
    "create_openai_compatible_backend",
    "create_sandbox_prompt_backend",
    "decide_knowledge_readiness",
    "event_from_wire",
    "event_to_wire",
    "merge_agent_profiles",
    "new_session",
    "objective_eval",
    "pending_approvals",
    "run_agent_control_loop",
    "run_agent_task",
    "run_agent_task_stream",
    "run_chat_turn",
    "sandbox_as_chat_turn_target",
    "score_knowledge_readiness",
    "start_runtime_run",
    "subjective_eval",
    "summarize_agent_task_run",
    "usd_by",
    "user_questions_for_knowledge_gaps",
]

__getattr__ = lazily(
    __name__,
    {
        "perdure.agent.adapter": (
            "AgentAdapter",
            "AgentAdapterHooks",
            "AgentKnowledgeHooks",
            "AgentKnowledgeProvider",
            "AgentTaskContext",
        ),
        "perdure.agent.backend": (
            "AgentBackendContext",
            "AgentBackendInput",
            "AgentExecutionBackend",
            "IterableBackend",
            "UpstreamAnswer",
            "create_iterable_backend",
        ),
        "perdure.agent.callable_backend": ("CallableBackend",),
        "perdure.agent.cancel": ("CancelSignal",),
        "perdure.agent.chat_turn": (
            "ChatTurnAuth",
            "ChatTurnCalling",
            "ChatTurnMessage",
            "ChatTurnOverlay",
            "ChatTurnSandbox",
            "compose_turn_profile",
            "run_chat_turn",
            "sandbox_as_chat_turn_target",
        ),
        "perdure.agent.chat_turn_events": ("ChatTurnResult", "collect_chat_turn"),
        "perdure.agent.conformance": (
            "ConformanceIssue",
            "ConformanceOptions",
            "ConformanceResult",
            "assert_profile_conformance",
            "check_profile_conformance",
        ),
        "perdure.agent.control": ("run_agent_control_loop",),
        "perdure.agent.evals": (
            "ControlEvalResult",
            "blocking_knowledge_eval",
            "objective_eval",
            "subjective_eval",
        ),
        "perdure.agent.events": (
            "AgentRuntimeErrorCode",
            "AgentRuntimeEvent",
            "AgentRuntimeEventSink",
            "AgentTaskStatus",
        ),
        "perdure.agent.gaps": (
            "acquisition_plans_for_knowledge_gaps",
            "user_questions_for_knowledge_gaps",
        ),
        "perdure.agent.hooks": ("ControlHooks", "ControlOptions"),
        "perdure.agent.intent": ("ClassifyIntentResult", "SubagentMatcher", "classify_intent"),
        "perdure.agent.knowledge": (
            "DataAcquisitionPlan",
            "KnowledgeBundle",
            "KnowledgeReadinessDecision",
            "KnowledgeReadinessReport",
            "KnowledgeRequirement",
            "UserQuestion",
        ),
        "perdure.agent.model_backend": (
            "BackendRetryPolicy",
            "ModelBackend",
            "ModelOptions",
            "create_openai_compatible_backend",
        ),
        "perdure.agent.preflight": ("ReadinessPolicy",),
        "perdure.agent.profile": (
            "AgentProfile",
            "AgentSubagentProfile",
            "ProfileModel",
            "ProfilePrompt",
            "ProfileResources",
            "merge_agent_profiles",
        ),
        "perdure.agent.readiness": ("decide_knowledge_readiness", "score_knowledge_readiness"),
        "perdure.agent.runtime_run": (
            "RuntimeRun",
            "RuntimeRunCost",
            "RuntimeRunPersistenceAdapter",
            "RuntimeRunRow",
            "RuntimeRunStatus",
            "start_runtime_run",
        ),
        "perdure.agent.sandbox_backend": (
            "DROP",
            "SandboxPromptBackend",
            "create_sandbox_prompt_backend",
        ),
        "perdure.agent.session_life": ("SessionChoice",),
        "perdure.agent.sessions": (
            "InMemoryRuntimeSessionStore",
            "RuntimeSession",
            "RuntimeSessionStore",
            "new_session",
        ),
        "perdure.agent.steps": (
            "Continue",
            "ControlBudget",
            "ControlDecision",
            "ControlRunResult",
            "ControlStep",
            "ControlStopPolicies",
            "Stop",
            "StopDecision",
        ),
        "perdure.agent.stored_rows": ("DurableRunRows",),
        "perdure.agent.stored_sessions": ("DurableSessionStore",),
        "perdure.agent.stored_traces": ("DurableTraceStore",),
        "perdure.agent.stream": ("run_agent_task_stream",),
        "perdure.agent.stream_events": (
            "ArtifactEvent",
            "FinalEvent",
            "LlmCallEvent",
            "ReasoningDeltaEvent",
            "RuntimeStreamEvent",
            "RuntimeStreamEventSink",
            "TextDeltaEvent",
            "ToolCallEvent",
            "ToolResultEvent",
            "event_from_wire",
            "event_to_wire",
        ),
        "perdure.agent.stream_frames": ("AgentTaskProducer",),
        "perdure.agent.summary": ("AgentTaskRunSummary", "summarize_agent_task_run"),
        "perdure.agent.task": ("AgentTaskRunResult", "run_agent_task"),
        "perdure.agent.tool_approval": (
            "Approval",
            "ApprovalRequest",
            "answer_approval",
            "pending_approvals",
        ),
        "perdure.agent.tool_limits": ("ModelUsage", "ToolLimits", "usd_by"),
        "perdure.agent.tool_loop": ("ToolLoop", "ToolLoopResult"),
        "perdure.agent.tools": ("Tool", "ToolCall"),
        "perdure.core.secret": ("Secret",),
    },
)
