"""The trace bridge: the events of a stream as the trace events of an evaluation library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Final, Literal, cast

from perdure.core.effects import epoch_ms, new_uuid, system_clock
from perdure.core.records import JsonValue
from perdure.errors import ValidationError
from perdure.observe.sanitize import sanitize_event
from perdure.observe.telemetry import RuntimeTelemetryOptions, telemetry_log

TraceKind = Literal[
    "log",
    "error",
    "budget_decrement",
    "budget_breach",
    "state_mutation",
    "policy_violation",
    "redaction_applied",
    "custom",
]

Event = Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One thing that happened in a run, at `timestamp` (milliseconds since the epoch)."""

    event_id: str
    run_id: str
    kind: TraceKind
    timestamp: int
    payload: Mapping[str, JsonValue]
    span_id: str | None = None


class TraceBridge:
    """Projects the events of one run, one way; what is no news for an evaluation is dropped.

    A payload holds only what may leave by the options of the bridge (`telemetry_log()`), so a
    reason is `[redacted]` there without `include_text`. An id is `<run id>:<number>`, and what is
    dropped takes none.
    """

    def __init__(
        self,
        *,
        run_id: str,
        span_id: str | None = None,
        new_event_id: Callable[[], str] | None = None,
        now: Callable[[], int] | None = None,
        options: RuntimeTelemetryOptions | None = None,
    ) -> None:
        if not run_id:
            raise ValidationError("the run_id of a trace bridge must not be empty")
        numbers = count(1)
        self._run_id = run_id
        self._span_id = span_id
        self._new_event_id = new_event_id or (lambda: f"{run_id}:{next(numbers)}")
        self._now = now or system_clock
        self._options = options or telemetry_log()

    def project(self, event: object) -> TraceEvent | None:
        """Return the trace event of `event`, None for a delta and for an unknown type."""
        known = sanitize_event(event, self._options)
        payload_of = _PAYLOADS.get(str(known["type"]))
        if payload_of is None:
            return None
        payload: dict[str, JsonValue] = {"phase": known["type"], **payload_of(known)}
        return TraceEvent(
            event_id=self._new_event_id(),
            run_id=self._run_id,
            kind=_kind_of(known),
            timestamp=self._moment(known.get("timestamp")),
            payload={name: value for name, value in payload.items() if value is not None},
            span_id=self._span_id,
        )

    def drain(self, events: Iterable[object]) -> Iterator[TraceEvent]:
        """Yield the trace events of `events`, in order."""
        for event in events:
            projected = self.project(event)
            if projected is not None:
                yield projected

    def _moment(self, timestamp: JsonValue) -> int:
        try:
            return epoch_ms(timestamp)
        except (TypeError, ValueError):
            return self._now()


def create_trace_bridge(
    *,
    run_id: str,
    span_id: str | None = None,
    new_event_id: Callable[[], str] | None = None,
    now: Callable[[], int] | None = None,
    options: RuntimeTelemetryOptions | None = None,
) -> TraceBridge:
    """Return a bridge for the events of one run. Raises ValidationError for an empty `run_id`."""
    return TraceBridge(
        run_id=run_id, span_id=span_id, new_event_id=new_event_id, now=now, options=options
    )


def to_agent_eval_trace(
    event: object,
    *,
    run_id: str,
    span_id: str | None = None,
    new_event_id: Callable[[], str] = new_uuid,
    now: Callable[[], int] | None = None,
    options: RuntimeTelemetryOptions | None = None,
) -> TraceEvent | None:
    """Return the trace event of one event; its id is a UUID, so that no two are alike."""
    bridge = create_trace_bridge(
        run_id=run_id, span_id=span_id, new_event_id=new_event_id, now=now, options=options
    )
    return bridge.project(event)


def _kind_of(event: Event) -> TraceKind:
    match event["type"]:
        case "readiness_end":
            passed = _member(event, "decision", "passed")
            return "log" if passed else "policy_violation"
        case "backend_error":
            return "error"
        case "artifact":
            return "state_mutation"
        case "task_end" | "final" if event.get("status") in ("failed", "aborted"):
            return "error"
        case _:
            return "log"


def _fields(*names: str) -> Callable[[Event], dict[str, JsonValue]]:
    return lambda event: {name: event.get(name) for name in names}


def _member(event: Event, name: str, inner: str) -> JsonValue:
    record = event.get(name)
    return cast("Event", record).get(inner) if isinstance(record, Mapping) else None


def _length(event: Event, name: str) -> int:
    items = event.get(name)
    return len(cast("list[JsonValue]", items)) if isinstance(items, list | Mapping) else 0


def _task(event: Event) -> dict[str, JsonValue]:
    return {"taskId": _member(event, "task", "id")}


def _task_start(event: Event) -> dict[str, JsonValue]:
    return {**_task(event), "intent": _member(event, "task", "intent")}


def _readiness_end(event: Event) -> dict[str, JsonValue]:
    names = ("status", "readinessScore", "blockingGapIds", "nonBlockingGapIds", "reason")
    return {**_task(event), **{name: _member(event, "decision", name) for name in names}}


def _questions_start(event: Event) -> dict[str, JsonValue]:
    return {"questionCount": _length(event, "questions")}


def _questions_end(event: Event) -> dict[str, JsonValue]:
    return {**_questions_start(event), "answerCount": _length(event, "userAnswers")}


def _acquisition_start(event: Event) -> dict[str, JsonValue]:
    return {"planCount": _length(event, "acquisitionPlans")}


def _acquisition_end(event: Event) -> dict[str, JsonValue]:
    return {**_acquisition_start(event), "evidenceCount": event.get("acquiredEvidenceCount", 0)}


def _session(event: Event) -> dict[str, JsonValue]:
    names = {"sessionId": "id", "backend": "backend"}
    return {name: _member(event, "session", inner) for name, inner in names.items()}


_TOOL: Final = _fields("toolName", "toolCallId")
_BACKEND: Final = _fields("backend")
_END: Final = _fields("status", "reason")

_PAYLOADS: Final[Mapping[str, Callable[[Event], dict[str, JsonValue]]]] = {
    "task_start": _task_start,
    "readiness_start": _task,
    "readiness_end": _readiness_end,
    "questions_start": _questions_start,
    "questions_end": _questions_end,
    "acquisition_start": _acquisition_start,
    "acquisition_end": _acquisition_end,
    "session_created": _session,
    "session_resumed": _session,
    "backend_start": _BACKEND,
    "backend_end": _BACKEND,
    "backend_error": _fields("backend", "message", "recoverable"),
    "tool_call": _TOOL,
    "tool_result": _TOOL,
    "llm_call": _fields("model", "tokensIn", "tokensOut", "costUsd", "latencyMs", "finishReason"),
    "artifact": _fields("artifactId", "name", "mimeType"),
    "task_end": _END,
    "final": _END,
}
"""For each type of event that is projected, what its payload holds beside the phase."""
