"""What is recorded of a run that completes may be made of its result."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.core.records import RunOutcome
from perdure.durable.context import DurableContext
from perdure.durable.runner import run_durable
from perdure.errors import NotSerializableError, UsageError
from perdure.store.protocol import RunStore
from perdure.testing.samples import manifest


async def answer(context: DurableContext) -> int:
    return int(await context.step("answer", lambda: 42))


def graded(result: int) -> RunOutcome:
    return RunOutcome(passed=result == 42, notes=str(result))


async def test_the_outcome_is_made_of_the_result(store: RunStore) -> None:
    done = await run_durable(
        store, run_id="run", manifest=manifest(), task=answer, default_outcome=graded
    )
    assert done.record.outcome == RunOutcome(passed=True, notes="42")


async def test_a_run_whose_outcome_cannot_be_made_has_failed(store: RunStore) -> None:
    def broken(result: int) -> RunOutcome:
        raise ArithmeticError(f"{result} is no grade")

    with pytest.raises(ArithmeticError):
        await run_durable(
            store, run_id="run", manifest=manifest(), task=answer, default_outcome=broken
        )
    run = await store.read_run("run")
    assert run is not None
    assert run.state == "failed"
    assert run.outcome is not None
    assert run.outcome.passed is False
    done = await run_durable(
        store, run_id="run", manifest=manifest(), task=answer, default_outcome=graded
    )
    assert done.record.outcome == RunOutcome(passed=True, notes="42")


async def test_a_failed_task_did_not_pass_whatever_makes_the_outcome(store: RunStore) -> None:
    async def broken(context: DurableContext) -> int:
        raise ConnectionError("no line")

    with pytest.raises(ConnectionError):
        await run_durable(
            store, run_id="run", manifest=manifest(), task=broken, default_outcome=graded
        )
    run = await store.read_run("run")
    assert run is not None
    assert run.outcome == RunOutcome(passed=False, notes="no line")


async def test_the_task_itself_may_say_its_outcome_and_goes_before_the_default(
    store: RunStore,
) -> None:
    async def judged(context: DurableContext) -> int:
        context.set_outcome(RunOutcome(passed=False, notes="a first try"))
        result = await answer(context)
        context.set_outcome(RunOutcome(passed=True, score=0.9))
        return result

    done = await run_durable(
        store, run_id="run", manifest=manifest(), task=judged, default_outcome=graded
    )
    assert done.record.outcome == RunOutcome(passed=True, score=0.9)
    again = await run_durable(store, run_id="run", manifest=manifest(), task=judged)
    assert again.record.outcome == done.record.outcome


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        ({"passed": "yes"}, UsageError),
        ({"metadata": {"at": {1}}}, NotSerializableError),
    ],
)
async def test_an_outcome_that_cannot_be_recorded_is_refused_where_it_is_said(
    store: RunStore, outcome: dict[str, Any], error: type[Exception]
) -> None:
    async def judged(context: DurableContext) -> None:
        with pytest.raises(error):
            context.set_outcome(RunOutcome(**outcome))

    done = await run_durable(store, run_id="run", manifest=manifest(), task=judged)
    assert done.record.outcome is None
