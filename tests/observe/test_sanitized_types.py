"""The types of what leaves name exactly what the table lets out, and what is always there."""

from __future__ import annotations

from typing import Any, Final, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

import pytest

from perdure.agent.stream_events import STREAM_EVENTS
from perdure.observe import sanitize, sanitized
from perdure.observe.rules import Part
from perdure.observe.sanitize import sanitize_agent_runtime_event, sanitize_runtime_stream_event
from perdure.observe.sanitized_events import (
    SanitizedEventParts,
    SanitizedRuntimeEvent,
    SanitizedStreamEvent,
)
from perdure.observe.telemetry import RuntimeTelemetryOptions
from tests.agent.test_stream_events import sample
from tests.observe.test_sanitize import ALL, TASK_EVENTS

PARTS: Final[dict[str, Part]] = {
    "SanitizedTask": sanitize.TASK,
    "SanitizedSession": sanitize.SESSION,
    "SanitizedKnowledgeRequirement": sanitize.REQUIREMENT,
    "SanitizedKnowledgeReadinessReport": sanitize.REPORT,
    "SanitizedDecision": sanitize.DECISION,
    "SanitizedQuestion": sanitize.QUESTION,
    "SanitizedPlan": sanitize.PLAN,
    "SanitizedEval": sanitize.EVAL,
    "SanitizedStep": sanitize.STEP,
    "SanitizedControl": sanitize.CONTROL,
    "SanitizedStreamError": sanitize.ERROR,
}
KINDS: Final[dict[str, Any]] = {
    get_args(get_type_hints(kind)["type"])[0]: kind
    for kind in (*get_args(SanitizedRuntimeEvent), *get_args(SanitizedStreamEvent))
}


@pytest.mark.parametrize("name", PARTS)
def test_bb_19_the_type_of_a_part_names_what_may_leave_of_it(name: str) -> None:
    assert get_type_hints(getattr(sanitized, name)).keys() == PARTS[name].keys()


def test_bb_19_there_is_a_type_for_each_event() -> None:
    runtime = {getattr(event, "type", "") for event in TASK_EVENTS}
    assert KINDS.keys() >= {*STREAM_EVENTS, *runtime}
    assert KINDS.keys() >= sanitize.EVENTS.keys()
    stream = {get_args(get_type_hints(kind)["type"])[0] for kind in get_args(SanitizedStreamEvent)}
    assert stream == STREAM_EVENTS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_bb_19_the_type_of_an_event_names_what_may_leave_of_it(name: str) -> None:
    common = {*get_type_hints(SanitizedEventParts), "type"}
    assert get_type_hints(KINDS[name]).keys() == common | sanitize.EVENTS.get(name, {}).keys()


@pytest.mark.parametrize("options", [None, ALL], ids=["none", "all"])
@pytest.mark.parametrize("name", STREAM_EVENTS)
def test_bb_19_what_is_always_there_by_its_type_is_there(
    name: str, options: RuntimeTelemetryOptions | None
) -> None:
    left = sanitize_runtime_stream_event(sample(name), options)
    _fits(left, KINDS[name])
    assert left["task"]["id"] == "t-9"


@pytest.mark.parametrize("options", [None, ALL], ids=["none", "all"])
@pytest.mark.parametrize("event", TASK_EVENTS, ids=lambda event: event.type)
def test_bb_19_what_leaves_of_a_tasks_events_fits_its_type(
    event: Any, options: RuntimeTelemetryOptions | None
) -> None:
    left = sanitize_agent_runtime_event(event, options)
    _fits(left, KINDS[event.type])


def _fits(value: Any, kind: Any) -> None:
    """Fail unless `value` has what `kind` says, in every part of it."""
    if is_typeddict(kind):
        hints = get_type_hints(kind, include_extras=True)
        required = {name for name in hints if get_origin(hints[name]) is not NotRequired}
        assert required <= value.keys() <= hints.keys(), kind.__name__
        for name, item in value.items():
            _fits(item, hints[name])
    elif get_origin(kind) is NotRequired:
        _fits(value, get_args(kind)[0])
    elif get_origin(kind) is list:
        for item in value:
            _fits(item, get_args(kind)[0])
