"""What a failure of a step means to the task, the caller and later attempts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from perdure.core.changes import BeginStep
from perdure.durable.context import DurableContext
from perdure.durable.steps import current_step
from perdure.errors import (
    StepFailedError,
    UnfinishedStepError,
)
from perdure.store.protocol import RunStore
from perdure.testing.crashing import Crash, Process, crashing
from tests.durable.handles import (
    Body,
    Broken,
    Handles,
    crash_after,
    described,
    leave_behind,
    read,
    run,
    steps_of,
    within,
)


async def fail() -> None:
    raise Broken("it broke")


async def test_a_failure_at_the_end_of_history_is_executed_again(store: RunStore) -> None:
    body = Body("mended", fails=1)

    async def task(context: DurableContext) -> object:
        await context.step("before", lambda: 1)
        return await context.step("work", body)

    with pytest.raises(Broken):
        await run(store, task)
    assert (await run(store, task)).result == "mended"
    assert body.calls == 2


async def test_a_failure_is_final_once_the_task_went_on_behind_it(store: RunStore) -> None:
    body, whole = Body(fails=9), Body(fails=1)

    async def task(context: DurableContext) -> str:
        with pytest.raises(StepFailedError):
            await context.step("work", body)
        answer = await context.step("instead", lambda: "plan b")
        whole()
        return answer

    with pytest.raises(Broken):
        await run(store, task)
    assert (await run(store, task)).result == "plan b"
    assert body.calls == 1


async def test_a_failure_beside_parallel_steps_is_executed_again(store: RunStore) -> None:
    """The task waited for all of them, so it has not gone on behind the failure."""
    body = Body("mended", fails=1)

    async def task(context: DurableContext) -> list[object]:
        shaky, steady = context.step("shaky", body), context.step("steady", lambda: "steady")
        return [*await asyncio.gather(shaky, steady)]

    with pytest.raises(Broken):
        await run(store, task)
    assert (await run(store, task)).result == ["mended", "steady"]
    assert body.calls == 2


async def in_tasks(context: DurableContext, *bodies: Body, **options: Any) -> list[object]:
    """Execute each body in an asyncio task, which asks for its step once it runs."""

    async def work(name: str, body: Body) -> object:
        return await context.step(name, body, **options)

    return [*await asyncio.gather(*(work(str(at), body) for at, body in enumerate(bodies)))]


async def test_a_failure_beside_tasks_that_had_not_asked_yet_is_executed_again(
    store: RunStore,
) -> None:
    shaky, steady = Body("mended", fails=1), Body("steady")

    async def task(context: DurableContext) -> list[object]:
        return await in_tasks(context, shaky, steady)

    with pytest.raises(Broken):
        await run(store, task)
    assert (await run(store, task)).result == ["mended", "steady"]
    assert shaky.calls == 2


async def raise_step_failed() -> None:
    raise StepFailedError("of another run", intent="other")


async def hang() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("body", [fail, raise_step_failed, hang, lambda: {1}])
async def test_a_failure_is_the_same_first_time_and_replayed(
    store: RunStore, body: Callable[[], object]
) -> None:
    seen: list[object] = []

    async def task(context: DurableContext) -> None:
        try:
            await context.step("work", body, timeout_ms=5)
        except StepFailedError as error:
            seen.append(described(error))
        await context.step("behind", lambda: 1)
        if len(seen) == 1:
            raise RuntimeError("once more")

    with pytest.raises(RuntimeError):
        await within(run(store, task))
    await within(run(store, task))
    assert seen[0] == seen[1]


async def test_the_first_failure_has_the_original_as_its_cause(store: RunStore) -> None:
    async def task(context: DurableContext) -> None:
        with pytest.raises(StepFailedError) as failed:
            await context.step("work", fail)
        error = failed.value
        assert type(error.__cause__) is Broken
        assert (error.intent, error.original_message) == ("work", "it broke")
        assert (error.original_code, error.original_type) == ("broken", "Broken")

    await run(store, task)


async def test_the_caller_gets_the_original_and_later_the_recorded_failure(
    store: RunStore,
) -> None:
    async def task(context: DurableContext) -> None:
        failing = context.step("work", fail)
        try:
            await failing
        except StepFailedError:
            await context.step("tidy up", lambda: 1)
            raise

    with pytest.raises(Broken, match="it broke"):
        await run(store, task)
    with pytest.raises(StepFailedError, match="the step 'work' failed: it broke"):
        await run(store, task)


async def test_a_straggler_does_not_outlive_the_run_that_failed_beside_it(
    store: RunStore,
) -> None:
    ended: list[str] = []

    async def straggle() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append((await read(store)).state)

    async def task(context: DurableContext) -> None:
        await asyncio.gather(context.step("straggler", straggle), context.step("broken", fail))

    with pytest.raises(Broken):
        await within(run(store, task))
    assert ended == ["running"], "the body must end before its run does"


class Charging:
    """A task that charges a card once; it may be asked to handle the doubt."""

    def __init__(self) -> None:
        self.card = Body("charged")

    async def __call__(self, context: DurableContext) -> object:
        return await context.step("charge", self.card, kind="tool", effect="at_most_once")


CHARGE_BEGUN = BeginStep(0, "charge", kind="tool", effect="at_most_once")


async def test_an_interrupted_step_of_at_most_once_is_not_executed_again(store: RunStore) -> None:
    charge = Charging()
    await leave_behind(store, CHARGE_BEGUN)
    with pytest.raises(UnfinishedStepError, match="'charge' was interrupted"):
        await run(store, charge)
    assert charge.card.calls == 0
    assert (await read(store)).state == "failed"
    (step,) = await steps_of(store)
    assert step.status == "failed"
    assert step.error is not None
    assert step.error.code == "unfinished_tool_call"


async def test_a_retry_of_the_failed_run_executes_it(store: RunStore) -> None:
    charge = Charging()
    await leave_behind(store, CHARGE_BEGUN)
    with pytest.raises(UnfinishedStepError):
        await run(store, charge)
    done = await run(store, charge)
    assert (done.result, charge.card.calls) == ("charged", 1)


async def test_a_retry_executes_it_beside_others_that_ask_in_tasks_of_their_own(
    store: RunStore,
) -> None:
    cards = [Body("first"), Body("second"), Body("third")]

    async def task(context: DurableContext) -> list[object]:
        return await in_tasks(context, *cards, kind="tool", effect="at_most_once")

    begun = BeginStep(0, "0", kind="tool", effect="at_most_once")
    await leave_behind(store, begun, begun._replace(position=1, intent="1"))
    with pytest.raises(UnfinishedStepError):
        await run(store, task)
    assert (await run(store, task)).result == ["first", "second", "third"]
    assert [card.calls for card in cards] == [1, 1, 1]


async def test_a_crash_before_the_end_of_the_failed_run_is_no_retry(handles: Handles) -> None:
    store = await handles.open(clock=handles.clock)
    charge = Charging()
    await leave_behind(store, CHARGE_BEGUN)
    dying = crashing(await handles.open(clock=handles.clock), Process(2, "before"))
    with pytest.raises(Crash):
        await run(dying, charge)
    assert (await steps_of(store))[0].status == "failed"
    handles.clock.advance(60_000)
    with pytest.raises(UnfinishedStepError):
        await run(store, charge)
    assert charge.card.calls == 0
    assert (await run(store, charge)).result == "charged"


async def test_a_task_that_handled_the_interruption_meets_it_for_ever(store: RunStore) -> None:
    charge = Charging()
    whole = Body("asked", fails=1)

    async def task(context: DurableContext) -> object:
        try:
            await charge(context)
        except UnfinishedStepError:
            await context.step("ask a person", lambda: 1)
        return whole()

    await leave_behind(store, CHARGE_BEGUN)
    with pytest.raises(Broken):
        await run(store, task)
    assert (await run(store, task)).result == "asked"
    assert charge.card.calls == 0


async def test_an_interrupted_idempotent_step_is_executed_again(store: RunStore) -> None:
    async def task(context: DurableContext) -> int:
        return await context.step("work", lambda: current_step().tries)

    await crash_after(store, BeginStep(0, "work", tries=1))
    assert (await run(store, task)).result == 2
