"""What hooks may return: checked where it was returned, and read back from the record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeGuard, cast

from perdure.agent.evals import ControlEvalResult
from perdure.agent.steps import Continue, ControlDecision, Stop, StopDecision
from perdure.core.records import JsonValue
from perdure.core.wire import from_wire
from perdure.errors import UsageError


def checked_decision(value: object) -> ControlDecision:
    """Return what `decide` returned. Raises UsageError if it is no decision."""
    if not _is_decision(value):
        raise UsageError(f"decide must return Continue or Stop, not {value!r:.60}")
    return value


def _is_decision(value: object) -> TypeGuard[ControlDecision]:
    return isinstance(value, Continue | Stop)


def checked_stop(value: object) -> StopDecision:
    """Return what `should_stop` returned. Raises UsageError if it is no StopDecision."""
    if not isinstance(value, StopDecision):
        raise UsageError(f"should_stop must return a StopDecision, not {value!r:.60}")
    return value


def checked_evals(value: object) -> tuple[ControlEvalResult, ...]:
    """Return what `validate` returned. Raises UsageError if it is no sequence of evals."""
    if not isinstance(value, list | tuple):
        raise UsageError(f"validate must return a list of evals, not {value!r:.60}")
    evals: list[ControlEvalResult] = []
    for each in cast("Sequence[object]", value):
        if not isinstance(each, ControlEvalResult):
            raise UsageError(f"validate returned {each!r:.60}, which is no ControlEvalResult")
        evals.append(each)
    return tuple(evals)


def checked_ids(value: object, name: str) -> tuple[str, ...]:
    """Return the ids that `name` returned. Raises UsageError for what is no list of texts."""
    if not isinstance(value, list | tuple | set | frozenset):
        raise UsageError(f"{name} must return a list of ids, not {value!r:.40}")
    ids = tuple(cast("Iterable[object]", value))
    for each in ids:
        if not isinstance(each, str):
            raise UsageError(f"{name} must return ids that are a str each, not {each!r:.40}")
    return cast("tuple[str, ...]", ids)


def checked_records(value: object) -> Sequence[object]:
    """Return the records that a hook returned; None is none. Raises UsageError for no list."""
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise UsageError(f"project_run_records must return a list of records, not {value!r:.40}")
    return cast("Sequence[object]", value)


def read_decision(value: JsonValue) -> ControlDecision:
    """Return the decision of its wire form. Raises UsageError."""
    try:
        return from_wire(Stop, value)
    except UsageError:
        return from_wire(Continue, value)


def read_stop(value: JsonValue) -> StopDecision:
    """Return the word of a stop policy of its wire form. Raises UsageError."""
    return from_wire(StopDecision, value)


def read_evals(value: JsonValue) -> tuple[ControlEvalResult, ...]:
    """Return the evals of their wire form. Raises UsageError."""
    return tuple(from_wire(ControlEvalResult, each) for each in value)
