"""A worker: finds runs that nobody works on, goes on with them, and delivers what follows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

from perdure.core import identity
from perdure.core.effects import jittered, monotonic_ms
from perdure.core.lengths import check_length
from perdure.core.limits import DRAIN_MS, LEASE_MS, STRIKES_MAX_RUN
from perdure.core.records import Claim, DeliveryRecord, JsonValue, RunManifest, RunRecord
from perdure.durable.attempt import Attempt
from perdure.durable.context import DurableContext
from perdure.durable.execution import Execution, live_runs
from perdure.durable.outbox import Outbox
from perdure.durable.schedules import Scheduler, TaskSchedules
from perdure.durable.waits import Suspended
from perdure.errors import StoreError, UsageError
from perdure.store.closing import before_close, keeping_open
from perdure.store.protocol import RunStore, checked_store
from perdure.store.scheduling import CatchUp, Overlap, Schedule

logger = logging.getLogger("perdure.worker")

SWEEP_MS: Final = 3_000
"""How long between two looks for due work, ± half of it, when nothing hints at some."""
HINT_PAUSE_MS: Final = 25
"""Hints of other processes are followed at most this often."""
BATCH_MAX: Final = 16
"""Runs claimed at one go: the other workers want some too."""
DELIVERIES_MAX: Final = 16
"""Deliveries that are being made at one time."""
_OUTAGE_MS: Final = 250
_OUTAGE_MAX_MS: Final = 5_000
"""How long a worker leaves a store alone that cannot answer, at first and at most."""


class Handler(Protocol):
    """What can go on with the runs of one name."""

    @property
    def name(self) -> str: ...

    def work(self, claim: Claim, *, asked_ms: float) -> Awaitable[int | None]:
        """Work on a claimed run until it is over; if it went to sleep, return for how many ms.

        `asked_ms`: the monotonic moment at which the claim was asked for; the lease counts from
        there. Cancelling drains: the lease is given back.
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

    def work(self, claim: Claim, *, asked_ms: float) -> Awaitable[int | None]:
        # Registered at once, not when the coroutine begins: whoever opens the run now may join.
        assert claim.lease is not None
        live = live_runs.share(self._store.handle, claim.lease.run_id, claim.run.manifest_hash)
        execution = Execution(
            Attempt(self._store, claim, lease_ms=self._lease_ms, asked_ms=asked_ms),
            self._task,
            default_outcome=None,
            strikes_max=self._strikes_max,
            unwinds=True,
        )
        execution.start(live, self._store.handle)
        return self._attend(execution, claim.run.run_id)

    async def _attend(self, execution: Execution[JsonValue], run_id: str) -> int | None:
        try:
            await execution.result()
        except Suspended as asleep:
            return asleep.wait_ms
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # How the run ended is recorded; here is nobody to be told but the log.
            logger.info("run %r of task %r ended: %r", run_id, self.name, error)
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
        check_length(lease_ms, name="lease_ms", least=1)
        self._store = checked_store(store)
        self._lease_ms = lease_ms
        self._concurrency_max = concurrency_max
        self._worker_id = identity.derive_worker_id()
        self._tasks = frozenset(tasks or ())
        self._handlers: dict[str, Handler] = {}
        for name, task in (tasks or {}).items():
            self._handlers[name] = TaskHandler(
                store, name, task, lease_ms=lease_ms, strikes_max=strikes_max
            )
        for engine in engines:
            if engine.name in self._handlers:
                raise UsageError(f"two handlers are named {engine.name!r}")
            self._handlers[engine.name] = engine
        self._outbox = Outbox(
            store, {one.name: one.deliver for one in engines}, on_failure=self.wake_in
        )
        self.schedules = TaskSchedules(store)
        self._scheduler = Scheduler(store, self._tasks)
        self._jobs: set[asyncio.Task[None]] = set()
        self._deliveries: set[asyncio.Task[None]] = set()
        self._unbegun: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._drain_asked = asyncio.Event()
        self._drained = asyncio.Event()
        self._outage_ms = _OUTAGE_MS
        self._swept_ms = 0.0
        self._hint_ms = 0.0
        self._is_running = False
        self._is_giving_back = False

    async def submit(self, task: str, *, run_id: str, manifest: RunManifest) -> RunRecord:
        """Queue a run of a registered task; it is durable when this returns, and idempotent.

        Raises UsageError for an unknown task, RunInputMismatchError for a taken run id.
        """
        self._check_task(task)
        run = await self._store.enqueue(run_id, manifest, handler=task)
        self._wake.set()
        return run

    async def schedule(
        self,
        name: str,
        *,
        task: str,
        cron: str | None = None,
        every_ms: int | None = None,
        timezone: str = "UTC",
        input: Mapping[str, JsonValue] | None = None,
        catch_up: CatchUp = "one",
        overlap: Overlap = "allow",
    ) -> Schedule:
        """Run a registered task at each due time of `cron`, or every so many milliseconds.

        Durable when this returns, and idempotent: meant to be called whenever a worker starts.
        Another timing under the same name decides anew when it is due next. Each due time is one
        run, `schedule:<name>:<due time>`, however many workers there are; its `ctx.input` is
        `input` with the due time as `due_at`.

        `cron` has five fields, read in `timezone`. Of the due times that came while no worker
        looked, `catch_up` "one" runs the newest, "all" each, and "skip" the newest if it is not
        older than a minute. `overlap` "skip" leaves out a due time that comes while the last run
        is live. Raises UsageError, and ImportError for cron without `perdure[schedules]`.
        """
        self._check_task(task)
        schedule = await self.schedules.add(
            name,
            task=task,
            cron=cron,
            every_ms=every_ms,
            timezone=timezone,
            input=input,
            catch_up=catch_up,
            overlap=overlap,
        )
        self.wake()
        return schedule

    def _check_task(self, task: str) -> None:
        if task not in self._tasks:
            known = ", ".join(sorted(self._tasks)) or "none"
            raise UsageError(f"no task {task!r} is registered with this worker (known: {known})")

    def wake(self) -> None:
        """Look for due work now, at the schedules too."""
        self._scheduler.look_now()
        self._wake.set()

    def wake_in(self, pause_ms: int) -> None:
        """Look for due work when something becomes due in `pause_ms`."""
        asyncio.get_running_loop().call_later(pause_ms / 1_000, self._wake.set)

    async def run(self) -> None:
        """Work until `drain` or cancellation; both give back what cannot be finished.

        A drained worker has had its time: this then returns at once. Closing the store drains.
        """
        if self._is_running:
            raise UsageError("this worker is running already")
        self._is_running = True
        forget = before_close(self._store.handle, partial(self.drain, timeout_ms=0))
        listening = asyncio.get_running_loop().create_task(self._listen())
        try:
            while not self._drain_asked.is_set():
                await self._round()
            await self._drained.wait()
        finally:
            forget()
            self._drain_asked.set()
            self._is_running = False
            listening.cancel()
            await asyncio.gather(listening, self._give_back(), return_exceptions=True)

    async def drain(self, *, timeout_ms: int = DRAIN_MS) -> None:
        """Stop claiming; let jobs finish for `timeout_ms`, then give their leases back.

        `run` returns when that is done.
        """
        self._drain_asked.set()
        self.wake()
        deadline_ms = monotonic_ms() + timeout_ms
        try:
            while jobs := self._jobs | self._deliveries:
                remaining_ms = deadline_ms - monotonic_ms()
                if remaining_ms <= 0:
                    break
                await asyncio.wait(jobs, timeout=remaining_ms / 1_000)
        finally:
            try:
                await self._give_back()
            finally:
                self._drained.set()

    async def _give_back(self) -> None:
        self._is_giving_back = True
        jobs = self._jobs | self._deliveries
        for job in jobs - self._unbegun:
            job.cancel()
        if jobs:
            await asyncio.wait(jobs)

    def _begin(self) -> None:
        """Note that a job has begun; one that comes too late is cancelled, but not before.

        What is cancelled before it has begun leaves its run to nobody.
        """
        job = asyncio.current_task()
        assert job is not None
        self._unbegun.discard(job)
        if self._is_giving_back:
            job.cancel()

    # Looking for work.

    async def _round(self) -> None:
        """Look for work once; then wait, unless there may be more, until somebody hints at some.

        What is hinted at while this looks is not missed: it stays known until the next round.
        """
        self._wake.clear()
        self._swept_ms = monotonic_ms()
        try:
            if not await self._sweep() and not self._drain_asked.is_set():
                await self._wake.wait()
            self._outage_ms = _OUTAGE_MS
        except StoreError as error:
            logger.warning("looking for due work failed, trying again: %s", error)
            asked = asyncio.get_running_loop().create_task(self._drain_asked.wait())
            await asyncio.wait((asked,), timeout=jittered(self._outage_ms) / 1_000)
            asked.cancel()
            self._outage_ms = min(2 * self._outage_ms, _OUTAGE_MAX_MS)

    async def _listen(self) -> None:
        """Wake the worker when any run may have become due, and now and then without a reason.

        One asyncio task does this, without a pause, for as long as the worker runs: what changes
        while nobody listens is not told.
        """
        while True:
            try:
                pause_ms = round(jittered(SWEEP_MS))
                await self._store.wait_for_change(None, timeout_ms=pause_ms)
            except StoreError as error:
                logger.info("the store gives no hints, looking without: %s", error)
                await asyncio.sleep(jittered(SWEEP_MS) / 1_000)
            self._follow_hint()

    def _follow_hint(self) -> None:
        now_ms = monotonic_ms()
        if self._hint_ms <= now_ms:
            self._hint_ms = max(now_ms, self._swept_ms + HINT_PAUSE_MS)
            loop = asyncio.get_running_loop()
            loop.call_later((self._hint_ms - now_ms) / 1_000, self._wake.set)

    async def _sweep(self) -> bool:
        """Fire, claim and deliver what is due; return whether there may be more."""
        again_ms = await self._scheduler.fire_due()
        if again_ms is not None:
            self.wake_in(again_ms)
        room = min(BATCH_MAX, self._concurrency_max - len(self._jobs))
        claims = await self._claim(room) if room > 0 and self._handlers else ()
        space = DELIVERIES_MAX - len(self._deliveries)
        deliveries = await self._outbox.claim_due(limit=space) if space > 0 else ()
        for delivery in deliveries:
            self._start(self._deliver(delivery), self._deliveries)
        return len(claims) == room > 0 or len(deliveries) == space > 0

    async def _claim(self, room: int) -> Sequence[Claim]:
        """Claim due runs and begin with them; a claim is not lost to a cancellation."""
        with live_runs.sweeping(self._store.handle):
            claiming = asyncio.get_running_loop().create_task(self._claim_due(room))
            try:
                return await asyncio.shield(claiming)
            except asyncio.CancelledError:
                await asyncio.wait((claiming,))
                raise

    async def _claim_due(self, room: int) -> Sequence[Claim]:
        asked_ms = monotonic_ms()
        with keeping_open(self._store.handle):
            claims = await self._store.claim_due(
                tuple(self._handlers),
                worker_id=self._worker_id,
                lease_ms=self._lease_ms,
                limit=room,
            )
            for claim in claims:
                assert claim.run.handler is not None
                work = self._handlers[claim.run.handler].work(claim, asked_ms=asked_ms)
                self._start(self._work(claim, work), self._jobs)
        return claims

    def _start(self, work: Coroutine[Any, Any, None], jobs: set[asyncio.Task[None]]) -> None:
        job = asyncio.get_running_loop().create_task(work)
        jobs.add(job)
        self._unbegun.add(job)
        job.add_done_callback(jobs.discard)
        job.add_done_callback(self._unbegun.discard)

    async def _work(self, claim: Claim, work: Awaitable[int | None]) -> None:
        self._begin()
        try:
            asleep_ms = await work
        except Exception:
            logger.exception("run %r could not be worked on", claim.run.run_id)
            return
        finally:
            self._wake.set()
        if asleep_ms is not None:
            self.wake_in(asleep_ms)

    async def _deliver(self, delivery: DeliveryRecord) -> None:
        self._begin()
        try:
            await self._outbox.deliver(delivery)
        except StoreError as error:
            logger.warning(
                "delivery %r of run %r is made again: %s", delivery.topic, delivery.run_id, error
            )
        finally:
            self._wake.set()
