"""A task that takes another way than the recorded one is parked, and never goes on."""

from __future__ import annotations

import asyncio

import pytest

from perdure.core.changes import CompleteStep
from perdure.durable.context import DurableContext
from perdure.errors import (
    DivergenceError,
    RunParkedError,
    StepInputMismatchError,
)
from perdure.store.protocol import RunStore
from tests.durable.handles import (
    Body,
    Broken,
    attempts_of,
    leave_behind,
    read,
    run,
    steps_of,
)


async def test_another_step_at_a_recorded_position_parks_with_both_histories(
    store: RunStore,
) -> None:
    async def old(context: DurableContext) -> object:
        await context.step("fetch", lambda: 1)
        await context.step("count", lambda: 2)
        return whole()

    async def new(context: DurableContext) -> None:
        await context.step("fetch", lambda: 1)
        await context.step("sort", lambda: 2)

    whole = Body("as before", fails=1)
    with pytest.raises(Broken):
        await run(store, old)
    with pytest.raises(RunParkedError, match="'sort' at position 1, where 'count'") as parked:
        await run(store, new)
    assert isinstance(parked.value.__cause__, DivergenceError)
    found = await read(store)
    assert (found.state, found.reason) == ("parked", "step_divergence")
    error = (await attempts_of(store))[-1].error
    assert error is not None
    assert "fetch | fetch" in (error.stack or "")
    assert "count | sort" in (error.stack or "")
    assert [step.intent for step in await steps_of(store)] == ["fetch", "count"]
    assert (await run(store, old)).result == "as before"


async def test_a_swallowed_divergence_cannot_be_outlived(store: RunStore) -> None:
    later = Body()

    async def task(context: DurableContext) -> str:
        for _ in range(2):
            try:
                await context.step("other", later)
            except Exception:
                continue
        return "all is well"

    await leave_behind(store, CompleteStep(0, "recorded", "1"))
    with pytest.raises(RunParkedError):
        await run(store, task)
    assert later.calls == 0


async def test_a_divergence_in_a_group_of_tasks_parks_too(store: RunStore) -> None:
    async def task(context: DurableContext) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(_as_coroutine(context, "other"))

    await leave_behind(store, CompleteStep(0, "recorded", "1"))
    with pytest.raises(RunParkedError):
        await run(store, task)


async def _as_coroutine(context: DurableContext, intent: str) -> None:
    await context.step(intent, lambda: 1)


async def test_another_fingerprint_parks_and_the_same_replays(store: RunStore) -> None:
    async def ask(context: DurableContext, prompt: object) -> str:
        return await context.step("ask", lambda: "answer", fingerprint={"prompt": prompt})

    async def first(context: DurableContext) -> None:
        await ask(context, "one")
        raise Broken

    with pytest.raises(Broken):
        await run(store, first)
    with pytest.raises(RunParkedError) as parked:
        await run(store, lambda context: ask(context, "two"))
    assert isinstance(parked.value.__cause__, StepInputMismatchError)
    assert (await read(store)).reason == "step_input_mismatch"
    assert (await run(store, lambda context: ask(context, "one"))).result == "answer"


async def test_without_a_fingerprint_on_either_side_nothing_is_compared(store: RunStore) -> None:
    await leave_behind(store, CompleteStep(0, "ask", '"recorded"'))

    async def task(context: DurableContext) -> str:
        return await context.step("ask", lambda: "new", fingerprint="a prompt")

    assert (await run(store, task)).result == "recorded"


async def test_a_finished_run_that_asks_for_more_diverges_and_stays_finished(
    store: RunStore,
) -> None:
    async def short(context: DurableContext) -> int:
        return await context.step("only", lambda: 1)

    async def longer(context: DurableContext) -> int:
        await short(context)
        return await context.step("more", lambda: 2)

    before = (await run(store, short)).record
    with pytest.raises(DivergenceError, match="'more' at position 1"):
        await run(store, longer)
    assert await read(store) == before


async def test_a_finished_run_cannot_outlive_a_swallowed_divergence(store: RunStore) -> None:
    async def nothing(context: DurableContext) -> None: ...

    async def more(context: DurableContext) -> str:
        try:
            await context.step("more", lambda: 2)
        except DivergenceError:
            return "swallowed"
        return "executed"

    await run(store, nothing)
    with pytest.raises(DivergenceError):
        await run(store, more)
