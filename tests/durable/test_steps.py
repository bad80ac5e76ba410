"""Steps: executed at least once, recorded once, replayed ever after."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from perdure.core.changes import CompleteStep
from perdure.core.records import Retry, StepCall
from perdure.durable.context import DurableContext
from perdure.durable.steps import current_step
from perdure.errors import (
    NotSerializableError,
    UsageError,
)
from perdure.store.protocol import RunStore
from tests.durable.handles import (
    Body,
    Broken,
    leave_behind,
    run,
    steps_of,
)


async def test_a_recorded_step_is_replayed_without_calling_its_function(store: RunStore) -> None:
    first, second = Body("one"), Body("two")

    async def task(context: DurableContext) -> list[object]:
        return [await context.step("first", first), await context.step("second", second)]

    await leave_behind(store, CompleteStep(0, "first", '"recorded"'))
    done = await run(store, task)
    assert done.result == ["recorded", "two"]
    assert (first.calls, second.calls) == (0, 1)


async def test_the_first_run_returns_what_a_replay_returns(store: RunStore) -> None:
    async def task(context: DurableContext) -> object:
        return await context.step("pair", lambda: {"pair": (1, (2.0, None))})

    first = (await run(store, task)).result
    assert first == {"pair": [1, [2.0, None]]}
    assert (await run(store, task)).result == first


async def test_a_result_is_a_copy_that_nobody_can_change_afterwards(store: RunStore) -> None:
    mine = [1]

    async def task(context: DurableContext) -> list[int]:
        got = await context.step("list", lambda: mine)
        mine.append(2)
        return got

    assert (await run(store, task)).result == [1]


async def later(delay_s: float) -> float:
    await asyncio.sleep(delay_s)
    return delay_s


@pytest.mark.parametrize("delays", [(0.02, 0.01, 0.0), (0.0, 0.01, 0.02)])
async def test_positions_follow_the_calls_whatever_finishes_first(
    store: RunStore, delays: tuple[float, ...]
) -> None:
    async def task(context: DurableContext) -> list[float]:
        branches = [
            context.step(f"branch {index}", partial(later, delay))
            for index, delay in enumerate(delays)
        ]
        return await asyncio.gather(*branches)

    done = await run(store, task)
    assert done.result == list(delays)
    assert [step.intent for step in done.steps] == ["branch 0", "branch 1", "branch 2"]


async def test_a_function_may_be_plain_or_async_or_return_an_awaitable(store: RunStore) -> None:
    async def slow() -> str:
        await asyncio.sleep(0)
        return "async"

    async def task(context: DurableContext) -> list[str]:
        return [
            await context.step("plain", lambda: "plain"),
            await context.step("async", slow),
            await context.step("awaitable", lambda: slow()),
        ]

    assert (await run(store, task)).result == ["plain", "async", "async"]


async def test_a_step_inside_a_step_is_refused(store: RunStore) -> None:
    async def task(context: DurableContext) -> None:
        await context.step("outer", lambda: context.step("inner", lambda: 1))

    with pytest.raises(UsageError, match="inside the body of the step 'outer'"):
        await run(store, task)
    assert [step.intent for step in await steps_of(store)] == ["outer"]


async def test_a_step_may_run_another_run(store: RunStore) -> None:
    async def inner(context: DurableContext) -> int:
        return await context.step("inner", lambda: 7)

    async def nested() -> int:
        return (await run(store, inner, run_id="inner")).result

    async def task(context: DurableContext) -> int:
        return await context.step("outer", nested)

    assert (await run(store, task)).result == 7


async def test_the_body_knows_its_key_and_its_tries(store: RunStore) -> None:
    seen: list[StepCall] = []

    def body() -> None:
        seen.append(current_step())
        if len(seen) < 3:
            raise Broken("not yet")

    async def task(context: DurableContext) -> None:
        await context.step("work", body, retry=Retry(tries_max=2, backoff_ms=1))

    with pytest.raises(Broken):
        await run(store, task)
    await run(store, task)
    assert [tries for _, tries in seen] == [1, 2, 3]
    assert len({key for key, _ in seen}) == 1
    assert (await steps_of(store))[0].attempts == 3


async def test_two_steps_and_two_runs_have_different_keys(store: RunStore) -> None:
    async def task(context: DurableContext) -> list[str]:
        def key() -> str:
            return current_step().idempotency_key

        return [await context.step("one", key), await context.step("two", key)]

    keys = (await run(store, task)).result + (await run(store, task, run_id="other")).result
    assert len(set(keys)) == 4


async def test_outside_a_step_there_is_no_current_step() -> None:
    with pytest.raises(UsageError, match="inside the body"):
        current_step()


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"effect": "at-most-once"}, "effect"),
        ({"kind": "LLM"}, "kind"),
        ({"timeout_ms": 0}, "timeout_ms"),
        ({"timeout_ms": 1.5}, "timeout_ms"),
        ({"fingerprint": {1, 2}}, "value"),
    ],
)
async def test_a_wrong_option_is_refused_and_takes_no_position(
    store: RunStore, options: dict[str, Any], culprit: str
) -> None:
    async def task(context: DurableContext) -> None:
        with pytest.raises((UsageError, NotSerializableError), match=culprit):
            await context.step("wrong", lambda: 1, **options)
        await context.step("right", lambda: 1)

    assert [step.intent for step in (await run(store, task)).steps] == ["right"]


@pytest.mark.parametrize("intent", ["", "a\x00b", "\ud800", "x" * 1_001, 7])
async def test_an_intent_that_no_store_could_keep_is_refused(store: RunStore, intent: Any) -> None:
    async def task(context: DurableContext) -> None:
        await context.step(intent, lambda: 1)

    with pytest.raises(UsageError, match="intent"):
        await run(store, task)
