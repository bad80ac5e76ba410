"""Several steps at once: positions by call, limits, failures, cancellation, replay."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.core.changes import CompleteStep
from perdure.core.records import Retry
from perdure.durable.context import DurableContext
from perdure.durable.steps import current_step
from perdure.errors import (
    DivergenceError,
    LeaseLostError,
    RunParkedError,
    StepFailedError,
    StepTimeoutError,
    StoreUnavailableError,
    UsageError,
)
from perdure.store.protocol import RunStore
from tests.durable.handles import (
    Body,
    Broken,
    Trouble,
    in_trouble,
    leave_behind,
    read,
    run,
    steps_of,
    until,
    within,
)
from tests.durable.lanes import Lanes


async def test_the_results_are_in_order_whatever_finishes_first(store: RunStore) -> None:
    async def task(context: DurableContext) -> list[Any]:
        last = asyncio.Event()

        async def waits() -> str:
            await last.wait()
            return "a"

        return await context.parallel(("a", waits), ("b", lambda: "b"), ("c", last.set))

    done = await within(run(store, task))
    assert done.result == ["a", "b", None]
    assert [step.intent for step in done.steps] == ["a", "b", "c"]
    assert (await run(store, task)).result == ["a", "b", None]


async def test_positions_are_taken_at_the_call(store: RunStore) -> None:
    async def task(context: DurableContext) -> list[Any]:
        both = context.parallel(("one", lambda: 1), ("two", lambda: 2))
        three = await context.step("three", lambda: 3)
        return [*await both, three]

    done = await run(store, task)
    assert done.result == [1, 2, 3]
    assert [step.intent for step in done.steps] == ["one", "two", "three"]


@pytest.mark.parametrize(("concurrency_max", "most"), [(1, 1), (2, 2), (9, 5), (None, 5)])
async def test_no_more_steps_run_at_a_time_than_are_allowed(
    store: RunStore, concurrency_max: int | None, most: int
) -> None:
    lanes = Lanes()

    async def task(context: DurableContext) -> list[Any]:
        return await context.parallel(*lanes.bodies(5), concurrency_max=concurrency_max)

    running = asyncio.ensure_future(run(store, task))
    await until(lambda: lanes.inside == most)
    lanes.go_on.set()
    done = await within(running)
    assert lanes.most == most
    assert lanes.begun == [f"branch {number}" for number in range(5)]
    assert done.result == [f"BRANCH {number}" for number in range(5)]


async def test_no_steps_take_no_position(store: RunStore) -> None:
    async def task(context: DurableContext) -> list[Any]:
        assert await context.parallel() == []
        return await context.parallel(("only", lambda: 1), concurrency_max=3)

    done = await run(store, task)
    assert done.result == [1]
    assert [step.intent for step in done.steps] == ["only"]


async def test_the_options_are_those_of_each_step(store: RunStore) -> None:
    shaky, key = Body("steady", fails=1), set[str]()

    async def task(context: DurableContext) -> list[Any]:
        return await context.parallel(
            ("shaky", shaky),
            ("key", lambda: key.add(current_step().idempotency_key)),
            kind="tool",
            effect="at_most_once",
            retry=Retry(tries_max=2, backoff_ms=1),
        )

    done = await run(store, task)
    assert [(step.kind, step.effect, step.attempts) for step in done.steps] == [
        ("tool", "at_most_once", 2),
        ("tool", "at_most_once", 1),
    ]
    assert len(key) == 1


async def test_a_time_out_is_that_of_each_body_and_not_of_the_waiting(store: RunStore) -> None:
    async def slow() -> None:
        await asyncio.Event().wait()

    async def task(context: DurableContext) -> list[Any]:
        return await context.parallel(
            ("slow", slow), ("also", slow), concurrency_max=1, timeout_ms=20
        )

    with pytest.raises(StepTimeoutError, match="'slow'"):
        await within(run(store, task))
    assert [step.status for step in await steps_of(store)] == ["failed", "failed"]


@pytest.mark.parametrize(
    ("calls", "options", "culprit"),
    [
        ([("a", lambda: 1), ("", lambda: 1)], {}, "intent"),
        ([("a", lambda: 1), ("b", 7)], {}, "a tuple"),
        ([("a", lambda: 1), ["b", lambda: 1]], {}, "a tuple"),
        ([("a", lambda: 1), ("b", lambda: 1, 3)], {}, "a tuple"),
        ([("a", lambda: 1)], {"concurrency_max": 0}, "concurrency_max"),
        ([("a", lambda: 1)], {"concurrency_max": True}, "concurrency_max"),
        ([("a", lambda: 1)], {"effect": "never"}, "effect"),
        ([("a", lambda: 1)], {"timeout_ms": 0}, "timeout_ms"),
    ],
)
async def test_what_is_refused_takes_no_position(
    store: RunStore, calls: list[Any], options: dict[str, Any], culprit: str
) -> None:
    async def task(context: DurableContext) -> None:
        with pytest.raises(UsageError, match=culprit):
            context.parallel(*calls, **options)
        await context.step("right", lambda: 1)

    assert [step.intent for step in (await run(store, task)).steps] == ["right"]


async def test_it_is_refused_inside_the_body_of_a_step(store: RunStore) -> None:
    async def task(context: DurableContext) -> None:
        await context.step("outer", lambda: context.parallel(("inner", lambda: 1)))

    with pytest.raises(UsageError, match="inside the body of the step 'outer'"):
        await run(store, task)


# Failures.


@pytest.mark.parametrize("concurrency_max", [None, 1])
async def test_a_failure_stops_no_other_and_the_lowest_position_is_raised(
    store: RunStore, concurrency_max: int | None
) -> None:
    before, behind = Body("before"), Body("behind")

    async def late() -> None:
        await asyncio.sleep(0.01)
        raise Broken("the late one")

    def early() -> None:
        raise Broken("the early one")

    async def task(context: DurableContext) -> None:
        with pytest.raises(StepFailedError) as caught:
            await context.parallel(
                ("before", before),
                ("late", late),
                ("early", early),
                ("behind", behind),
                concurrency_max=concurrency_max,
            )
        assert caught.value.intent == "late"
        assert isinstance(caught.value.__cause__, Broken)

    done = await run(store, task)
    assert [step.status for step in done.steps] == ["completed", "failed", "failed", "completed"]
    assert (before.calls, behind.calls) == (1, 1)


async def test_a_task_that_went_on_after_a_failure_does_so_in_every_attempt(
    store: RunStore,
) -> None:
    """The body would succeed the second time, but the branch that was taken is final."""
    shaky, steady, end = Body(fails=1), Body("steady"), Body(fails=1)

    async def task(context: DurableContext) -> str:
        try:
            await context.parallel(("shaky", shaky), ("steady", steady))
        except StepFailedError as error:
            branch = f"without {error.intent}"
        else:
            branch = "with both"
        await context.step("branch", lambda: branch)
        end()
        return branch

    with pytest.raises(Broken):
        await run(store, task)
    assert (await run(store, task)).result == "without shaky"
    assert (await run(store, task)).result == "without shaky"
    assert (shaky.calls, steady.calls) == (1, 1)


async def test_a_failed_run_tries_again_only_what_failed(store: RunStore) -> None:
    shaky, steady = Body("at last", fails=1), Body("steady")

    async def task(context: DurableContext) -> list[Any]:
        return await context.parallel(("steady", steady), ("shaky", shaky))

    with pytest.raises(Broken):
        await run(store, task)
    assert (await run(store, task)).result == ["steady", "at last"]
    assert (steady.calls, shaky.calls) == (1, 2)


async def test_another_branch_at_a_position_is_a_divergence_and_begins_nothing(
    store: RunStore,
) -> None:
    last = Body()

    async def task(context: DurableContext) -> list[Any]:
        return await context.parallel(
            ("first", Body()), ("other", Body()), ("last", last), concurrency_max=1
        )

    await leave_behind(store, CompleteStep(0, "first", "1"), CompleteStep(1, "second", "2"))
    with pytest.raises(RunParkedError) as caught:
        await run(store, task)
    assert isinstance(caught.value.__cause__, DivergenceError)
    assert last.calls == 0


async def test_a_store_that_is_away_ends_the_attempt_whatever_else_failed(
    store: RunStore,
) -> None:
    trouble, last = Trouble(), Body()

    def fails() -> None:
        raise Broken("recorded")

    async def takes_it_away() -> None:
        trouble.is_down = True

    async def task(context: DurableContext) -> list[Any]:
        return await context.parallel(
            ("fails", fails), ("away", takes_it_away), ("last", last), concurrency_max=1
        )

    # Whichever is noticed first: that the store stays away, or that the lease ran out meanwhile.
    with pytest.raises((StoreUnavailableError, LeaseLostError)):
        await within(run(in_trouble(store, trouble, threaded=False), task, lease_ms=300))
    assert last.calls == 0
    assert (await read(store)).state == "running"
