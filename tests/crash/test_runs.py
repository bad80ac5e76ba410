"""A run comes to the same end wherever its process dies, and no step runs after its commit."""

from __future__ import annotations

import asyncio
from collections import Counter

from perdure.core.records import Retry
from perdure.durable.context import DurableContext
from perdure.durable.runner import emit_event, run_durable
from perdure.durable.worker import Worker
from perdure.store.protocol import RunStore
from perdure.testing.contract import NewLab
from perdure.testing.faults import crash_everywhere
from perdure.testing.samples import manifest

Outcome = tuple[object, str, list[tuple[object, ...]]]
RETRY = Retry(tries_max=3, backoff_ms=1)


class Story:
    """A task of five steps, a sleep and an event; it sees which bodies run, and when."""

    def __init__(self, *, sleep_ms: int = 60) -> None:
        self._sleep_ms = sleep_ms
        self.executed: Counter[str] = Counter()
        self.executed_after_commit: list[str] = []

    async def __call__(self, context: DurableContext, store: RunStore) -> list[object]:
        drawn = await context.step("draw", lambda: self._body(store, "draw", 3))
        shaky = await context.step("shaky", lambda: self._shaky(store), retry=RETRY)
        await context.sleep(self._sleep_ms)
        left, right = await asyncio.gather(
            context.step("left", lambda: self._body(store, "left", [drawn, 1]), kind="llm"),
            context.step("right", lambda: self._body(store, "right", [drawn, 2])),
        )
        answer = await context.await_event("answer", timeout_ms=None)
        sealed = await context.step(
            "seal", lambda: self._body(store, "seal", answer), kind="tool", effect="idempotent"
        )
        return [drawn, shaky, left, right, answer, sealed]

    async def _body(self, store: RunStore, intent: str, value: object) -> object:
        done = {step.intent for step in await store.read_steps("run") if step.status == "completed"}
        if intent in done:
            self.executed_after_commit.append(intent)
        self.executed[intent] += 1
        return value

    async def _shaky(self, store: RunStore) -> object:
        await self._body(store, "shaky", None)
        if self.executed["shaky"] % 2 == 1:
            raise ConnectionError("the first try always fails")
        return "steady"


async def outcome_of(store: RunStore, result: object) -> Outcome:
    run = await store.read_run("run")
    assert run is not None
    steps: list[tuple[object, ...]] = [
        (step.step_index, step.intent, step.status, step.result)
        for step in await store.read_steps("run")
    ]
    return result, run.state, steps


async def answer_when_asked(store: RunStore) -> None:
    """Emit the event from outside while the run waits for it."""
    while True:
        run = await store.read_run("run")
        if run is not None and run.state == "waiting":
            await emit_event(store, "run", "answer", "yes")
            return
        await asyncio.sleep(0.002)


def check(story: Story, outcome: Outcome) -> None:
    result, state, steps = outcome
    assert result in ([3, "steady", [3, 1], [3, 2], "yes", "yes"], None)
    assert state == "completed"
    assert [intent for _, intent, _, _ in steps] == [
        "draw",
        "shaky",
        "deterministic:sleep",
        "left",
        "right",
        "event:answer",
        "seal",
    ]
    assert {status for _, _, status, _ in steps} == {"completed"}
    assert story.executed_after_commit == []


async def test_a_direct_call_ends_the_same_wherever_its_process_dies(new_lab: NewLab) -> None:
    story = Story()

    async def scenario(store: RunStore) -> Outcome:
        answering = asyncio.create_task(answer_when_asked(store))
        try:
            done = await run_durable(
                store,
                run_id="run",
                manifest=manifest(),
                task=lambda context: story(context, store),
            )
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
        return await outcome_of(store, done.result)

    report = await crash_everywhere(scenario, new_lab)
    check(story, report.outcome)
    assert report.calls.count("start_or_resume") == 3, "claimed, and woken twice"
    assert report.calls.count("emit_event") == 1
    assert report.calls.count("write") >= 9
    assert len(report.points) == 2 * len(report.calls)
    assert max(point.attempts for point in report.points) > 1


async def test_a_worker_brings_a_run_to_the_same_end_wherever_its_process_dies(
    new_lab: NewLab,
) -> None:
    # The clock of the lab stands still, so a longer sleep would last for ever.
    story = Story(sleep_ms=10)

    async def scenario(store: RunStore) -> Outcome:
        worker = Worker(store, tasks={"story": lambda context: story(context, store)})
        await worker.submit("story", run_id="run", manifest=manifest())
        working = asyncio.create_task(worker.run())
        answering = asyncio.create_task(answer_when_asked(store))
        try:
            while True:
                if working.done():
                    working.result()
                run = await store.read_run("run")
                if run is not None and run.state == "completed":
                    return await outcome_of(store, None)
                await asyncio.sleep(0.002)
        finally:
            working.cancel()
            answering.cancel()
            await asyncio.gather(working, answering, return_exceptions=True)

    report = await crash_everywhere(scenario, new_lab)
    check(story, report.outcome)
    assert len(report.points) == 2 * len(report.calls)
