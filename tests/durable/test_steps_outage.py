"""A store that cannot answer says nothing about a task."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from perdure.durable.context import DurableContext
from perdure.errors import LeaseLostError, StoreUnavailableError
from perdure.store.protocol import RunStore
from tests.durable.handles import (
    Body,
    Trouble,
    TroubledStore,
    is_in,
    read,
    run,
    steps_of,
    within,
)


async def test_a_store_that_is_away_for_a_moment_costs_no_step(store: RunStore) -> None:
    trouble = Trouble()
    work = Body()

    def body() -> object:
        trouble.failures_left = 2
        return work()

    async def task(context: DurableContext) -> object:
        return await context.step("work", body)

    done = await within(run(TroubledStore(store, trouble), task))
    assert (done.result, work.calls, trouble.failures) == ("done", 1, 2)


async def test_a_store_that_stays_away_never_ends_a_run_as_failed(store: RunStore) -> None:
    trouble = Trouble()

    def body() -> str:
        trouble.is_down = True
        return "done"

    async def task(context: DurableContext) -> str:
        with contextlib.suppress(Exception, asyncio.CancelledError):
            await context.step("work", body)
        trouble.is_down = False
        return await context.step("behind", lambda: "never")

    # Whichever is noticed first: that the store stays away, or that the lease ran out meanwhile.
    with pytest.raises((StoreUnavailableError, LeaseLostError)):
        await within(run(TroubledStore(store, trouble), task, lease_ms=300))
    assert (await read(store)).state == "running"
    assert all(step.intent == "work" for step in await steps_of(store))


async def test_a_store_error_in_a_group_of_tasks_does_not_fail_the_run(store: RunStore) -> None:
    trouble = Trouble()

    def body() -> str:
        trouble.is_down = True
        return "done"

    async def task(context: DurableContext) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(_with_body(context, body))

    with pytest.raises((StoreUnavailableError, LeaseLostError)):
        await within(run(TroubledStore(store, trouble), task, lease_ms=300))
    assert await is_in(store, "running")


async def _with_body(context: DurableContext, body: Callable[[], object]) -> None:
    await context.step("work", body)


async def test_a_store_error_of_another_store_inside_a_step_is_a_failure(store: RunStore) -> None:
    def body() -> None:
        raise StoreUnavailableError("some other database")

    async def task(context: DurableContext) -> None:
        await context.step("work", body)

    with pytest.raises(StoreUnavailableError, match="some other"):
        await run(store, task)
    assert await is_in(store, "failed")


async def test_the_end_of_a_run_is_tried_again_too(store: RunStore) -> None:
    trouble = Trouble()

    async def task(context: DurableContext) -> str:
        trouble.failures_left = 2
        return "done"

    await within(run(TroubledStore(store, trouble), task))
    assert await is_in(store, "completed")
    assert trouble.failures == 2
