"""Tasks and turns on Cloudflare's own Workflows engine, which is killed in the middle."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    AgentTaskSpec,
    DurableContext,
    RunManifest,
    open_store,
    run_durable,
)
from perdure.engines.cloudflare import (
    WorkflowStep,
    run_on_workflow,
    run_on_workflow_step,
)
from perdure.errors import UsageError
from perdure.testing.hosts import HOST_CASES, HostCase
from tests.engines.workflow_engine import BridgedStep, EngineError, Main, WorkflowEngine
from tests.engines.workflow_lab import WorkflowLab

pytestmark = [pytest.mark.node, pytest.mark.xdist_group("workflows")]
MANIFEST = RunManifest("w", AgentTaskSpec(id="t", intent="try"))
CONFIG = {"retries": {"limit": 2, "delay": 10, "backoff": "constant"}, "timeout": "1 minute"}
DEADLINE_S = 20


def hosted(task: Any) -> Main:
    return lambda step, instance: run_on_workflow(
        step, workflow_name="w", instance_id=instance, task=task
    )


def plain(task: Any, **options: Any) -> Main:
    return lambda step, _: run_on_workflow_step(step, workflow_name="w", task=task, **options)


class Recorder:
    """What the engine is asked for, which it does as well."""

    def __init__(self, step: WorkflowStep) -> None:
        self._step = step
        self.asked: list[Any] = []

    def do(self, name: str, **options: Any) -> Any:
        self.asked.append((name, options))
        return self._step.do(name, **options)

    def sleep(self, name: str, duration: Any, /) -> Any:
        self.asked.append((name, duration))
        return self._step.sleep(name, duration)

    def wait_for_event(self, name: str, event_type: str, /, **options: str) -> Any:
        self.asked.append((name, event_type, options))
        return self._step.wait_for_event(name, event_type, **options)


@pytest.mark.parametrize("case", HOST_CASES, ids=lambda case: case.__name__)
async def test_a_task_does_what_the_contract_of_hosts_says(
    workflow_engine: WorkflowEngine, tmp_path: Path, case: HostCase
) -> None:
    await case(WorkflowLab(workflow_engine, tmp_path))


# One task on both.


class Told:
    """What a task sees, and how often its bodies were called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def body(self, name: str, value: Any = None, *, fails: int = 0) -> Callable[[], Any]:
        def called() -> Any:
            self.calls.append(name)
            if self.calls.count(name) <= fails:
                raise KeyError(name)
            return value

        return called


async def uncaught(ctx: DurableContext, told: Told) -> Any:
    await ctx.step("bad", told.body("bad", fails=9))


async def cancelled_step(ctx: DurableContext, told: Told) -> Any:
    async def slow() -> None:
        told.calls.append("slow")
        await asyncio.sleep(DEADLINE_S)

    try:
        await asyncio.wait_for(ctx.step("slow", slow), 0.2)
    except TimeoutError:
        return await ctx.step("after", told.body("after", 7))


CASES = [uncaught, cancelled_step]


async def outcome(running: Awaitable[Any]) -> Any:
    """Return the result, or what was raised, which the engine tells by its text."""
    try:
        result = await running
    except EngineError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return getattr(result, "result", result)


@pytest.mark.parametrize("case", CASES)
async def test_a_task_gives_what_it_gives_under_run_durable(
    workflow_engine: WorkflowEngine, case: Any
) -> None:
    told, durably = Told(), Told()
    store = await open_store("memory://")
    wanted, seen = await asyncio.gather(
        outcome(run_durable(store, run_id="r", manifest=MANIFEST, task=lambda c: case(c, durably))),
        outcome(asyncio.to_thread(workflow_engine.run, hosted(lambda ctx: case(ctx, told)))),
    )
    await store.close()
    assert seen == wanted
    assert told.calls == durably.calls


# Killed in the middle.


def test_behind_a_kill_an_instance_goes_on_sleeping(workflow_engine: WorkflowEngine) -> None:
    calls: list[int] = []
    waiting = threading.Event()

    async def task(ctx: DurableContext) -> Any:
        await ctx.step("before", lambda: calls.append(1))
        asyncio.get_running_loop().call_later(0.1, waiting.set)
        return await ctx.sleep(1_000)

    instance = workflow_engine.create(hosted(task))
    assert waiting.wait(DEADLINE_S)
    workflow_engine.kill()
    workflow_engine.start()
    workflow_engine.wake(instance)
    assert workflow_engine.ended(instance) is None
    assert calls == [1]


def test_a_step_that_the_engine_gives_up_waiting_for_is_cancelled_and_done_again(
    workflow_engine: WorkflowEngine,
) -> None:
    calls: list[str] = []

    async def slow() -> int:
        calls.append("begun")
        try:
            await asyncio.sleep(DEADLINE_S if len(calls) == 1 else 0)
        except asyncio.CancelledError:
            calls.append("cancelled")
            raise
        return len(calls)

    limits = {"timeout": 200, "retries": {"limit": 1, "delay": 10}}

    async def task(ctx: DurableContext) -> int:
        return await ctx.step("slow", slow)

    value = workflow_engine.run(
        lambda step, instance: run_on_workflow(
            step, workflow_name="w", instance_id=instance, task=task, step_config=limits
        )
    )
    assert (value, calls) == (3, ["begun", "cancelled", "begun"])


# The door of the TypeScript library.


def test_all_names_and_the_config_of_steps_are_those_of_the_reference(
    workflow_engine: WorkflowEngine,
) -> None:
    seen: list[Any] = []

    async def task(ctx: DurableContext) -> Any:
        seen.append((ctx.run_id, ctx.project_id, ctx.scenario_id))
        await ctx.step("look", lambda: 1, kind="tool", fingerprint={"any": "thing"})
        await ctx.now()
        await ctx.uuid()
        await ctx.parallel(("p", lambda: 1), ("q", lambda: 2))
        await ctx.sleep(5)
        return await ctx.await_event("yes")

    async def main(step: WorkflowStep, instance: str) -> Any:
        asked = Recorder(step)
        seen.append(asked.asked)
        return await run_on_workflow_step(asked, workflow_name="w", task=task, step_config=CONFIG)

    instance = workflow_engine.create(main)
    workflow_engine.send(instance, "yes", [None])
    assert workflow_engine.ended(instance) == [None]
    given = {"config": CONFIG}
    assert seen == [
        [
            ("w/0:look", given),
            ("w/1:deterministic:now", given),
            ("w/2:deterministic:uuid", given),
            ("w/3:p", given),
            ("w/4:q", given),
            ("w/5:deterministic:sleep", 5),
            ("w/6:event:yes", "yes", {}),
        ],
        ("cf-workflow:w", "w", None),
    ]


def test_the_engine_tries_a_step_again_and_raises_its_own_error(
    workflow_engine: WorkflowEngine,
) -> None:
    told = Told()

    async def task(ctx: DurableContext) -> Any:
        good = await ctx.step("flaky", told.body("flaky", 5, fails=2))
        try:
            await ctx.step("bad", told.body("bad", fails=9))
        except EngineError as error:
            return [good, str(error)]

    good, error = workflow_engine.run(plain(task, step_config=CONFIG))
    assert (good, told.calls) == (5, ["flaky"] * 3 + ["bad"] * 3)
    assert error == "Error: KeyError: 'bad'"


def test_the_limit_of_an_event_is_in_seconds_rounded_up_and_its_end_the_engines_error(
    workflow_engine: WorkflowEngine,
) -> None:
    asked: list[Any] = []

    async def main(step: Any, instance: str) -> Any:
        step = Recorder(step)
        asked.append(step.asked)

        async def task(ctx: DurableContext) -> Any:
            return await ctx.await_event("never", timeout_ms=60_001)

        return await run_on_workflow_step(step, workflow_name="w", task=task)

    # This engine does not read "61s": what it raises is passed on as it is.
    with pytest.raises(EngineError, match="target_timestamp"):
        workflow_engine.run(main)
    assert asked == [[("w/0:event:never", "never", {"timeout": "61s"})]]


def test_what_the_engine_cannot_promise_is_refused(workflow_engine: WorkflowEngine) -> None:
    async def task(ctx: DurableContext) -> Any:
        refused = []
        try:
            await ctx.emit_event("yes", 1)
        except UsageError as error:
            refused.append(str(error))
        try:
            await ctx.step("once", lambda: 1, effect="at_most_once")
        except UsageError as error:
            refused.append(str(error))
        return refused

    event, once = workflow_engine.run(plain(task))
    assert "send_event" in event
    assert "run_on_workflow" in once
    [event] = workflow_engine.run(hosted(task))
    assert "send_event" in event


def test_a_workflow_without_a_name_is_refused() -> None:
    task: Any = None
    step: Any = BridgedStep()
    with pytest.raises(UsageError, match="workflow_name"):
        asyncio.run(run_on_workflow_step(step, workflow_name="", task=task))
