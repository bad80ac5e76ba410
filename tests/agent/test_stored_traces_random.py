"""Two handles on stored traces say what a store in memory says, whatever they are told in turn."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from perdure.agent import stored_traces
from perdure.agent.stored_traces import DurableTraceStore
from perdure.errors import NotFoundError
from perdure.observe.trace import TraceEvent
from perdure.observe.trace_records import TraceBudgetEntry, TraceRun, TraceSpan
from perdure.observe.trace_store import InMemoryTraceStore, TraceStore
from perdure.store.memory import MemoryStore

RUNS = "abc"
HISTORIES = 60
OPERATIONS = 40

Operation = Callable[[TraceStore], Awaitable[None]]


def operation(chance: random.Random, number: int) -> Operation:
    """Return something to do; few ids and values, so that much of it is not news."""
    run_id = chance.choice(RUNS)
    id = f"{run_id}{chance.randrange(3)}"
    run = TraceRun(run_id=run_id, scenario_id=str(number), started_at=RUNS.index(run_id))
    span = TraceSpan(span_id=id, run_id=run_id, kind="custom", name=str(number), started_at=0)
    entry = TraceBudgetEntry(
        run_id=run_id,
        dimension="usd",
        limit=1.0,
        consumed=float(chance.randrange(3)),
        remaining=0.0,
        breached=False,
        timestamp=0,
    )
    status = chance.choice(("failed", "completed"))
    mark = {"status": chance.choice(("ok", "error"))}
    operations: list[Operation] = [
        lambda store: store.append_run(run),
        lambda store: store.update_run(run_id, {"status": status}),
        lambda store: store.append_span(span),
        lambda store: store.update_span(id, mark),
        lambda store: store.append_event(TraceEvent(id, run_id, "log", number, {})),
        lambda store: store.append_budget_entry(entry),
    ]
    return chance.choice(operations)


async def refusal(call: Awaitable[None]) -> str | None:
    try:
        await call
    except NotFoundError as error:
        return str(error)
    return None


async def everything(store: TraceStore) -> list[Any]:
    by_run: dict[str, list[Any]] = {run_id: [] for run_id in RUNS}
    for run in await store.list_runs():
        by_run[run.run_id] += [run, *await store.budget(run.run_id)]
    for span in await store.spans():
        by_run[span.run_id].append(span)
    for event in await store.events():
        by_run[event.run_id].append(event)
    return list(by_run.values())


@pytest.mark.parametrize("remembered", [1, 64])
async def test_two_handles_keep_what_a_store_in_memory_keeps(
    monkeypatch: pytest.MonkeyPatch, remembered: int
) -> None:
    monkeypatch.setattr(stored_traces, "LOGS_MAX", remembered)
    for seed in range(HISTORIES // 2):
        chance, runs, model = random.Random(seed), MemoryStore(), InMemoryTraceStore()
        handles = [DurableTraceStore(runs) for _ in range(2)]
        for number in range(OPERATIONS):
            do = operation(chance, number)
            expected, found = [
                await refusal(do(store)) for store in (model, chance.choice(handles))
            ]
            assert found == expected, seed
        for handle in handles:
            assert await everything(handle) == await everything(model), seed
