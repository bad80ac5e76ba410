"""What the tests of the worker share: a worker at work, runs for it, an engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from perdure.core.changes import Release
from perdure.core.records import Claim, DeliveryRecord
from perdure.durable.context import DurableContext
from perdure.durable.worker import Worker
from perdure.store.protocol import RunStore
from tests.durable.handles import (
    MANIFEST,
    Broken,
)

Tasks = Mapping[str, Callable[[DurableContext], Awaitable[Any]]]


@asynccontextmanager
async def working(store: RunStore, tasks: Tasks, **options: Any) -> AsyncIterator[Worker]:
    """Run a worker as long as the block lasts."""
    worker = Worker(store, tasks=tasks, **options)
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def one_step(context: DurableContext) -> int:
    return await context.step("work", lambda: 7)


async def submit(store: RunStore, run_id: str = "run", task: str = "task") -> None:
    await store.enqueue(run_id, MANIFEST, handler=task)


class Engine:
    """A handler that is no task: it takes claims and deliveries."""

    def __init__(self, store: RunStore, name: str = "letters") -> None:
        self.name = name
        self.claims: list[Claim] = []
        self.made: list[str] = []
        self.go_on = asyncio.Event()
        self._store = store

    async def work(self, claim: Claim, *, asked_ms: float) -> int | None:
        assert claim.lease is not None
        self.claims.append(claim)
        if claim.run.run_id == "broken":
            raise Broken("an engine's bug")
        await self._store.write(claim.lease, Release())
        return None

    async def deliver(self, one: DeliveryRecord) -> None:
        if one.run_id == "slow":
            await self.go_on.wait()
        self.made.append(one.run_id)
