"""A call of the task that is dropped before it begins holds no lease while the run sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

import pytest

from perdure.durable.context import DurableContext
from perdure.store.protocol import RunStore
from tests.durable.handles import Body, attempts_of, is_in, run, until, within

CALLS: dict[str, Callable[[DurableContext], Awaitable[object]]] = {
    "step": lambda context: context.step("dropped", Body()),
    "now": lambda context: context.now(),
    "sleep": lambda context: context.sleep(1),
    "await_event": lambda context: context.await_event("never"),
    "parallel": lambda context: context.parallel(("one", Body()), ("two", Body())),
}


async def cancelled(call: Awaitable[object]) -> None:
    """Cancel a call before it begins."""
    begun = asyncio.ensure_future(call)
    begun.cancel()
    await asyncio.wait((begun,))


async def closed(call: Awaitable[object]) -> None:
    """Close a call that nobody awaits."""
    cast("Coroutine[Any, Any, object]", call).close()


@pytest.mark.parametrize("drop", [cancelled, closed])
@pytest.mark.parametrize("name", CALLS)
async def test_a_call_that_never_began_keeps_no_lease(
    store: RunStore, name: str, drop: Callable[[Awaitable[object]], Awaitable[None]]
) -> None:
    async def task(context: DurableContext) -> str:
        await drop(CALLS[name](context))
        await context.sleep(3_600_000)
        return "never"

    call = asyncio.create_task(run(store, task))
    await until(lambda: is_in(store, "sleeping"))
    call.cancel()
    await asyncio.wait((call,))
    (attempt,) = await attempts_of(store)
    assert attempt.ended == "sleeping"


@pytest.mark.parametrize("name", ["step", "parallel"])
async def test_a_call_that_may_still_begin_keeps_the_lease(store: RunStore, name: str) -> None:
    async def task(context: DurableContext) -> object:
        later = CALLS[name](context)
        await context.sleep(120)
        return await later

    done = await within(run(store, task))
    assert done.result in ("done", ["done", "done"])
    (attempt,) = await attempts_of(store)
    assert attempt.ended == "completed"
