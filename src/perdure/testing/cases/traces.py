"""What a trace store keeps: runs, and the spans, events and budgets of each, whole and in order."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Final

from perdure.agent.control import run_agent_control_loop
from perdure.agent.evals import objective_eval
from perdure.agent.hooks import ControlHooks, ControlOptions
from perdure.agent.steps import Continue, ControlBudget
from perdure.errors import NotFoundError, ValidationError
from perdure.observe.trace import TraceEvent
from perdure.observe.trace_records import (
    TraceBudgetEntry,
    TraceEventQuery,
    TraceOutcome,
    TraceRun,
    TraceRunQuery,
    TraceSpan,
    TraceSpanQuery,
)
from perdure.testing.lab import same
from perdure.testing.trace_store_lab import TraceStoreLab

AT: Final = 1_778_371_200_000
WRITERS: Final = 3
ODD_IDS: Final = ("a", "A", "a:1", "a/1", "a b", "ü", "#1", "x" * 200)


async def what_was_never_appended_is_not_there(lab: TraceStoreLab) -> None:
    store = await lab.open()
    same(await store.get_run("r"), None, "a run that nobody has appended")
    same(list(await store.list_runs()), [], "the runs")
    same(list(await store.spans()), [], "the spans")
    same(list(await store.events()), [], "the events")
    same(list(await store.budget("r")), [], "the budget of a run that nobody has appended")


async def a_run_comes_back_whole(lab: TraceStoreLab) -> None:
    run = TraceRun(
        run_id="r",
        scenario_id="s",
        started_at=AT,
        status="failed",
        project_id="p",
        variant_id="v",
        layer="meta",
        ended_at=AT + 5,
        outcome=TraceOutcome(passed=False, score=0.25, failure_class="timeout", notes="ü\u2028"),
        tags={"a_b": "1"},
    )
    await (await lab.open()).append_run(run)
    same(await (await lab.open()).get_run("r"), run, "the run")


async def spans_of_every_kind_come_back_whole(lab: TraceStoreLab) -> None:
    store = await _begun(lab)
    spans = [
        _span("a", name="a", attributes={"a_b": [1, None, 0.5]}),
        replace(_tool("b"), parent_span_id="a", error="broken", status="error", latency_ms=0.5),
        TraceSpan(
            span_id="c",
            run_id="r",
            kind="judge",
            name="j",
            started_at=AT,
            ended_at=AT,
            judge_id="objective-validator",
            target_span_id="b",
            dimension="far",
            score=0.0,
            rationale="4 km",
            evidence="a map",
        ),
        TraceSpan(
            span_id="d",
            run_id="r",
            kind="llm",
            name="m",
            started_at=AT,
            model="m",
            input_tokens=0,
            output_tokens=7,
            cached_tokens=3,
            reasoning_tokens=2,
            cost_usd=0.25,
            finish_reason="stop",
        ),
    ]
    for span in spans:
        await store.append_span(span)
    same(list(await (await lab.open()).spans()), spans, "the spans")


async def events_and_budgets_come_back_whole_and_in_order(lab: TraceStoreLab) -> None:
    store = await _begun(lab)
    events = [
        TraceEvent(f"e{9 - number}", "r", "log", AT, {"n_m": [number, None]}, span_id="x")
        for number in range(9)
    ]
    for event in events:
        await store.append_event(event)
    for spent in (0.25, 0.5):
        await store.append_budget_entry(_entry("r", spent))
    reader = await lab.open()
    same(list(await reader.events()), events, "the events")
    same(list(await reader.budget("r")), [_entry("r", 0.25), _entry("r", 0.5)], "the budget")


async def what_is_appended_again_is_not_there_twice(lab: TraceStoreLab) -> None:
    event = TraceEvent("e", "r", "log", AT, {})
    for number in range(2):
        store = await lab.open()
        await store.append_run(_run("r", started_at=AT + number))
        await store.append_span(_span("a", name=str(number)))
        await store.append_event(replace(event, payload={"n": number}))
        await store.append_budget_entry(_entry("r", 0.5))
    reader = await lab.open()
    same([run.started_at for run in await reader.list_runs()], [AT], "the runs")
    same([span.name for span in await reader.spans()], ["0"], "the spans")
    same([each.payload for each in await reader.events()], [{"n": 0}], "the events")
    same(list(await reader.budget("r")), [_entry("r", 0.5)], "the budget")


async def a_change_leaves_the_other_fields(lab: TraceStoreLab) -> None:
    store = await _begun(lab)
    await store.append_span(_tool("a"))
    outcome = TraceOutcome(passed=True, score=1.0)
    await store.update_run("r", {"status": "completed", "ended_at": AT + 9, "outcome": outcome})
    await store.update_span("a", {"status": "ok", "attributes": {"a_b": 1}})
    await store.update_span("a", {"ended_at": AT + 9})
    run = replace(_run("r"), status="completed", ended_at=AT + 9, outcome=outcome)
    span = replace(_tool("a"), status="ok", attributes={"a_b": 1}, ended_at=AT + 9)
    reader = await lab.open()
    same(await reader.get_run("r"), run, "the run")
    same(list(await reader.spans()), [span], "the span")


async def a_change_may_empty_a_field(lab: TraceStoreLab) -> None:
    store = await _begun(lab)
    await store.append_span(replace(_tool("a"), error="broken"))
    await store.update_span("a", {"error": None, "args": None})
    same(list(await (await lab.open()).spans()), [replace(_tool("a"), args=None)], "the span")


async def the_last_change_counts_also_of_a_value_that_was_there_before(lab: TraceStoreLab) -> None:
    store = await _begun(lab)
    other = await lab.open()
    for writer, status in ((store, "failed"), (other, "running"), (store, "failed")):
        await writer.update_run("r", {"status": status})
    run = await (await lab.open()).get_run("r")
    same(run, replace(_run("r"), status="failed"), "the run")


async def what_was_appended_again_keeps_its_changes(lab: TraceStoreLab) -> None:
    store = await _begun(lab)
    await store.append_span(_span("a"))
    await store.update_run("r", {"status": "completed"})
    await store.update_span("a", {"status": "ok"})
    again = await lab.open()
    await again.append_run(_run("r"))
    await again.append_span(_span("a"))
    same([run.status for run in await again.list_runs()], ["completed"], "the run")
    same([span.status for span in await again.spans()], ["ok"], "the span")


async def what_does_not_exist_cannot_be_changed_or_added_to(lab: TraceStoreLab) -> None:
    store = await lab.open()
    await _refuses(store.update_run("r", {"status": "failed"}), NotFoundError)
    await _refuses(store.append_span(_span("a")), NotFoundError)
    await _refuses(store.append_event(TraceEvent("e", "r", "log", AT, {})), NotFoundError)
    await _refuses(store.append_budget_entry(_entry("r", 1)), NotFoundError)
    await store.append_run(_run("r"))
    await _refuses(store.update_span("a", {"status": "ok"}), NotFoundError)
    same(list(await store.spans()), [], "the spans")


async def a_field_that_a_record_has_not_cannot_be_changed(lab: TraceStoreLab) -> None:
    store = await _begun(lab)
    await store.append_span(_span("a"))
    patches: tuple[dict[str, Any], ...] = ({"endedAt": AT}, {"run_id": "s"}, {"colour": "red"})
    for patch in patches:
        await _refuses(store.update_run("r", patch), ValidationError)
        await _refuses(store.update_span("a", patch), ValidationError)
    same(await store.get_run("r"), _run("r"), "the run")
    same(list(await store.spans()), [_span("a")], "the span")


async def runs_are_found_by_what_they_are_about(lab: TraceStoreLab) -> None:
    store = await lab.open()
    for number, (scenario, variant) in enumerate((("s", "v"), ("s", "w"), ("t", "v"))):
        run = _run(str(number), started_at=AT + number)
        tags = {"intent": scenario}
        await store.append_run(
            replace(run, scenario_id=scenario, variant_id=variant, tags=tags, layer=variant)
        )
    await store.update_run("1", {"status": "completed", "project_id": "p"})
    expected = {
        TraceRunQuery(): "012",
        TraceRunQuery(scenario_id="s"): "01",
        TraceRunQuery(variant_id="v"): "02",
        TraceRunQuery(scenario_id="s", variant_id="v"): "0",
        TraceRunQuery(project_id="p"): "1",
        TraceRunQuery(layer="w"): "1",
        TraceRunQuery(status="running"): "02",
        TraceRunQuery(tag=("intent", "t")): "2",
        TraceRunQuery(tag=("colour", "t")): "",
        TraceRunQuery(since=AT + 1): "12",
        TraceRunQuery(since=AT, until=AT + 1): "01",
    }
    for wanted, found in expected.items():
        ids = [run.run_id for run in await store.list_runs(wanted)]
        same(ids, [*found], f"the runs of {wanted}")


async def spans_and_events_are_found_by_what_they_are(lab: TraceStoreLab) -> None:
    store = await lab.open()
    for run_id in "rs":
        await store.append_run(_run(run_id))
        await store.append_span(replace(_tool(f"{run_id}1"), run_id=run_id))
        judge = replace(_span(f"{run_id}2"), run_id=run_id, kind="judge", judge_id="j")
        await store.append_span(replace(judge, parent_span_id=f"{run_id}1", started_at=AT + 1))
        for kind in ("log", "error"):
            await store.append_event(TraceEvent(f"{run_id}-{kind}", run_id, kind, AT, {}))
    spans = {
        TraceSpanQuery(): "r1 r2 s1 s2",
        TraceSpanQuery("s"): "s1 s2",
        TraceSpanQuery(kind="tool"): "r1 s1",
        TraceSpanQuery(tool_name="hammer"): "r1 s1",
        TraceSpanQuery("r", judge_id="j"): "r2",
        TraceSpanQuery(parent_span_id="s1"): "s2",
        TraceSpanQuery(name="other"): "",
        TraceSpanQuery(since=AT + 1): "r2 s2",
        TraceSpanQuery(until=AT): "r1 s1",
        TraceSpanQuery("nobody"): "",
    }
    for wanted, found in spans.items():
        ids = [span.span_id for span in await store.spans(wanted)]
        same(ids, found.split(), f"the spans of {wanted}")
    events = {
        TraceEventQuery("r"): "r-log r-error",
        TraceEventQuery(kind="error"): "r-error s-error",
        TraceEventQuery(span_id="r1"): "",
        TraceEventQuery(since=AT + 1): "",
        TraceEventQuery("nobody"): "",
    }
    for asked, found in events.items():
        ids = [event.event_id for event in await store.events(asked)]
        same(ids, found.split(), f"the events of {asked}")


async def ids_are_taken_as_they_are(lab: TraceStoreLab) -> None:
    store = await lab.open()
    for number, id in enumerate(ODD_IDS):
        await store.append_run(_run(id, started_at=AT + number))
        await store.append_span(replace(_span(f"span {id}"), run_id=id))
    for number, id in enumerate(ODD_IDS):
        same(await store.get_run(id), _run(id, started_at=AT + number), f"the run {id!r:.20}")
        ids = [span.span_id for span in await store.spans(TraceSpanQuery(id))]
        same(ids, [f"span {id}"], f"the spans of {id!r:.20}")


async def another_handle_goes_on_with_a_trace(lab: TraceStoreLab) -> None:
    one, two = await lab.open(), await lab.open()
    same(await two.get_run("r"), None, "the run, before it is there")
    await one.append_run(_run("r"))
    await one.append_span(_span("a"))
    await two.append_span(_span("b"))
    await two.update_span("a", {"status": "ok"})
    await one.update_span("b", {"status": "error"})
    await two.update_run("r", {"status": "completed"})
    for store in (one, two):
        found = [(span.span_id, span.status) for span in await store.spans()]
        same(found, [("a", "ok"), ("b", "error")], "the spans")
        same([run.status for run in await store.list_runs()], ["completed"], "the runs")


async def spans_of_many_writers_are_all_kept(lab: TraceStoreLab) -> None:
    await _begun(lab)

    async def write(name: int) -> None:
        store = await lab.open()
        for number in range(5):
            await store.append_span(_span(f"{name}:{number}"))
            await store.update_span(f"{name}:{number}", {"status": "ok"})

    await asyncio.gather(*map(write, range(WRITERS)))
    spans = await (await lab.open()).spans()
    same(len(spans), WRITERS * 5, "the number of spans")
    same({span.status for span in spans}, {"ok"}, "how they ended")
    for name in range(WRITERS):
        of_one = [span.span_id for span in spans if span.span_id.startswith(f"{name}:")]
        same(of_one, sorted(of_one), f"the spans of writer {name}")


async def a_list_is_the_readers_own(lab: TraceStoreLab) -> None:
    store = await _begun(lab)
    await store.append_span(_span("a"))
    await store.append_budget_entry(_entry("r", 1))
    lists: list[Any] = [await store.list_runs(), await store.spans(), await store.budget("r")]
    for each in lists:
        each.clear()
    found = [await store.list_runs(), await store.spans(), await store.budget("r")]
    same([len(each) for each in found], [1, 1, 1], "what is kept")


async def a_loop_is_kept_as_it_went(lab: TraceStoreLab) -> None:
    hooks = ControlHooks(
        observe=lambda context: "here",
        validate=lambda context: [objective_eval("far", False, score=0.5, severity="error")],
        decide=lambda context: Continue("go"),
        act=lambda action, context: "gone",
        get_action_cost_usd=lambda action, result, context: 0.5,
    )
    result = await run_agent_control_loop(
        "Walk",
        hooks,
        budget=ControlBudget(max_cost_usd=1),
        options=ControlOptions(trace_store=await lab.open()),
    )
    same(list(result.runtime_errors), [], "what failed")
    store = await lab.open()
    [run] = await store.list_runs()
    same((run.run_id, run.status), (result.run_id, "failed"), "the run")
    kinds = [span.kind for span in await store.spans()]
    same(kinds, ["judge", "tool", "judge", "tool", "judge"], "the spans")
    breached = [entry.breached for entry in await store.budget(run.run_id)]
    same(breached, [False, True], "the budget")
    same([event.kind for event in await store.events()], ["budget_breach"], "the events")


# What the cases share.


async def _begun(lab: TraceStoreLab) -> Any:
    store = await lab.open()
    await store.append_run(_run("r"))
    return store


def _run(run_id: str, *, started_at: int = AT) -> TraceRun:
    return TraceRun(run_id=run_id, scenario_id="s", started_at=started_at)


def _span(span_id: str, *, name: str = "work", attributes: Any = None) -> TraceSpan:
    return TraceSpan(
        span_id=span_id,
        run_id="r",
        kind="custom",
        name=name,
        started_at=AT,
        attributes=attributes,
    )


def _tool(span_id: str) -> TraceSpan:
    return TraceSpan(
        span_id=span_id,
        run_id="r",
        kind="tool",
        name="work",
        started_at=AT,
        tool_name="hammer",
        args={"a_b": [1, None]},
        result=0,
    )


def _entry(run_id: str, consumed: float) -> TraceBudgetEntry:
    return TraceBudgetEntry(
        run_id=run_id,
        dimension="usd",
        limit=1.0,
        consumed=consumed,
        remaining=1.0 - consumed,
        breached=consumed >= 1,
        timestamp=AT,
    )


async def _refuses(call: Any, kind: type[Exception]) -> None:
    try:
        await call
    except kind:
        return
    raise AssertionError(f"nothing was refused; expected a {kind.__name__}")
