"""A fork is whole, or is made whole by the next call, wherever its process dies."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial

from perdure.durable.context import DurableContext
from perdure.durable.forking import fork
from perdure.durable.worker import Worker
from perdure.store.protocol import RunStore
from perdure.testing.contract import NewLab
from perdure.testing.faults import crash_everywhere
from perdure.testing.samples import manifest


async def test_a_fork_ends_the_same_wherever_its_process_dies(new_lab: NewLab) -> None:
    """A worker runs beside it all the time, and never goes on with half of a fork."""
    ran: Counter[tuple[str, str]] = Counter()
    ran_before_the_fork: list[str] = []

    async def scenario(store: RunStore) -> tuple[object, ...]:
        async def task(context: DurableContext) -> list[str]:
            return [await context.step(name, partial(body, context, name)) for name in "abc"]

        def body(context: DurableContext, name: str) -> str:
            ran[context.run_id, name] += 1
            if context.run_id == "again" and name in "ab":
                ran_before_the_fork.append(name)
            return name

        worker = Worker(store, tasks={"task": task})
        working = asyncio.create_task(worker.run())
        try:
            await store.enqueue("run", manifest(), handler="task")
            await ended(store, working, "run")
            await store.emit_event("run", "unread", 1)
            await fork(store, "run", from_step=2, new_run_id="again")
            await ended(store, working, "again")
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        steps = await store.read_steps("again")
        return tuple((step.intent, step.status, step.result) for step in steps)

    report = await crash_everywhere(scenario, new_lab)
    assert report.outcome == tuple((name, "completed", name) for name in "abc")
    assert ran_before_the_fork == []
    assert report.calls.count("start_or_resume") == 2
    assert max(point.attempts for point in report.points) > 1


async def ended(store: RunStore, working: asyncio.Task[None], run_id: str) -> None:
    """Return once a worker has completed the run."""
    while True:
        if working.done():
            working.result()
        run = await store.read_run(run_id)
        if run is not None and run.state == "completed":
            return
        await asyncio.sleep(0.002)
