"""The canaries of a trace: what its store is told holds no more than its options let out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perdure.agent.adapter import AgentTaskContext
from perdure.agent.hooks import ControlOptions
from perdure.agent.steps import Continue, ControlDecision
from perdure.agent.stored_traces import DurableTraceStore
from perdure.agent.task import run_agent_task
from perdure.core.wire import to_wire
from perdure.observe.telemetry import RuntimeTelemetryOptions, telemetry_client, telemetry_log
from perdure.observe.trace import create_trace_bridge
from perdure.observe.trace_store import InMemoryTraceStore
from perdure.store.memory import MemoryStore
from tests.canary.planting import seen
from tests.canary.test_agent_events import ALL, KEY, TASK, Adapter, Provider

PAID = TASK._replace(budget={"maxCostUsd": 0.5})


class Paid(Adapter):
    def get_action_cost_usd(self, *_: Any) -> float:
        return 0.5


class Careless(Paid):
    """Acts with a key, and fails with it."""

    def decide(self, context: AgentTaskContext) -> ControlDecision:
        return Continue({"header": f"Bearer {KEY}"}, reason=f"password={KEY}")

    def act(self, action: Any, context: AgentTaskContext) -> Any:
        raise ConnectionError(f"refused: {KEY}")


async def told(options: RuntimeTelemetryOptions | None, adapter: Adapter | None = None) -> str:
    """Return all that both stores keep of a task, and what is stored of it."""
    shown: list[Any] = []
    runs = MemoryStore()
    for store, durable in (
        (InMemoryTraceStore(), None),
        (DurableTraceStore(runs), (runs, "r")),
    ):
        events: list[Any] = []
        result = await run_agent_task(
            PAID,
            adapter or Paid(),
            knowledge=Provider(),
            on_event=events.append,
            control=ControlOptions(trace_store=store, telemetry=options, variant_id="v"),
            durable=durable,
        )
        assert not [each for each in result.control.runtime_errors if each.phase == "trace"]
        run_id = result.control.run_id or ""
        for event in create_trace_bridge(run_id=run_id, options=options).drain(events):
            await store.append_event(event)
        kept = [await store.list_runs(), await store.spans(), await store.budget(run_id)]
        kept.append(await store.events())
        assert all(kept) or adapter is not None
        shown += [to_wire(each) for each in kept]
    shown += [event.payload for event in (await runs.read_details("agent-trace:r")).events]
    return json.dumps(shown)


@pytest.mark.parametrize("options", [None, telemetry_log()])
async def test_by_default_no_canary_is_in_a_trace(options: RuntimeTelemetryOptions | None) -> None:
    assert seen(await told(options)) == set()


async def test_with_words_only_the_words_are_in_a_trace() -> None:
    assert seen(await told(telemetry_client())) == {"error_message"}


async def test_with_all_switches_a_trace_has_the_step_and_nothing_that_never_leaves() -> None:
    words = {"action", "action_result", "error_message", "eval_detail", "eval_evidence"}
    assert seen(await told(ALL)) == words


async def test_what_looks_like_a_credential_is_masked_whatever_the_switches_say() -> None:
    shown = await told(ALL, Careless())
    assert KEY not in shown
    assert "refused: [redacted]" in shown
