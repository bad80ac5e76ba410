"""Retention: what a store need not keep any longer is deleted, in small pieces."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple

from perdure.core import identity
from perdure.core.changes import EndRun
from perdure.core.effects import epoch_ms, iso_time, jittered
from perdure.core.limits import (
    FRAMES_KEPT_MS,
    GARBAGE_BATCH,
    GARBAGE_BEGIN_MS,
    GARBAGE_EVERY_MS,
    LEASE_MS,
)
from perdure.durable.traces import KEPT_HANDLER, TRACE_HANDLER
from perdure.errors import LeaseLostError, StoreError, UsageError
from perdure.store.protocol import RunStore
from perdure.store.upkeep import Found, Upkeep, upkeep_of

logger = logging.getLogger("perdure.retention")

PAUSE_MS: Final = 5
"""Between two pieces of work, so that writers who wait get their turn."""

Find = Callable[..., Awaitable[Found]]
Remove = Callable[[Sequence[str]], Awaitable[int]]


class Collected(NamedTuple):
    """What a collection came to: turns whose frames went, and runs that went as a whole."""

    frames: int
    runs: int


async def collect_garbage(
    store: RunStore,
    *,
    frames_after_ms: int | None = FRAMES_KEPT_MS,
    runs_after_ms: int | None = None,
    batch: int = GARBAGE_BATCH,
    dry_run: bool = False,
) -> Collected:
    """Delete what is no longer kept, of all tenants, and return how much that was.

    The frames of turns that completed or were stopped `frames_after_ms` ago or earlier go: their
    answer stays, and a reader with a cursor is told to read it (FramesExpiredError, HTTP 410).
    Runs that ended `runs_after_ms` ago or earlier go with all that belongs to them, failed ones
    included, but never one with a delivery that waits, and a session only as a whole. None keeps.

    Runs that keep something of an agent, which a lost process has begun and not ended, are ended.

    Each run is judged by the store's clock where it is deleted, at most `batch` in a transaction,
    so any number of processes may collect at once. `dry_run` only counts. Raises UsageError for a
    length that is none and for a store without `upkeep()`, StoreError.
    """
    for name, length_ms in (("frames_after_ms", frames_after_ms), ("runs_after_ms", runs_after_ms)):
        if length_ms is not None and length_ms < 0:
            raise UsageError(f"{name} must not be negative, it is {length_ms}")
    if batch < 1:
        raise UsageError(f"batch must be at least 1, it is {batch}")
    sweep = _Sweep(store, upkeep_of(store), batch, dry_run)
    if not dry_run:
        await _end_kept(store, batch)
    # Whole runs first, so that their frames are not written off one by one.
    runs = 0 if runs_after_ms is None else await sweep.runs(runs_after_ms)
    frames = 0 if frames_after_ms is None else await sweep.frames(frames_after_ms)
    return Collected(frames, runs)


async def _end_kept(store: RunStore, batch: int) -> None:
    """End what only keeps something, and was left between its begin and its end by a lost process.

    Whoever uses it next would do so; but nobody may ever use it, and it would stay `running`.
    """
    claim_due = partial(
        store.claim_due,
        (KEPT_HANDLER, TRACE_HANDLER),
        worker_id=identity.derive_worker_id(),
        lease_ms=LEASE_MS,
        limit=batch,
    )
    while claims := await claim_due():
        for claim in claims:
            assert claim.lease is not None
            tenant = store.for_tenant(claim.run.tenant)
            with suppress(LeaseLostError):  # Somebody uses it just now, and has ended it.
                await tenant.write(claim.lease, EndRun("completed"))


async def keep_collecting(
    store: RunStore,
    *,
    frames_after_ms: int | None = FRAMES_KEPT_MS,
    runs_after_ms: int | None = None,
    begin_ms: int = GARBAGE_BEGIN_MS,
    every_ms: int = GARBAGE_EVERY_MS,
) -> None:
    """Collect now and then, with jitter, until cancelled; a store that fails is tried again.

    The first time is after `begin_ms`, so that a process which never lives long collects too.
    """
    pause_ms = begin_ms
    while True:
        await asyncio.sleep(jittered(pause_ms) / 1_000)
        pause_ms = every_ms
        try:
            collected = await collect_garbage(
                store, frames_after_ms=frames_after_ms, runs_after_ms=runs_after_ms
            )
        except StoreError as error:
            logger.warning("nothing was cleaned up, it is tried again later: %s", error)
            continue
        if any(collected):
            logger.info("deleted the frames of %d turns, and %d runs", *collected)


class _Sweep:
    """One way through a store."""

    def __init__(self, store: RunStore, upkeep: Upkeep, batch: int, dry_run: bool) -> None:
        self._store = store
        self._upkeep = upkeep
        self._batch = batch
        self._dry_run = dry_run

    async def runs(self, after_ms: int) -> int:
        ended_by = await self._moment(after_ms)

        async def remove(run_ids: Sequence[str]) -> int:
            return len(await self._upkeep.remove_ended(run_ids, ended_by))

        return await self._go(self._upkeep.find_ended, ended_by, remove)

    async def frames(self, after_ms: int) -> int:
        ended_by = await self._moment(after_ms)

        async def expire(run_ids: Sequence[str]) -> int:
            return sum(await asyncio.gather(*map(self._expire, run_ids)))

        return await self._go(self._upkeep.find_framed, ended_by, expire)

    async def _moment(self, after_ms: int) -> str:
        return iso_time(max(0, epoch_ms(await self._upkeep.now()) - after_ms))

    async def _go(self, find: Find, ended_by: str, remove: Remove) -> int:
        count, after, is_last = 0, None, False
        while not is_last:
            found = await find(ended_by, after=after, limit=self._batch)
            after, is_last = found.after, found.after is None
            if found.run_ids:
                count += len(found.run_ids) if self._dry_run else await remove(found.run_ids)
            await asyncio.sleep(PAUSE_MS / 1_000)
        return count

    async def _expire(self, stored_id: str) -> bool:
        tenant, run_id = identity.logical_id(stored_id)
        try:
            return await self._store.for_tenant(tenant).delete(run_id, frames_only=True)
        except UsageError:
            return False  # It was deleted meanwhile, and begun anew under the same id.
