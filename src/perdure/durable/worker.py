"""A worker: finds runs that nobody works on, goes on with them, and delivers what follows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Protocol

from perdure.core import identity
from perdure.core.effects import jittered
from perdure.core.limits import DRAIN_MS, LEASE_MS, STRIKES_MAX_RUN
from perdure.core.records import Claim, DeliveryRecord, JsonValue, RunManifest, RunRecord
from perdure.durable.attempt import Attempt
from perdure.durable.context import DurableContext
from perdure.durable.outbox import Outbox
from perdure.durable.runner import Execution, live_runs
from perdure.durable.waits import Suspended
from perdure.errors import PerdureError, StoreError, UsageError
from perdure.store.protocol import RunStore

logger = logging.getLogger("perdure.worker")

SWEEP_MS: Final = 5_000
"""How long between two looks for due work, ± half of it, when nothing hints at some."""
HINT_PAUSE_MS: Final = 25
"""Hints of other processes are followed at most this often."""
BATCH_MAX: Final = 16
"""Runs claimed at one go: the other workers want some too."""


class Handler(Protocol):
    """What can go on with the runs of one name."""

    @property
    def name(self) -> str: ...

    async def work(self, claim: Claim) -> int | None:
        """Work on a claimed run until it is over; if it went to sleep, return for how many ms.

        Cancelling drains: the lease is given back.
        """
        ...

    async def deliver(self, delivery: DeliveryRecord) -> None:
        """Do what a delivery of this name asks for; raising means: try again later."""
        ...


class TaskHandler:
    """Runs a task function durably."""

    def __init__(
        self,
        store: RunStore,
        name: str,
        task: Callable[[DurableContext], Awaitable[JsonValue]],
        *,
        lease_ms: int,
        strikes_max: int,
    ) -> None:
        self.name = name
        self._store = store
        self._task = task
        self._lease_ms = lease_ms
        self._strikes_max = strikes_max

    async def work(self, claim: Claim) -> int | None:
        assert claim.lease is not None
        handle, stored_id = self._store.handle, claim.lease.run_id
        attempt = Attempt(self._store, claim, lease_ms=self._lease_ms)
        execution = Execution(
            attempt,
            self._task,
            default_outcome=None,
            strikes_max=self._strikes_max,
            unwinds=True,
        )
        known = live_runs.find(handle, stored_id)
        live = known or live_runs.enter(handle, stored_id, claim.run.manifest_hash)
        live.work = execution.start()
        try:
            await execution.result()
        except Suspended as asleep:
            return asleep.wait_ms
        except Exception as error:
            # How the run ended is recorded; here is nobody to be told but the log.
            logger.info("run %r of task %r ended: %r", stored_id, self.name, error)
        finally:
            if known is None:
                live_runs.leave(handle, stored_id)
        return None

    async def deliver(self, delivery: DeliveryRecord) -> None:
        raise UsageError(f"the task {self.name!r} has no deliveries, but {delivery.topic!r} is one")


class Worker:
    """Goes on with the runs of registered tasks and engines, whoever started them.

    It looks for runs that are queued, due, released, or whose lease has lapsed, at most
    `concurrency_max` at a time, and delivers their outbox. Any number of workers may share a
    store. A run whose `strikes_max` attempts crashed without progress is parked.
    """

    def __init__(
        self,
        store: RunStore,
        *,
        tasks: Mapping[str, Callable[[DurableContext], Awaitable[Any]]] | None = None,
        engines: Sequence[Handler] = (),
        concurrency_max: int = 64,
        lease_ms: int = LEASE_MS,
        strikes_max: int = STRIKES_MAX_RUN,
    ) -> None:
        if concurrency_max < 1:
            raise UsageError(f"concurrency_max must be at least 1, it is {concurrency_max}")
        self._store = store
        self._lease_ms = lease_ms
        self._concurrency_max = concurrency_max
        self._worker_id = identity.derive_worker_id()
        self._handlers: dict[str, Handler] = {
            name: TaskHandler(store, name, task, lease_ms=lease_ms, strikes_max=strikes_max)
            for name, task in (tasks or {}).items()
        }
        for engine in engines:
            if engine.name in self._handlers:
                raise UsageError(f"two handlers are named {engine.name!r}")
            self._handlers[engine.name] = engine
        self._outbox = Outbox(store, {one.name: one.deliver for one in engines})
        self._jobs: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._draining = False
        self._drains_by_call = False
        self._stopped = asyncio.Event()
        self._is_running = False

    async def submit(self, task: str, *, run_id: str, manifest: RunManifest) -> RunRecord:
        """Queue a run of a registered task; it is durable when this returns, and idempotent.

        Raises UsageError for an unknown task, RunInputMismatchError for a taken run id.
        """
        if task not in self._handlers:
            known = ", ".join(sorted(self._handlers)) or "none"
            raise UsageError(f"no task {task!r} is registered with this worker (known: {known})")
        run = await self._store.enqueue(run_id, manifest, handler=task)
        self.wake()
        return run

    def wake(self) -> None:
        """Look for due work now."""
        self._wake.set()

    async def run(self) -> None:
        """Work until `drain` or cancellation; both give back what cannot be finished."""
        if self._is_running:
            raise UsageError("this worker is running already")
        self._is_running = True
        self._stopped.clear()
        try:
            while not self._draining:
                await self._round()
        finally:
            self._draining = True
            self._is_running = False
            self._stopped.set()
            if not self._drains_by_call:
                await self._give_back()

    async def drain(self, *, timeout_ms: int = DRAIN_MS) -> None:
        """Stop claiming; let jobs finish for `timeout_ms`, then give their leases back."""
        self._draining = self._drains_by_call = True
        self.wake()
        if self._is_running:
            await self._stopped.wait()
        if self._jobs:
            await asyncio.wait(self._jobs, timeout=timeout_ms / 1_000)
        await self._give_back()

    async def _give_back(self) -> None:
        jobs = list(self._jobs)
        for job in jobs:
            job.cancel()
        if jobs:
            await asyncio.wait(jobs)

    # Looking for work.

    async def _round(self) -> None:
        """Look for work once, then wait until there may be some again."""
        self._wake.clear()
        # Listening begins before looking: what happens in between is then not missed.
        pause_ms = round(jittered(SWEEP_MS))
        hinted = self._listen(self._store.wait_for_change(None, timeout_ms=pause_ms))
        woken = self._listen(self._wake.wait())
        try:
            await asyncio.sleep(0)
            if await self._sweep() or self._draining:
                return
            await asyncio.wait((hinted, woken), return_when=asyncio.FIRST_COMPLETED)
            if not woken.done():
                await asyncio.wait((woken,), timeout=HINT_PAUSE_MS / 1_000)
        finally:
            for listening in (hinted, woken):
                listening.cancel()
            await asyncio.gather(hinted, woken, return_exceptions=True)

    def _listen(self, waiting: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        return asyncio.get_running_loop().create_task(waiting)

    async def _sweep(self) -> bool:
        """Claim and deliver what is due; return whether there may be more."""
        names = tuple(self._handlers)
        room = min(BATCH_MAX, self._concurrency_max - len(self._jobs))
        try:
            claims: Sequence[Claim] = ()
            if room > 0 and names:
                claims = await self._store.claim_due(
                    names, worker_id=self._worker_id, lease_ms=self._lease_ms, limit=room
                )
            for claim in claims:
                self._start(self._work(claim))
            delivered = await self._outbox.deliver_due(limit=BATCH_MAX)
        except StoreError as error:
            logger.warning("looking for due work failed, trying again: %s", error)
            return False
        return len(claims) == room > 0 or delivered > 0

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        job = asyncio.get_running_loop().create_task(work)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    async def _work(self, claim: Claim) -> None:
        assert claim.run.handler is not None
        try:
            asleep_ms = await self._handlers[claim.run.handler].work(claim)
        except PerdureError as error:
            logger.warning("run %r could not be worked on: %s", claim.run.run_id, error)
            return
        finally:
            self.wake()
        if asleep_ms is not None:
            asyncio.get_running_loop().call_later(asleep_ms / 1_000, self.wake)
