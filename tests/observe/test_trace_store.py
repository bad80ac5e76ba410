"""The records of traces in their wire form, and what of them is kept in memory."""

from __future__ import annotations

import pytest

from perdure.core.wire import from_wire, to_wire
from perdure.errors import ValidationError
from perdure.observe.trace_records import (
    TraceBudgetEntry,
    TraceOutcome,
    TraceRun,
    TraceSpan,
    patch_from_wire,
    patch_to_wire,
    patched,
)
from perdure.observe.trace_store import InMemoryTraceStore

RUN = TraceRun(
    run_id="r",
    scenario_id="s",
    started_at=1,
    status="failed",
    outcome=TraceOutcome(passed=False, failure_class="timeout"),
    tags={"a_b": "c"},
)
SPAN = TraceSpan(span_id="x", run_id="r", kind="tool", name="n", started_at=1, args={"a_b": 1})


def test_13_a_run_has_the_names_of_the_wire() -> None:
    wire = {
        "runId": "r",
        "scenarioId": "s",
        "startedAt": 1,
        "status": "failed",
        "outcome": {"pass": False, "failureClass": "timeout"},
        "tags": {"a_b": "c"},
    }
    assert to_wire(RUN) == wire
    assert from_wire(TraceRun, {**wire, "codeSha": "what others add"}) == RUN


def test_13_an_entry_of_a_budget_has_the_names_of_the_wire() -> None:
    entry = TraceBudgetEntry(
        run_id="r",
        dimension="usd",
        limit=1,
        consumed=0.25,
        remaining=0.75,
        breached=False,
        timestamp=5,
        span_id="x",
    )
    assert to_wire(entry) == {
        "runId": "r",
        "dimension": "usd",
        "limit": 1,
        "consumed": 0.25,
        "remaining": 0.75,
        "breached": False,
        "timestamp": 5,
        "spanId": "x",
    }


def test_13_a_change_goes_over_the_wire_and_back() -> None:
    patch = {"ended_at": 9, "args": None, "status": "ok"}
    wire = patch_to_wire(TraceSpan, patch)
    assert wire == {"endedAt": 9, "args": None, "status": "ok"}
    assert patch_from_wire(SPAN, wire) == patch
    assert patched(SPAN, patch).ended_at == 9


@pytest.mark.parametrize("name", ["endedAt", "run_id", "span_id", "colour"])
def test_a_field_that_cannot_be_changed_is_named_with_those_that_can(name: str) -> None:
    with pytest.raises(ValidationError, match=rf"{name}.*ended_at") as caught:
        patched(SPAN, {name: 1})
    with pytest.raises(ValidationError, match=name):
        patch_to_wire(TraceSpan, {name: 1})
    assert "TraceSpan" in str(caught.value)


async def test_the_oldest_run_goes_first_where_memory_is_bounded() -> None:
    store = InMemoryTraceStore(runs_max=2)
    for number, name in enumerate("abc"):
        await store.append_run(TraceRun(run_id=name, scenario_id="s", started_at=number))
        span = TraceSpan(span_id=name, run_id=name, kind="custom", name="n", started_at=number)
        await store.append_span(span)
    assert [run.run_id for run in await store.list_runs()] == ["b", "c"]
    assert [span.span_id for span in await store.spans()] == ["b", "c"]
