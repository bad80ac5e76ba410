"""Steps that their own task cancels: a replay waits to be cancelled, and goes the same way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from perdure.durable.context import DurableContext
from perdure.durable.worker import Worker
from perdure.errors import StepFailedError
from perdure.store.protocol import RunStore
from tests.durable.handles import (
    MANIFEST,
    Body,
    Broken,
    is_in,
    read,
    run,
    steps_of,
    until,
    within,
)

T = TypeVar("T")
Task = Callable[[DurableContext], Awaitable[Any]]


class Slow:
    """A body that takes for ever, or (`ends`) no time at all."""

    def __init__(self, *, ends: bool = False) -> None:
        self.ends = ends
        self.calls = 0
        self.begun = asyncio.Event()

    async def __call__(self) -> str:
        self.calls += 1
        self.begun.set()
        if not self.ends:
            await asyncio.Event().wait()
        return "whole"


async def by_wait_for(step: Awaitable[Any], limit_s: float = 0.02) -> Any:
    try:
        return await asyncio.wait_for(step, limit_s)
    except TimeoutError:
        return "late"


async def by_timeout(step: Awaitable[Any]) -> Any:
    try:
        async with asyncio.timeout(0.02):
            return await step
    except TimeoutError:
        return "late"


async def by_cancel(step: Awaitable[Any]) -> Any:
    asking = asyncio.ensure_future(step)
    await asyncio.wait((asking,), timeout=0.02)
    asking.cancel()
    return "late"


async def codes_of(store: RunStore) -> list[tuple[str, str, str | None]]:
    return [
        (step.intent, step.status, None if step.error is None else step.error.code)
        for step in await steps_of(store)
    ]


@pytest.mark.parametrize("cut", [by_wait_for, by_timeout, by_cancel])
@pytest.mark.parametrize("effect", ["idempotent", "at_most_once"])
async def test_a_step_that_its_task_cancels_is_recorded_and_cancelled_again_by_a_replay(
    store: RunStore, cut: Callable[[Awaitable[Any]], Awaitable[Any]], effect: Any
) -> None:
    slow = Slow()

    async def task(context: DurableContext) -> list[object]:
        first = await cut(context.step("fetch", slow, effect=effect))
        return [first, await context.step("write", lambda: first)]

    done = await run(store, task)
    assert done.result == ["late", "late"]
    assert await codes_of(store) == [
        ("fetch", "failed", "abandoned"),
        ("write", "completed", None),
    ]
    slow.ends = True
    again = await within(run(store, task))
    assert again.result == done.result
    assert slow.calls == 1


async def test_a_race_has_the_same_winner_in_a_replay(store: RunStore) -> None:
    slow = Slow()

    async def task(context: DurableContext) -> object:
        racing = [
            asyncio.ensure_future(context.step("slow", slow)),
            asyncio.ensure_future(context.step("quick", lambda: "quick")),
        ]
        done, others = await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            other.cancel()
        return [one.result() for one in done]

    assert (await run(store, task)).result == ["quick"]
    slow.ends = True
    assert (await within(run(store, task))).result == ["quick"]
    assert slow.calls == 1


async def test_what_a_task_leaves_running_is_recorded_when_it_returns(store: RunStore) -> None:
    slow = Slow()
    left: list[asyncio.Future[Any]] = []

    async def task(context: DurableContext) -> str:
        left.append(asyncio.ensure_future(context.step("aside", slow)))
        await asyncio.wait((left[-1],), timeout=0)
        return await context.step("main", lambda: "done")

    assert (await run(store, task)).result == "done"
    assert await codes_of(store) == [("aside", "failed", "abandoned"), ("main", "completed", None)]
    assert (await within(run(store, task))).result == "done"
    assert slow.calls == 1
    assert all(one.cancelled() for one in left), "nothing waits on behind a replay"


async def test_a_task_group_that_failed_runs_all_of_its_steps_again_when_retried(
    store: RunStore,
) -> None:
    slow, breaking = Slow(), Body("mended", fails=1)

    async def task(context: DurableContext) -> list[object]:
        async with asyncio.TaskGroup() as group:
            steps = [
                group.create_task(_within(context.step("slow", slow, effect="at_most_once"))),
                group.create_task(_when(slow.begun, lambda: context.step("breaks", breaking))),
            ]
        return [step.result() for step in steps]

    with pytest.raises(ExceptionGroup):
        await run(store, task)
    assert (await codes_of(store))[0] == ("slow", "failed", "abandoned")
    slow.ends = True
    assert (await within(run(store, task))).result == ["whole", "mended"]
    assert (slow.calls, breaking.calls) == (2, 2)


async def _within(step: Awaitable[Any]) -> Any:
    return await step


async def _when(event: asyncio.Event, step: Callable[[], Awaitable[Any]]) -> Any:
    await event.wait()
    return await step()


async def test_branches_of_a_parallel_that_was_cut_short_stay_cut_short(store: RunStore) -> None:
    slow, never = Slow(), Body()

    async def task(context: DurableContext) -> object:
        branches = (("quick", lambda: 1), ("slow", slow), ("also", slow), ("never", never))
        # Time enough for two commits on a busy machine: both slow ones have to begin.
        first = await by_wait_for(context.parallel(*branches, concurrency_max=2), 0.2)
        return [first, await context.step("behind", lambda: 2)]

    assert (await run(store, task)).result == ["late", 2]
    slow.ends = True
    assert (await within(run(store, task))).result == ["late", 2]
    assert (slow.calls, never.calls) == (2, 0)


@pytest.mark.parametrize("key", ["never", None])
async def test_a_wait_that_its_task_cancels_is_recorded_too(
    store: RunStore, key: str | None
) -> None:
    async def task(context: DurableContext) -> list[object]:
        wait = context.sleep(600_000) if key is None else context.await_event(key)
        first = await by_wait_for(wait)
        return [first, await context.step("behind", lambda: 1)]

    assert (await within(run(store, task))).result == ["late", 1]
    assert [status for _, status, _ in await codes_of(store)] == ["failed", "completed"]
    assert (await within(run(store, task))).result == ["late", 1]


async def test_a_drain_is_no_cancellation_by_the_task(store: RunStore) -> None:
    slow = Slow()

    async def task(context: DurableContext) -> object:
        return await asyncio.wait_for(context.step("slow", slow), 600)

    running = asyncio.ensure_future(run(store, task))
    await within(slow.begun.wait())
    await until(lambda: steps_of(store))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await codes_of(store) == [("slow", "running", None)]
    slow.ends = True
    assert (await within(run(store, task))).result == "whole"


async def test_a_loop_that_shuts_down_cancels_no_step_in_the_name_of_its_task(
    store: RunStore,
) -> None:
    slow = Slow()

    async def task(context: DurableContext) -> object:
        return await by_timeout(context.step("slow", slow))

    everything = asyncio.all_tasks()
    running = asyncio.ensure_future(run(store, lambda context: _forgiving(task, context)))
    await within(slow.begun.wait())
    for each in asyncio.all_tasks() - everything:
        each.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert ("slow", "failed", "abandoned") not in await codes_of(store)


async def _forgiving(task: Task, context: DurableContext) -> object:
    return await task(context)


async def test_a_body_that_is_cancelled_from_within_hangs_no_replay(store: RunStore) -> None:
    async def cancels_itself() -> None:
        raise asyncio.CancelledError

    async def task(context: DurableContext) -> int:
        ends = await asyncio.gather(
            context.step("odd", cancels_itself),
            context.step("plain", lambda: 1),
            return_exceptions=True,
        )
        return len(ends)

    assert (await within(run(store, task))).result == 2
    assert ("odd", "failed", "abandoned") not in await codes_of(store)


async def test_a_body_that_raises_with_the_same_code_is_a_failure_like_any_other(
    store: RunStore,
) -> None:
    class Abandoned(Broken):
        code = "abandoned"

    def body() -> None:
        raise Abandoned("left")

    async def task(context: DurableContext) -> str:
        try:
            await context.step("raises", body)
        except StepFailedError as error:
            return f"{error.original_code} {await context.step('behind', lambda: 1)}"
        return "whole"

    assert (await run(store, task)).result == "abandoned 1"
    assert (await within(run(store, task))).result == "abandoned 1"


async def test_an_abandoned_at_most_once_step_at_the_end_of_a_history_is_in_doubt(
    store: RunStore,
) -> None:
    slow = Slow()

    async def task(context: DurableContext) -> object:
        await by_wait_for(context.step("pay", slow, effect="at_most_once"))
        return await asyncio.Event().wait()

    running = asyncio.ensure_future(run(store, task))

    async def is_recorded() -> bool:
        return ("pay", "failed", "abandoned") in await codes_of(store)

    await until(is_recorded)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    async def resumed(context: DurableContext) -> str:
        try:
            return str(await context.step("pay", slow, effect="at_most_once"))
        except StepFailedError as error:
            return error.code

    assert (await within(run(store, resumed))).result == "unfinished_tool_call"
    assert slow.calls == 1


async def test_a_worker_goes_the_same_way_behind_a_cancelled_step(store: RunStore) -> None:
    slow = Slow()

    async def task(context: DurableContext) -> list[object]:
        first = await by_wait_for(context.step("fetch", slow))
        answer = await context.await_event("go", timeout_ms=None)
        return [first, answer, await context.step("write", lambda: first)]

    worker = Worker(store, tasks={"chosen": task})
    working = asyncio.ensure_future(worker.run())
    await worker.submit("chosen", run_id="run", manifest=MANIFEST)
    await until(lambda: is_in(store, "waiting"))
    slow.ends = True
    await store.emit_event("run", "go", "now")
    await until(lambda: is_in(store, "completed"))
    await worker.drain()
    await within(working)
    assert (await read(store)).state == "completed"
    assert (await steps_of(store))[-1].result == "late"
    assert slow.calls == 1
