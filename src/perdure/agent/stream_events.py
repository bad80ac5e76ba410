"""The events of a streamed task: a record for each of the 21 types, and their wire form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, Final, Literal, cast, get_args

from perdure.agent.events import AgentTaskStatus
from perdure.agent.knowledge import (
    Answer,
    DataAcquisitionPlan,
    KnowledgeReadinessDecision,
    KnowledgeReadinessReport,
    UserQuestion,
)
from perdure.agent.sessions import RuntimeSession
from perdure.core.jsonvalue import encode_value
from perdure.core.records import AgentTaskSpec, JsonValue
from perdure.core.wire import from_wire, to_wire
from perdure.errors import NotSerializableError, UsageError, ValidationError


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvent:
    """What every event of the runtime itself has: its task, and when it happened."""

    task: AgentTaskSpec
    timestamp: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEvent(TaskEvent):
    """What every event has that the runtime makes of a session."""

    session: RuntimeSession


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendEvent:
    """What every event of a backend has; the runtime fills in what the backend left out."""

    task: AgentTaskSpec | None = None
    session: RuntimeSession | None = None
    timestamp: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamError:
    """Where a task failed, and what is known of it: `status` and `body` are a transport's."""

    kind: Literal["transport", "backend", "readiness", "session"]
    message: str
    status: int | None = None
    body: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStartEvent(TaskEvent):
    """The task begins; it is the first event."""

    type: Literal["task_start"] = "task_start"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadinessStartEvent(TaskEvent):
    """Readiness is about to be found out, or found out again."""

    type: Literal["readiness_start"] = "readiness_start"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadinessEndEvent(TaskEvent):
    """The report that decides; there is one in each stream that gets so far."""

    knowledge: KnowledgeReadinessReport
    decision: KnowledgeReadinessDecision
    type: Literal["readiness_end"] = "readiness_end"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionsStartEvent(TaskEvent):
    """The user is asked."""

    questions: tuple[UserQuestion, ...]
    type: Literal["questions_start"] = "questions_start"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionsEndEvent(TaskEvent):
    """The user has answered; answers that are credentials are Secrets."""

    questions: tuple[UserQuestion, ...]
    user_answers: Mapping[str, Answer]
    type: Literal["questions_end"] = "questions_end"


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquisitionStartEvent(TaskEvent):
    """Plans to acquire knowledge are carried out."""

    acquisition_plans: tuple[DataAcquisitionPlan, ...]
    type: Literal["acquisition_start"] = "acquisition_start"


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquisitionEndEvent(TaskEvent):
    """The plans were carried out, and brought this evidence."""

    acquisition_plans: tuple[DataAcquisitionPlan, ...]
    acquired_evidence_ids: tuple[str, ...]
    type: Literal["acquisition_end"] = "acquisition_end"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCreatedEvent(SessionEvent):
    """A session was begun and stored; from here on each event is stored before it is told."""

    type: Literal["session_created"] = "session_created"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionResumedEvent(SessionEvent):
    """A stored session was taken up again."""

    type: Literal["session_resumed"] = "session_resumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendStartEvent(SessionEvent):
    """The backend is asked."""

    backend: str
    type: Literal["backend_start"] = "backend_start"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDeltaEvent(BackendEvent):
    """A piece of the answer's text."""

    text: str
    type: Literal["text_delta"] = "text_delta"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningDeltaEvent(BackendEvent):
    """A piece of the model's reasoning."""

    text: str
    type: Literal["reasoning_delta"] = "reasoning_delta"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallEvent(BackendEvent):
    """A tool is called, by the model or by the backend itself."""

    tool_name: str
    tool_call_id: str | None = None
    args: JsonValue = None
    type: Literal["tool_call"] = "tool_call"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResultEvent(BackendEvent):
    """What a tool came to."""

    tool_name: str
    tool_call_id: str | None = None
    result: JsonValue = None
    type: Literal["tool_result"] = "tool_result"


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmCallEvent(BackendEvent):
    """What one call of a model used; None is unknown, never zero.

    `tokens_cached` (read from the provider's cache) and `tokens_cache_written` are part of
    `tokens_in`, and `tokens_reasoning` of `tokens_out`. `request_id` is the provider's.
    """

    model: str
    tokens_in: int | None = None
    tokens_out: int | None = None
    cost_usd: float | None = None
    latency_ms: float | None = None
    finish_reason: str | None = None
    tokens_cached: int | None = None
    tokens_reasoning: int | None = None
    provider: str | None = None
    request_id: str | None = None
    tokens_cache_written: int | None = None
    type: Literal["llm_call"] = "llm_call"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactEvent(BackendEvent):
    """Something was made that outlives the answer."""

    artifact_id: str
    name: str | None = None
    mime_type: str | None = None
    uri: str | None = None
    content: JsonValue = None
    metadata: Mapping[str, JsonValue] | None = None
    type: Literal["artifact"] = "artifact"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalCreatedEvent(BackendEvent):
    """Something is proposed that a person decides on."""

    proposal_id: str
    title: str
    status: Literal["pending", "approved", "rejected"] | None = None
    content: JsonValue = None
    type: Literal["proposal_created"] = "proposal_created"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendErrorEvent(TaskEvent):
    """The backend failed or was cut off; `recoverable`: the same task may succeed later."""

    backend: str
    message: str
    recoverable: bool
    session: RuntimeSession | None = None
    error: StreamError | None = None
    type: Literal["backend_error"] = "backend_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendEndEvent(SessionEvent):
    """The backend has said everything."""

    backend: str
    type: Literal["backend_end"] = "backend_end"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEndEvent(TaskEvent):
    """The task is over; only `final` follows."""

    status: AgentTaskStatus
    reason: str
    type: Literal["task_end"] = "task_end"


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalEvent(TaskEvent):
    """How the task ended, and the whole text (None if there is none); it is the last event."""

    status: AgentTaskStatus
    reason: str
    session: RuntimeSession | None = None
    text: str | None = None
    error: StreamError | None = None
    metadata: Mapping[str, JsonValue] | None = None
    type: Literal["final"] = "final"


BackendStreamEvent = (
    TextDeltaEvent
    | ReasoningDeltaEvent
    | ToolCallEvent
    | ToolResultEvent
    | LlmCallEvent
    | ArtifactEvent
    | ProposalCreatedEvent
)
"""What a backend may yield; the other types are the runtime's own."""

RuntimeStreamEvent = (
    TaskStartEvent
    | ReadinessStartEvent
    | ReadinessEndEvent
    | QuestionsStartEvent
    | QuestionsEndEvent
    | AcquisitionStartEvent
    | AcquisitionEndEvent
    | SessionCreatedEvent
    | SessionResumedEvent
    | BackendStartEvent
    | BackendStreamEvent
    | BackendErrorEvent
    | BackendEndEvent
    | TaskEndEvent
    | FinalEvent
)
RuntimeStreamEventSink = Callable[[RuntimeStreamEvent], Any]
"""Takes each event, plain or async."""

BACKEND_EVENTS: Final = get_args(BackendStreamEvent)
_TEXTS: Final[Mapping[type[Any], tuple[str, ...]]] = {
    kind: tuple(field.name for field in fields(kind) if field.default is MISSING)
    for kind in BACKEND_EVENTS
}
"""What an event of a backend cannot do without: all of it texts."""
STREAM_EVENTS: Final[Mapping[str, type[Any]]] = {
    kind.__dataclass_fields__["type"].default: kind for kind in get_args(RuntimeStreamEvent)
}
"""The record of each type, by its name on the wire."""


@dataclass(frozen=True, slots=True)
class UnknownEvent:
    """An event of a type that this version does not know, as it came."""

    type: str
    data: Mapping[str, JsonValue]


def event_to_wire(event: RuntimeStreamEvent | UnknownEvent) -> dict[str, JsonValue]:
    """Return the event as plain JSON, unredacted but for Secrets (see `sanitize_event`)."""
    if isinstance(event, UnknownEvent):
        return dict(event.data)
    return cast("dict[str, JsonValue]", to_wire(event))


def event_from_wire(
    value: Mapping[str, JsonValue], *, lenient: bool = False
) -> RuntimeStreamEvent | UnknownEvent:
    """Return the event whose wire form is `value`.

    Raises ValidationError for an unknown type, unless `lenient` has it returned as UnknownEvent,
    and UsageError for a known one whose fields do not fit.
    """
    name = value.get("type")
    kind = STREAM_EVENTS.get(name) if isinstance(name, str) else None
    if kind is not None:
        return cast("RuntimeStreamEvent", from_wire(kind, dict(value)))
    if lenient and isinstance(name, str):
        return UnknownEvent(name, dict(value))
    raise ValidationError(f"{name!r:.60} is no type of a stream's event")


def fault_of(event: BackendStreamEvent) -> str | None:
    """Return why a backend's event cannot be told, to go behind its type; None if it can.

    It is the same whatever keeps the session: what can be written as JSON and read back.
    """
    for name in _TEXTS[type(event)]:
        if not isinstance(text := getattr(event, name), str):
            return f"whose {name} is {text!r:.60}, no text"
    if isinstance(event, TextDeltaEvent | ReasoningDeltaEvent):
        return None
    wire = event_to_wire(replace(event, task=None, session=None, timestamp=None))
    try:
        encode_value(wire, name=event.type)
        event_from_wire(wire)
    except (NotSerializableError, UsageError) as error:
        return f"that cannot be kept: {error}"
    return None
