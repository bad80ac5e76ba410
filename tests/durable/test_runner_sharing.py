"""Callers of one run at the same time: in one process they share it, elsewhere it is held."""

from __future__ import annotations

import asyncio

import pytest

from perdure.durable.context import DurableContext
from perdure.durable.execution import live_runs
from perdure.durable.runner import run_durable
from perdure.errors import (
    LeaseHeldError,
    RunInputMismatchError,
    UsageError,
)
from perdure.store.protocol import RunStore
from perdure.testing.samples import manifest
from tests.durable.handles import (
    Body,
    Broken,
    Handles,
    Hanging,
    attempts_of,
    run,
    within,
)


async def test_a_second_call_joins_the_first(store: RunStore) -> None:
    task = Hanging()
    first = asyncio.create_task(run(store, task))
    await within(task.begun.wait())
    second = asyncio.create_task(run(store, task))
    await asyncio.sleep(0)
    task.go_on.set()
    assert (await within(second)).result == (await first).result == ["first", "second"]
    assert task.first.calls == 1
    assert len(await attempts_of(store)) == 1


async def test_calls_at_the_same_moment_execute_once(store: RunStore) -> None:
    body = Body("once")

    async def task(context: DurableContext) -> object:
        return await context.step("work", body)

    done = await within(asyncio.gather(*(run(store, task) for _ in range(10))))
    assert {one.result for one in done} == {"once"}
    assert body.calls == 1


async def test_a_joined_call_gets_the_failure_too(store: RunStore) -> None:
    task, failing = Hanging(), asyncio.Event()

    async def fail(context: DurableContext) -> None:
        await task(context)
        raise Broken("it broke")

    first = asyncio.create_task(run(store, fail))
    await within(task.begun.wait())
    second = asyncio.create_task(run(store, fail))
    await asyncio.sleep(0)
    task.go_on.set()
    failing.set()
    for call in (first, second):
        with pytest.raises(Broken):
            await within(call)
    assert len(await attempts_of(store)) == 1


async def test_a_second_call_with_another_manifest_does_not_join(store: RunStore) -> None:
    task = Hanging()
    first = asyncio.create_task(run(store, task))
    await within(task.begun.wait())
    with pytest.raises(RunInputMismatchError, match="another manifest"):
        await run_durable(store, run_id="run", manifest=manifest("another"), task=task)
    task.go_on.set()
    await within(first)


async def test_after_the_first_is_drained_the_second_goes_on_itself(store: RunStore) -> None:
    task = Hanging()
    first = asyncio.create_task(run(store, task))
    await within(task.begun.wait())
    second = asyncio.create_task(run(store, task))
    await asyncio.sleep(0)
    task.begun.clear()
    first.cancel()
    await within(task.begun.wait())
    task.go_on.set()
    assert (await within(second)).result == ["first", "second"]
    assert task.first.calls == 1
    assert [one.ended for one in await attempts_of(store)] == ["drained", "completed"]
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_cancelled_second_call_leaves_the_first_alone(store: RunStore) -> None:
    task = Hanging()
    first = asyncio.create_task(run(store, task))
    await within(task.begun.wait())
    second = asyncio.create_task(run(store, task))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    task.go_on.set()
    assert (await within(first)).result == ["first", "second"]


async def test_a_task_that_waits_for_its_own_run_is_told_instead_of_hanging(
    store: RunStore,
) -> None:
    async def task(context: DurableContext) -> None:
        await run(store, task)

    with pytest.raises(UsageError, match="waits for its own run"):
        await within(run(store, task))


async def test_nobody_is_left_in_the_registry(store: RunStore) -> None:
    task = Hanging()
    call = asyncio.create_task(run(store, task))
    await within(task.begun.wait())
    assert live_runs.find(store.handle, "run") is not None
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert live_runs.find(store.handle, "run") is None


# Two handles.


async def test_a_run_that_is_live_elsewhere_is_held(handles: Handles) -> None:
    store, other = await handles.open(), await handles.open()
    task = Hanging()
    first = asyncio.create_task(run(store, task))
    await within(task.begun.wait())
    with pytest.raises(LeaseHeldError):
        await run(other, task)
    task.go_on.set()
    await within(first)
    assert (await run(other, task)).result == ["first", "second"]


async def test_many_handles_that_start_at_once_execute_once(handles: Handles) -> None:
    body = Body("once")

    async def task(context: DurableContext) -> object:
        return await context.step("work", body)

    stores = [await handles.open() for _ in range(4)]
    done = await asyncio.gather(*(run(store, task) for store in stores), return_exceptions=True)
    assert body.calls == 1
    for one in done:
        assert isinstance(one, LeaseHeldError) or getattr(one, "result", one) == "once"
