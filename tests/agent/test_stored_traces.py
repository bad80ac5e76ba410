"""Traces in the database of the runs: whose they are, what they cost, and what the ledger says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perdure.agent.hooks import ControlOptions
from perdure.agent.stored_traces import LOGS_MAX, DurableTraceStore
from perdure.agent.task import run_agent_task
from perdure.core.records import AgentTaskSpec, RunDetails, SessionKey
from perdure.durable.erasing import erase_run, erase_session, erase_user
from perdure.durable.scope import report_usage
from perdure.errors import NotFoundError, RunNotFoundError
from perdure.observe.ledger import run_usage
from perdure.observe.trace import create_trace_bridge
from perdure.observe.trace_records import TraceRun, TraceSpan, TraceSpanQuery
from perdure.observe.trace_store import InMemoryTraceStore
from perdure.store.memory import MemoryStore
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.testing.samples import ended, hold
from tests.agent.robots import Climber

TASK = AgentTaskSpec("climb", "Climb the ladder")


def a_run(run_id: str = "r", *, at: int = 1) -> TraceRun:
    return TraceRun(run_id=run_id, scenario_id="s", started_at=at)


def a_span(span_id: str, run_id: str = "r") -> TraceSpan:
    return TraceSpan(span_id=span_id, run_id=run_id, kind="custom", name="n", started_at=1)


async def entries(store: RunStore, run_id: str) -> list[Any]:
    return [event.payload for event in (await store.read_details(run_id)).events]


@pytest.mark.parametrize("url", ["sqlite:{}/runs.db", "file:{}/runs"])
async def test_a_trace_outlives_its_process(url: str, tmp_path: Path) -> None:
    store = await open_store(url.format(tmp_path))
    options = ControlOptions(trace_store=DurableTraceStore(store), variant_id="v")
    await run_agent_task(TASK, Climber(), durable=(store, "task:1"), control=options)
    told = await DurableTraceStore(store).spans()
    await store.close()
    store = await open_store(url.format(tmp_path))
    traces = DurableTraceStore(store)
    [run] = await traces.list_runs()
    assert (run.run_id, run.status, run.variant_id) == ("task:1", "completed", "v")
    assert await traces.spans(TraceSpanQuery("task:1")) == told
    await store.close()


async def test_a_trace_that_is_told_again_is_not_written_again() -> None:
    store = MemoryStore()
    for _ in range(3):
        options = ControlOptions(trace_store=DurableTraceStore(store))
        await run_agent_task(TASK, Climber(), durable=(store, "r"), control=options)
    kept = await entries(store, "agent-trace:r")
    texts = [json.dumps(entry, sort_keys=True) for entry in kept]
    assert len(texts) == len(set(texts)) > 10


async def test_traces_of_somebody_else_are_not_there() -> None:
    store = MemoryStore()
    hers = DurableTraceStore(store, owner_id="ada")
    await hers.append_run(a_run())
    await hers.append_span(a_span("x"))
    for owner_id in ("bob", None):
        other = DurableTraceStore(store, owner_id=owner_id)
        assert await other.get_run("r") is None
        assert await other.list_runs() == []
        assert await other.spans(TraceSpanQuery("r")) == []
        for refused in (other.append_span(a_span("y")), other.update_span("x", {"name": "m"})):
            with pytest.raises(NotFoundError):
                await refused
        with pytest.raises(RunNotFoundError):
            await other.append_run(a_run())
    assert await DurableTraceStore(store.for_tenant("acme"), owner_id="ada").list_runs() == []
    assert [run.run_id for run in await hers.list_runs()] == ["r"]
    await erase_user(store, "ada")
    assert await DurableTraceStore(store, owner_id="ada").list_runs() == []
    assert await store.list_runs() == []


async def test_a_trace_goes_with_the_run_that_it_tells_of() -> None:
    store = MemoryStore()
    for owner_id in (None, "ada"):
        traces = DurableTraceStore(store, owner_id=owner_id)
        options = ControlOptions(trace_store=traces)
        await run_agent_task(TASK, Climber(), durable=(store, "r"), control=options)
        await traces.append_run(a_run("r#2"))
        await traces.append_run(a_run("other"))
        assert await erase_run(store, "r")
        assert [run.run_id for run in await traces.list_runs()] == ["other"]
        await erase_run(store, "agent-trace:other")
        assert await erase_run(store, "r") is False


@pytest.mark.parametrize("by_user", [True, False])
async def test_traces_of_a_turn_go_with_its_session_and_its_user(by_user: bool) -> None:
    store = MemoryStore()
    for owner, turn in (("ada", 0), ("ada", 1), ("bob", 0)):
        session = SessionKey(f"chat-{owner}", turn, owner_id=owner)
        lease = await hold(store, f"{owner}:{turn}", session=session)
        await store.write(lease, ended("completed"))
        await DurableTraceStore(store).append_run(a_run(f"{owner}:{turn}"))
    with pytest.raises(RunNotFoundError):
        await erase_session(store, "chat-ada", owner_id="bob")
    assert len(await DurableTraceStore(store).list_runs()) == 3
    await (erase_user(store, "ada") if by_user else erase_session(store, "chat-ada"))
    assert [run.run_id for run in await DurableTraceStore(store).list_runs()] == ["bob:0"]


async def test_traces_of_two_tenants_share_nothing() -> None:
    store = MemoryStore()
    for tenant in ("a", "b"):
        traces = DurableTraceStore(store.for_tenant(tenant))
        await traces.append_run(a_run())
        await traces.append_span(a_span(tenant))
    for tenant in ("a", "b"):
        found = await DurableTraceStore(store.for_tenant(tenant)).spans()
        assert [span.span_id for span in found] == [tenant]
    assert await DurableTraceStore(store).list_runs() == []


async def test_more_traces_are_written_at_once_than_a_handle_remembers() -> None:
    traces = DurableTraceStore(MemoryStore())
    for number in range(LOGS_MAX + 3):
        await traces.append_run(a_run(str(number), at=number))
        await traces.append_span(a_span(f"{number}.a", str(number)))
    await traces.update_span("0.a", {"name": "changed"})
    await traces.append_span(a_span("0.b", "0"))
    assert [int(run.run_id) for run in await traces.list_runs()] == [*range(LOGS_MAX + 3)]
    found = await traces.spans(TraceSpanQuery("0"))
    assert [(span.span_id, span.name) for span in found] == [("0.a", "changed"), ("0.b", "n")]


async def test_a_write_that_failed_is_not_taken_for_one_that_is_there() -> None:
    class Full(MemoryStore):
        is_full = False

        async def emit_event(self, run_id: str, key: str, payload: Any) -> Any:
            if self.is_full:
                raise OSError("the disk is full")
            return await super().emit_event(run_id, key, payload)

    store = Full()
    traces = DurableTraceStore(store)
    await traces.append_run(a_run())
    store.is_full = True
    with pytest.raises(OSError, match="full"):
        await traces.append_span(a_span("x"))
    store.is_full = False
    assert await traces.spans() == []
    await traces.append_span(a_span("x"))
    assert await traces.spans() == [a_span("x")]


class Paying(Climber):
    """Reports what each decision used, as a model would."""

    async def decide(self, context: Any) -> Any:
        report_usage(model="m-1", provider="acme", tokens_in=7, tokens_out=3, tokens_cached=2)
        return await super().decide(context)


async def test_the_model_calls_of_a_durable_run_are_those_of_its_ledger() -> None:
    store = MemoryStore()
    traces = DurableTraceStore(store)
    options = ControlOptions(trace_store=traces)
    await run_agent_task(TASK, Paying(), durable=(store, "r"), control=options)
    bill = await run_usage(store, "r")
    calls = await traces.spans(TraceSpanQuery("r", kind="llm"))
    assert len(calls) == bill.calls == 2
    assert sum(call.input_tokens or 0 for call in calls) == bill.tokens_in == 14
    assert {(call.model, call.cost_usd, call.status) for call in calls} == {("m-1", None, "ok")}
    assert all(call.attributes and call.attributes["provider"] == "acme" for call in calls)
    # They are read where they are kept, and nowhere kept twice.
    assert not [each for each in await entries(store, "agent-trace:r") if "llm" in str(each)]


async def test_13_the_events_of_a_bridge_are_kept_beside_the_spans() -> None:
    for traces in (InMemoryTraceStore(), DurableTraceStore(MemoryStore())):
        told: list[Any] = []
        options = ControlOptions(trace_store=traces)
        result = await run_agent_task(TASK, Climber(), on_event=told.append, control=options)
        assert result.control.run_id is not None
        bridge = create_trace_bridge(run_id=result.control.run_id)
        projected = [*bridge.drain(told)]
        for event in projected:
            await traces.append_event(event)
        [scored, *bridged] = await traces.events()
        assert scored.payload["kind"] == "readiness_scored"
        assert bridged == projected
        assert "task_end" in [event.payload["phase"] for event in projected]


class Counting(MemoryStore):
    """Counts how many traces are read."""

    reads = 0

    async def read_details(self, run_id: str) -> RunDetails:
        self.reads += 1
        return await super().read_details(run_id)


@pytest.mark.parametrize("count", [6, 60])
async def test_a_page_reads_as_many_traces_as_it_has(count: int) -> None:
    store = Counting()
    for number in range(count):
        await DurableTraceStore(store).append_run(a_run(f"r-{number:03}", at=number))
    store.reads = 0
    [last, _] = page = await DurableTraceStore(store).find_runs(limit=2)
    assert (len(page), store.reads) == (2, 2)
    assert last.run_id == f"r-{count - 1:03}"
    await DurableTraceStore(store).find_runs(after=last.run_id, limit=3)
    assert store.reads == 2 + 3


async def test_a_page_has_nothing_of_another_owner() -> None:
    store = MemoryStore()
    await DurableTraceStore(store, owner_id="ada").append_run(a_run("hers"))
    await DurableTraceStore(store).append_run(a_run("free"))
    for owner, ids in (("ada", {"free", "hers"}), ("bob", {"free"}), (None, {"free"})):
        traces = DurableTraceStore(store, owner_id=owner)
        assert {run.run_id for run in await traces.find_runs(limit=2)} == ids
    with pytest.raises(NotFoundError):
        await DurableTraceStore(store, owner_id="bob").find_runs(after="hers")
