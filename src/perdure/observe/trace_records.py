"""The records of traces: runs, their spans, and the entries of their budgets; and a change of one.

Times are whole milliseconds since the epoch. `to_wire` gives the wire form of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple, TypeVar

from perdure.core.records import JsonValue
from perdure.core.wire import WIRE, fields_of, from_wire, to_wire
from perdure.errors import ValidationError
from perdure.observe.trace import TraceKind

TraceRunStatus = Literal["running", "completed", "failed", "aborted"]
TraceSpanKind = Literal["agent", "llm", "tool", "retrieval", "judge", "sandbox", "custom"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOutcome:
    """What a run came to; `score` is from 0 (worst) to 1 (best)."""

    passed: bool | None = field(default=None, metadata={WIRE: "pass"})
    score: float | None = None
    failure_class: str | None = None
    notes: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRun:
    """One run of a scenario, in a variant of what is compared.

    `layer` says what of a larger whole it is (`meta` for a control loop).
    """

    run_id: str
    scenario_id: str
    started_at: int
    status: TraceRunStatus = "running"
    project_id: str | None = None
    variant_id: str | None = None
    layer: str | None = None
    ended_at: int | None = None
    outcome: TraceOutcome | None = None
    tags: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSpan:
    """One piece of work within a run; which fields it has beside the common ones says its kind.

    A `tool` has a name, arguments and a result. A `judge` says of `target_span_id` (a span, or
    the run) how it scores in one dimension. An `llm` call has what it used; what is not known of
    that is None.
    """

    span_id: str
    run_id: str
    kind: TraceSpanKind
    name: str
    started_at: int
    ended_at: int | None = None
    parent_span_id: str | None = None
    status: Literal["ok", "error"] | None = None
    error: str | None = None
    attributes: Mapping[str, JsonValue] | None = None
    tool_name: str | None = None
    args: JsonValue = None
    result: JsonValue = None
    latency_ms: float | None = None
    judge_id: str | None = None
    target_span_id: str | None = None
    dimension: str | None = None
    score: float | None = None
    rationale: str | None = None
    evidence: str | None = None
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_usd: float | None = None
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceBudgetEntry:
    """How a budget stood after something was taken from it; `consumed` is all that was taken."""

    run_id: str
    dimension: Literal["tokens", "wallMs", "calls", "usd"]
    limit: float
    consumed: float
    remaining: float
    breached: bool
    timestamp: int
    span_id: str | None = None


class TraceRunQuery(NamedTuple):
    """Which runs are wanted: those that have everything that is not None here.

    `tag` is a name and its value. `since` and `until` are moments: begun at `since` or later, and
    at `until` or before.
    """

    scenario_id: str | None = None
    variant_id: str | None = None
    project_id: str | None = None
    layer: str | None = None
    status: TraceRunStatus | None = None
    tag: tuple[str, str] | None = None
    since: int | None = None
    until: int | None = None


class TraceSpanQuery(NamedTuple):
    """Which spans are wanted, as in TraceRunQuery."""

    run_id: str | None = None
    parent_span_id: str | None = None
    kind: TraceSpanKind | None = None
    name: str | None = None
    tool_name: str | None = None
    judge_id: str | None = None
    since: int | None = None
    until: int | None = None


class TraceEventQuery(NamedTuple):
    """Which events are wanted, as in TraceRunQuery."""

    run_id: str | None = None
    span_id: str | None = None
    kind: TraceKind | None = None
    since: int | None = None
    until: int | None = None


Query = TraceRunQuery | TraceSpanQuery | TraceEventQuery


def is_wanted(record: Any, at: int, wanted: Query) -> bool:
    """Return whether a record, which is of the moment `at`, is one of those that are wanted."""
    for name, value in wanted._asdict().items():
        if value is None:
            continue
        if name == "since":
            fits = at >= value
        elif name == "until":
            fits = at <= value
        elif name == "tag":
            fits = record.tags is not None and record.tags.get(value[0]) == value[1]
        else:
            fits = getattr(record, name) == value
        if not fits:
            return False
    return True


R = TypeVar("R", TraceRun, TraceSpan)

Patch = Mapping[str, Any]
"""A change of a record: new values by the names of the fields (`ended_at`)."""

_FIXED: Final = ("run_id", "span_id")


def patched(record: R, patch: Patch) -> R:
    """Return the record with the values of the patch in their fields.

    Raises ValidationError for a field that it has not, or that says which record it is.
    """
    _check(type(record), patch)
    return replace(record, **patch)


def patch_to_wire(kind: type[TraceRun | TraceSpan], patch: Patch) -> dict[str, JsonValue]:
    """Return the wire form of a change; None stays in it, as null. Raises ValidationError."""
    _check(kind, patch)
    names = {field.name: field.wire for field in fields_of(kind)}
    return {names[name]: to_wire(value) for name, value in patch.items()}


def patch_from_wire(record: R, wire: Mapping[str, JsonValue]) -> dict[str, Any]:
    """Return the change of the record whose wire form is `wire`."""
    kept: dict[str, JsonValue] = to_wire(record)
    changed = from_wire(type(record), {**kept, **wire})
    names = [field.name for field in fields_of(type(record)) if field.wire in wire]
    return {name: getattr(changed, name) for name in names}


def _check(kind: type[Any], patch: Patch) -> None:
    known = [field.name for field in fields_of(kind) if field.name not in _FIXED]
    for name in patch:
        if name not in known:
            raise ValidationError(
                f"{name!r:.60} of a {kind.__name__} cannot be changed; what can is "
                f"{', '.join(known)}"
            )
