"""Death before and after every write of a run whose task cancels steps of its own."""

from __future__ import annotations

import asyncio

from perdure.durable.context import DurableContext
from perdure.durable.runner import run_durable
from perdure.store.protocol import RunStore
from perdure.testing.contract import NewLab
from perdure.testing.faults import crash_everywhere
from perdure.testing.samples import manifest

Outcome = tuple[object, str, list[tuple[object, ...]]]


async def story(context: DurableContext) -> list[object]:
    """Give up one step by a time-out and lose another in a race, then record what came of it."""
    try:
        first: object = await asyncio.wait_for(context.step("slow", asyncio.Event().wait), 0.005)
    except TimeoutError:
        first = await context.step("instead", lambda: "cached")
    racing = [
        asyncio.ensure_future(context.step("loser", asyncio.Event().wait)),
        asyncio.ensure_future(context.step("winner", lambda: "won")),
    ]
    _, others = await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    return [first, racing[1].result(), await context.step("last", lambda: first)]


async def test_a_run_that_cancels_steps_ends_the_same_wherever_its_process_dies(
    new_lab: NewLab,
) -> None:
    async def scenario(store: RunStore) -> Outcome:
        done = await run_durable(store, run_id="run", manifest=manifest(), task=story)
        steps: list[tuple[object, ...]] = [
            (step.intent, step.status, step.result) for step in done.steps
        ]
        return done.result, done.record.state, steps

    report = await crash_everywhere(scenario, new_lab)
    assert report.outcome == (
        ["cached", "won", "cached"],
        "completed",
        [
            ("slow", "failed", None),
            ("instead", "completed", "cached"),
            ("loser", "failed", None),
            ("winner", "completed", "won"),
            ("last", "completed", "cached"),
        ],
    )
    assert len(report.points) == 2 * len(report.calls)
    assert max(point.attempts for point in report.points) > 1
