"""A due time becomes one run wherever the process that fires it dies."""

from __future__ import annotations

import asyncio
from collections import Counter

from perdure.core.effects import epoch_ms
from perdure.durable.context import DurableContext
from perdure.durable.schedules import Scheduler
from perdure.durable.worker import Worker
from perdure.store.protocol import RunStore
from perdure.store.scheduling import Schedule, schedules_of
from perdure.testing.clock import START_MS
from perdure.testing.contract import NewLab
from perdure.testing.faults import crash_everywhere
from perdure.testing.samples import manifest

YEAR_MS = 365 * 24 * 60 * 60 * 1_000
DUE_AT = "2026-01-31T09:05:00.000Z"
OVERDUE = Schedule("report", "report", manifest(), every_ms=YEAR_MS, next_due_at=DUE_AT)


async def test_a_firing_is_one_run_wherever_its_process_dies(new_lab: NewLab) -> None:
    assert epoch_ms(DUE_AT) < START_MS
    ran: Counter[str] = Counter()

    async def scenario(store: RunStore) -> list[tuple[str, str]]:
        async def report(context: DurableContext) -> None:
            await context.step("write", lambda: ran.update([context.run_id]), kind="llm")

        schedules = schedules_of(store)
        await schedules.put(OVERDUE)
        scheduler = Scheduler(store, ["report"])
        await scheduler.fire_due()
        kept = await schedules.find("report")
        assert kept is not None
        assert kept.next_due_at > DUE_AT
        worker = Worker(store, tasks={"report": report})
        working = asyncio.create_task(worker.run())
        try:
            while not await store.list_runs(state="completed"):
                if working.done():
                    working.result()
                await asyncio.sleep(0.002)
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        return [(run.run_id, run.state) for run in await store.list_runs()]

    report = await crash_everywhere(scenario, new_lab)
    assert report.outcome == [(f"schedule:report:{DUE_AT}", "completed")]
    assert report.calls[:2] == ("put", "fire")
    assert max(point.attempts for point in report.points) > 1
