"""Time limits that end while a result is recorded, or between many steps: replays end likewise."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from perdure.durable import calls, execution
from perdure.durable.context import DurableContext
from perdure.store.protocol import RunStore
from tests.durable.handles import (
    Body,
    Broken,
    Trouble,
    TroubledStore,
    read,
    run,
    steps_of,
    within,
)

T = TypeVar("T")


class LateAnswers(Trouble):
    """A process whose store has written, and takes its time to say so."""

    late_from = -1

    async def write(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        written = await super().write(name, call)
        if self.writes == self.late_from:
            self.held_up.set()
            await asyncio.Event().wait()
        return written


async def test_a_result_that_is_recorded_already_is_the_answer_of_a_cancelled_step(
    store: RunStore,
) -> None:
    answers = LateAnswers()

    async def task(context: DurableContext) -> list[object]:
        await context.step("before", lambda: 0)
        # Behind the begin, which a tool writes by itself.
        answers.late_from = answers.writes + 2
        asking = asyncio.ensure_future(context.step("asked", lambda: "whole", kind="tool"))
        await answers.held_up.wait()
        await asyncio.sleep(0)  # In a replay it has not begun yet.
        asking.cancel()
        return [await asking, await context.step("behind", lambda: 1)]

    assert (await within(run(TroubledStore(store, answers), task))).result == ["whole", 1]
    assert (await within(run(store, task))).result == ["whole", 1]


async def awaited(step: Awaitable[object]) -> None:
    await step


async def in_a_gather(context: DurableContext, quick: Body, last: Body) -> None:
    await asyncio.gather(context.step("quick", quick), context.step("last", last))


async def in_a_group(context: DurableContext, quick: Body, last: Body) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(awaited(context.step("quick", quick)))
        group.create_task(awaited(context.step("last", last)))


async def in_parallel(context: DurableContext, quick: Body, last: Body) -> None:
    await context.parallel(("quick", quick), ("last", last))


async def at_once_from_one_loop(context: DurableContext, quick: Body, last: Body) -> None:
    await context.parallel(("quick", quick), ("last", last), concurrency_max=1)


SHAPES = [in_a_gather, in_a_group, in_parallel, at_once_from_one_loop]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dies", [False, True])
async def test_a_limit_around_several_steps_that_ends_while_the_last_is_recorded_ends_again(
    store: RunStore, shape: Callable[[DurableContext, Body, Body], Awaitable[None]], dies: bool
) -> None:
    answers = LateAnswers()
    quick, last = Body("quick"), Body("last")

    async def task(context: DurableContext) -> list[str]:
        answers.late_from = answers.writes + 2
        try:
            async with asyncio.timeout(0.05):
                await shape(context, quick, last)
        except TimeoutError:
            end = "late"
        else:
            end = "whole"
        behind = [await context.step(end, lambda: end)]
        if dies and answers.held_up.is_set():
            answers.held_up.clear()
            raise Broken
        return behind

    first = run(TroubledStore(store, answers), task)
    if dies:
        with pytest.raises(Broken):
            await within(first)
    else:
        assert (await within(first)).result == ["late"]
    steps = await steps_of(store)
    assert [(step.status, step.result) for step in steps] == [
        ("completed", "quick"),
        ("completed", "last"),
        ("completed", "late"),
    ]
    assert (await within(run(store, task))).result == ["late"]
    assert (quick.calls, last.calls) == (1, 1)


async def test_a_limit_that_ended_behind_the_last_record_of_a_run_holds_nobody_up(
    store: RunStore,
) -> None:
    answers = LateAnswers()
    limits_ms = iter([50, 60_000])

    async def task(context: DurableContext) -> str:
        answers.late_from = answers.writes + 2
        try:
            async with asyncio.timeout(next(limits_ms) / 1_000):
                await in_a_gather(context, Body("quick"), Body("last"))
        except TimeoutError as error:
            raise Broken from error
        return "whole"

    with pytest.raises(Broken):
        await within(run(TroubledStore(store, answers), task))
    assert (await within(run(store, task))).result == "whole"


async def test_a_time_limit_around_many_quick_steps_holds(store: RunStore) -> None:
    count = 0

    async def task(context: DurableContext) -> str:
        nonlocal count
        count = 0
        try:
            async with asyncio.timeout(0.1):
                while count < 20_000:
                    await context.step("quick", lambda: asyncio.sleep(0, 1))
                    count += 1
        except TimeoutError:
            return f"late after {count}"
        return "whole"

    done = await within(run(store, task), 60)
    assert done.result.startswith("late")
    assert (await within(run(store, task), 60)).result == done.result


class Stubborn:
    """A body that does not let itself be cancelled."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()

    async def __call__(self) -> str:
        self.begun.set()
        while not self.may_end.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.may_end.wait()
        return "too late"


@pytest.mark.parametrize("beside", [False, True])
async def test_a_drain_leaves_behind_what_does_not_let_itself_be_cancelled(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    for module in (calls, execution):
        monkeypatch.setattr(module, "GRACE_MS", 50)
    stubborn = Stubborn()

    async def task(context: DurableContext) -> str:
        step = context.step("stubborn", stubborn)
        if beside:
            asking = asyncio.ensure_future(step)
            await stubborn.may_end.wait()
            return await asking
        return await step

    running = asyncio.create_task(run(store, task))
    await within(stubborn.begun.wait())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(running)
    assert (await read(store)).lease_holder_id is None
    stubborn.may_end.set()
    assert (await within(run(store, task))).result == "too late"
