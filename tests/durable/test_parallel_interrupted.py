"""Steps at once that are interrupted: by a crash, a stop, a cancellation."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.core.changes import BeginStep, CompleteStep, FailStep
from perdure.durable.context import DurableContext
from perdure.durable.failures import failure_text
from perdure.errors import UnfinishedStepError
from perdure.store.protocol import RunStore
from tests.durable.handles import Body, Broken, attempts_of, crash_after, read, run, until, within
from tests.durable.lanes import Lanes


async def test_after_a_crash_only_what_is_not_recorded_runs(store: RunStore) -> None:
    bodies = [Body("a"), Body("b"), Body("c")]

    async def task(context: DurableContext) -> list[Any]:
        return await context.parallel(*zip("abc", bodies, strict=True), concurrency_max=2)

    await crash_after(
        store, BeginStep(0, "a"), CompleteStep(1, "b", '"recorded"'), BeginStep(2, "c")
    )
    done = await run(store, task)
    assert done.result == ["a", "recorded", "c"]
    assert [body.calls for body in bodies] == [1, 0, 1]


async def test_an_interrupted_at_most_once_branch_fails_and_the_others_run(
    store: RunStore,
) -> None:
    paid, mailed = Body("paid"), Body("mailed")

    async def task(context: DurableContext) -> str:
        try:
            await context.parallel(("pay", paid), ("mail", mailed), effect="at_most_once")
        except UnfinishedStepError as error:
            return error.intent
        return "nothing was unfinished"

    await crash_after(store, BeginStep(0, "pay", effect="at_most_once"))
    assert (await run(store, task)).result == "pay"
    assert (paid.calls, mailed.calls) == (0, 1)


async def test_a_failure_that_the_task_had_not_seen_is_tried_again(store: RunStore) -> None:
    """It failed beside a branch that was still open: nobody has gone on after it."""
    shaky = Body("better")

    async def task(context: DurableContext) -> list[Any]:
        return await context.parallel(("shaky", shaky), ("open", lambda: "open"))

    text = failure_text(Broken("it broke"), taken=2)
    await crash_after(store, FailStep(0, "shaky", text), BeginStep(1, "open"))
    assert (await run(store, task)).result == ["better", "open"]


async def test_cancelling_the_run_interrupts_what_runs_and_begins_no_more(
    store: RunStore,
) -> None:
    lanes = Lanes()

    async def task(context: DurableContext) -> list[Any]:
        return await context.parallel(*lanes.bodies(4), concurrency_max=2)

    running = asyncio.ensure_future(run(store, task))
    await until(lambda: lanes.inside == 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(running)
    assert sorted(lanes.interrupted) == lanes.begun == ["branch 0", "branch 1"]
    assert [one.ended for one in await attempts_of(store)] == ["drained"]
    lanes.go_on.set()
    done = await within(run(store, task))
    assert done.result == [f"BRANCH {number}" for number in range(4)]


async def test_a_stop_interrupts_it(store: RunStore) -> None:
    lanes = Lanes()

    async def task(context: DurableContext) -> list[Any]:
        return await context.parallel(*lanes.bodies(3), concurrency_max=1)

    running = asyncio.ensure_future(run(store, task, lease_ms=300))
    await until(lambda: lanes.inside == 1)
    await store.request_stop("run")
    with pytest.raises(Exception, match="stopped"):
        await within(running)
    assert lanes.begun == ["branch 0"]
    assert (await read(store)).state == "stopped"


async def test_a_task_that_gives_it_up_may_sleep_afterwards(store: RunStore) -> None:
    """Branches that never began are no open steps: the lease is given back."""
    lanes = Lanes()

    async def task(context: DurableContext) -> str:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                await context.parallel(*lanes.bodies(4), concurrency_max=1)
        await context.sleep(80)
        return "slept"

    assert (await within(run(store, task))).result == "slept"
    assert lanes.begun == ["branch 0"]
    assert [one.ended for one in await attempts_of(store)] == ["sleeping", "completed"]


async def test_a_branch_that_cancels_itself_leaves_no_other_behind(store: RunStore) -> None:
    steady = Body("steady")

    async def cancels_itself() -> None:
        raise asyncio.CancelledError

    async def task(context: DurableContext) -> list[Any]:
        return await context.parallel(("odd", cancels_itself), ("steady", steady))

    with pytest.raises(Exception, match="cancelled from within"):
        await within(run(store, task))
    assert steady.calls == 1
    assert (await read(store)).state == "failed"
