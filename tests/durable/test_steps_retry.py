"""Steps that are tried again, and steps that take too long."""

from __future__ import annotations

import asyncio
import time

import pytest

from perdure.core.records import Retry
from perdure.durable.context import DurableContext
from perdure.errors import (
    NotSerializableError,
    StepTimeoutError,
)
from perdure.store.protocol import RunStore
from tests.durable.handles import (
    Body,
    Broken,
    read,
    run,
    steps_of,
    within,
)

QUICK = Retry(tries_max=3, backoff_ms=1)


async def test_a_step_is_tried_again_with_longer_pauses(store: RunStore) -> None:
    moments: list[float] = []

    def body() -> str:
        moments.append(time.monotonic())
        if len(moments) < 3:
            raise Broken("not yet")
        return "done"

    async def task(context: DurableContext) -> str:
        return await context.step("work", body, retry=Retry(tries_max=3, backoff_ms=40))

    done = await run(store, task)
    assert done.result == "done"
    assert done.steps[0].attempts == 3
    first, second = moments[1] - moments[0], moments[2] - moments[1]
    assert first >= 0.030
    assert second >= 0.060


async def test_the_pause_never_exceeds_its_limit(store: RunStore) -> None:
    retry = Retry(tries_max=50, backoff_ms=1, backoff_max_ms=1)
    body = Body(fails=99)

    async def task(context: DurableContext) -> None:
        await context.step("work", body, retry=retry)

    with pytest.raises(Broken):
        await within(run(store, task), 5)
    assert body.calls == 50


async def test_only_the_named_errors_are_tried_again(store: RunStore) -> None:
    body = Body(fails=99)

    async def task(context: DurableContext) -> None:
        await context.step("work", body, retry=QUICK._replace(retry_on=(KeyError,)))

    with pytest.raises(Broken):
        await run(store, task)
    assert body.calls == 1


@pytest.mark.parametrize("value", [{1}, float("nan"), b"bytes", object()])
async def test_a_result_that_cannot_be_stored_is_never_tried_again(
    store: RunStore, value: object
) -> None:
    body = Body(value)

    async def task(context: DurableContext) -> None:
        await context.step("work", body, retry=QUICK)

    with pytest.raises(NotSerializableError, match="step 'work'"):
        await run(store, task)
    assert body.calls == 1
    assert (await steps_of(store))[0].status == "failed"


async def test_a_time_out_cancels_the_body_and_counts_as_a_failure(store: RunStore) -> None:
    cancelled: list[int] = []

    async def body() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    async def task(context: DurableContext) -> None:
        await context.step("work", body, timeout_ms=10, retry=Retry(tries_max=2, backoff_ms=1))

    with pytest.raises(StepTimeoutError, match="longer than 10 ms"):
        await within(run(store, task))
    assert len(cancelled) == 2
    assert (await read(store)).state == "failed"


async def test_a_time_out_of_the_body_itself_is_an_ordinary_failure(store: RunStore) -> None:
    async def body() -> None:
        raise TimeoutError("the provider's")

    async def task(context: DurableContext) -> None:
        await context.step("work", body, timeout_ms=10_000)

    with pytest.raises(TimeoutError, match="the provider's"):
        await run(store, task)
