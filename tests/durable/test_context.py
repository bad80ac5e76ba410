"""What a task is handed: who it is, and values that are the same in every attempt."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from perdure.core.effects import epoch_ms
from perdure.durable.context import DurableContext
from perdure.durable.runner import emit_event, run_durable
from perdure.errors import NotSerializableError, RunNotFoundError
from perdure.store.protocol import RunStore
from tests.durable.handles import MANIFEST, Body, Broken, Handles, run


async def test_the_context_knows_its_run(store: RunStore) -> None:
    async def task(context: DurableContext) -> list[object]:
        return [context.run_id, context.project_id, context.scenario_id]

    scenario = MANIFEST._replace(scenario_id="scenario")
    done = await run_durable(store.for_tenant("acme"), run_id="run", manifest=scenario, task=task)
    assert done.result == ["run", "lab", "scenario"]
    assert await store.read_run("run") is None
    assert (await run(store, task)).result == ["run", "lab", None]


async def test_time_ids_and_randomness_are_the_same_in_every_attempt(store: RunStore) -> None:
    whole = Body(fails=1)
    seen: list[object] = []

    async def task(context: DurableContext) -> None:
        seen.append([await context.now(), await context.uuid(), await context.random()])
        whole()

    with pytest.raises(Broken):
        await run(store, task)
    done = await run(store, task)
    await run(store, task)
    assert seen[0] == seen[1] == seen[2]
    assert [(step.intent, step.kind) for step in done.steps] == [
        ("deterministic:now", "deterministic"),
        ("deterministic:uuid", "deterministic"),
        ("deterministic:random", "deterministic"),
    ]


async def test_they_are_what_they_say(store: RunStore) -> None:
    async def task(context: DurableContext) -> list[object]:
        return [await context.uuid(), await context.uuid(), await context.random()]

    first, second, number = (await run(store, task)).result
    assert isinstance(first, str)
    assert uuid.UUID(first).version == 4
    assert first != second
    assert isinstance(number, float)
    assert 0 <= number < 1


async def test_now_is_the_time_of_the_store(handles: Handles) -> None:
    handles.clock.advance(-1_000_000_000)
    store = await handles.open(clock=handles.clock)
    done = await run(store, lambda context: context.now())
    assert 0 <= epoch_ms(done.result) - handles.clock() < 5_000


async def test_each_of_them_takes_a_position_at_its_call(store: RunStore) -> None:
    async def task(context: DurableContext) -> list[object]:
        return [*await asyncio.gather(context.uuid(), context.now(), context.sleep(0))]

    done = await run(store, task)
    assert [step.intent for step in done.steps] == [
        "deterministic:uuid",
        "deterministic:now",
        "deterministic:sleep",
    ]


async def test_an_emit_of_the_run_itself_is_no_step_and_the_first_wins(store: RunStore) -> None:
    async def task(context: DurableContext) -> list[object]:
        return [
            await context.emit_event("key", "mine"),
            await context.emit_event("key", "again"),
            await context.await_event("key"),
        ]

    done = await run(store, task)
    assert done.result == [True, False, "mine"]
    assert [step.intent for step in done.steps] == ["event:key"]
    assert (await run(store, task)).result == [False, False, "mine"]


async def test_an_emit_of_what_cannot_be_stored_is_refused_first_time_and_replayed(
    store: RunStore,
) -> None:
    async def nothing(context: DurableContext) -> None: ...

    async def bad(context: DurableContext) -> None:
        await context.emit_event("key", {1, 2})

    await run(store, nothing, run_id="finished")
    for run_id in ("fresh", "finished"):
        with pytest.raises(NotSerializableError, match="payload"):
            await run(store, bad, run_id=run_id)


async def test_an_emit_to_nobody_is_refused(store: RunStore) -> None:
    with pytest.raises(RunNotFoundError):
        await emit_event(store, "nobody", "key", 1)
