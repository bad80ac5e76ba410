"""Keeping leases: one heartbeat for all runs of a store handle, and the watchdog over them."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final

from perdure.core.effects import monotonic_ms
from perdure.core.limits import BEAT_MS, STALL_MS, WATCHDOG_MS
from perdure.core.records import Lease
from perdure.errors import LeaseLostError, PerdureError
from perdure.store.protocol import Renewer, RunStore, ThreadRenewal

logger = logging.getLogger("perdure.lease")

IDLE_MS: Final = 10_000
"""A heartbeat thread without leases waits this long for the next one before it ends."""
_LATE_TRY_MS: Final = 1_000
"""After a failed beat the next one comes at least as soon, so that one hiccup costs no lease."""


class HeldLease:
    """A lease that is being kept, and what is known of it.

    `lost` and `stop_requested` only ever become true. `on_change` is called on the event loop
    each time one of them does.
    """

    def __init__(
        self, lease: Lease, lease_ms: int, on_change: Callable[[], None], *, granted_ms: float
    ) -> None:
        self.lease = lease
        self.lease_ms = lease_ms
        self.lost = False
        self.stop_requested = False
        self._on_change: Callable[[], None] | None = on_change
        self._length_ms = lease_ms - min(WATCHDOG_MS, lease_ms / 4)
        self._until_ms = granted_ms + self._length_ms

    @property
    def remaining_ms(self) -> float:
        """How long work may still rely on the lease; it ends before the lease could lapse."""
        return self._until_ms - monotonic_ms()

    def check(self) -> None:
        """Raise LeaseLostError if the lease is lost, or too close to its deadline to rely on."""
        if not self.lost and self._until_ms <= monotonic_ms():
            self.lose()
        if self.lost:
            raise LeaseLostError(f"the lease on run {self.lease.run_id!r} is lost")

    def renewed(self, asked_ms: float) -> None:
        """Note a renewal that was asked for at this moment (any thread)."""
        self._until_ms = max(self._until_ms, asked_ms + self._length_ms)

    def lose(self) -> None:
        """Note that the lease is gone."""
        if not self.lost:
            self.lost = True
            self._tell()

    def ask_to_stop(self) -> None:
        """Note that somebody asked for the run to be stopped."""
        if not self.stop_requested:
            self.stop_requested = True
            self._tell()

    def forget(self) -> None:
        """Tell nobody any more: nothing is left that could be interrupted."""
        self._on_change = None

    def _tell(self) -> None:
        if self._on_change is not None:
            self._on_change()


class LeaseKeeper:
    """Renews all leases of one store handle, every `beat_ms` or a third of the shortest lease.

    It beats from a thread with a connection of its own where the store has one, so that a blocked
    event loop does not cost a lease; but only while the loop has answered a ping within
    `stall_ms`, so that a hung process loses its leases. Elsewhere it beats from the loop. The
    loop watches the deadlines in either case: what blocks it also blocks the work.
    """

    def __init__(
        self, store: RunStore, *, beat_ms: int = BEAT_MS, stall_ms: int = STALL_MS
    ) -> None:
        self.is_default = (beat_ms, stall_ms) == (BEAT_MS, STALL_MS)
        self._store = store
        self._beat_ms = beat_ms
        self._stall_ms = stall_ms
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._held: dict[Lease, HeldLease] = {}
        self._wake = threading.Condition()
        self._hurry = asyncio.Event()
        self._thread: threading.Thread | None = None
        self._task: asyncio.Task[None] | None = None
        self._watchdog: asyncio.Handle | None = None
        self._watchdog_at = 0.0
        self._pause_ms = float(beat_ms)
        self._failed = False
        self._answered_ms = monotonic_ms()

    @property
    def is_orphaned(self) -> bool:
        """Whether nobody can hold a lease here any more: a handle has one loop and no forks."""
        return self._loop.is_closed() or self._pid != os.getpid()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to keep and nobody who would."""
        return not self._held and self._thread is None

    def hold(
        self,
        lease: Lease,
        lease_ms: int,
        on_change: Callable[[], None],
        *,
        granted_ms: float | None = None,
    ) -> HeldLease:
        """Begin to keep `lease`, which was asked for at the monotonic moment `granted_ms`."""
        now_ms = monotonic_ms()
        held = HeldLease(
            lease, lease_ms, on_change, granted_ms=now_ms if granted_ms is None else granted_ms
        )
        with self._wake:
            self._held[lease] = held
            self._answered_ms = now_ms
            self._start()
            if lease_ms / 3 < self._pause_ms:
                self._wake.notify()
                self._hurry.set()
        self._watch_for(held)
        return held

    def let_go(self, held: HeldLease) -> None:
        """Stop keeping a lease: it was given back, or is lost."""
        with self._wake:
            self._held.pop(held.lease, None)

    def _start(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        if self._task is not None and not self._task.done():
            return
        if isinstance(self._store, ThreadRenewal):
            thread = threading.Thread(
                target=self._beat_in_thread, name="perdure-lease", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:
                logger.info("no threads here: leases are renewed from the event loop")
            else:
                self._thread = thread
                return
        self._task = self._loop.create_task(self._beat_on_loop())

    def _next_pause_ms(self) -> float:
        shortest_ms = min((held.lease_ms for held in self._held.values()), default=self._beat_ms)
        pause_ms = min(self._beat_ms, shortest_ms / 3)
        return min(_LATE_TRY_MS, pause_ms / 4) if self._failed else pause_ms

    # The watchdog.

    def _watch_for(self, held: HeldLease) -> None:
        """See to it that somebody looks when `held` could no longer be relied on."""
        when = self._loop.time() + max(0, held.remaining_ms) / 1_000
        if self._watchdog is not None:
            # Not every event loop tells when a timer of its own is due.
            if self._watchdog_at <= when:
                return
            self._watchdog.cancel()
        self._watchdog_at = when
        self._watchdog = self._loop.call_at(when, self._watch)

    def _watch(self) -> None:
        self._watchdog = None
        with self._wake:
            held_leases = [held for held in self._held.values() if not held.lost]
        for held in held_leases:
            if held.remaining_ms <= 0:
                held.lose()
            else:
                self._watch_for(held)

    # The thread.

    def _beat_in_thread(self) -> None:
        renewer: Renewer | None = None
        idle_ms = 0.0
        try:
            while idle_ms < IDLE_MS or not self._retire():
                idle_ms = 0.0 if self._pause_in_thread() else idle_ms + self._pause_ms
                self._post(self._pong)
                if idle_ms == 0.0 and monotonic_ms() - self._answered_ms <= self._stall_ms:
                    renewer = self._beat_with(renewer)
        except _LoopClosed:
            logger.debug("the event loop is closed: its leases lapse")
        finally:
            if renewer is not None:
                renewer.close()

    def _pause_in_thread(self) -> bool:
        """Wait for the next beat; return whether there is anything to keep."""
        begun_ms = monotonic_ms()
        with self._wake:
            while True:
                self._pause_ms = self._next_pause_ms()
                remaining_ms = begun_ms + self._pause_ms - monotonic_ms()
                if remaining_ms <= 0:
                    return bool(self._held)
                self._wake.wait(remaining_ms / 1_000)

    def _retire(self) -> bool:
        """End the thread, unless a lease came in at the last moment."""
        with self._wake:
            if self._held:
                return False
            self._thread = None
        self._post(forget_idle_keeper, self)
        return True

    def _beat_with(self, renewer: Renewer | None) -> Renewer | None:
        """Renew all leases once. A run that ends within the first beat never opens a renewer."""
        assert isinstance(self._store, ThreadRenewal)
        try:
            opened = renewer or self._store.open_renewer()
        except Exception as error:
            self._note_failure(error)
            return None
        self._beat(opened.renew)
        return opened

    def _beat(self, renew: Callable[[Sequence[Lease], int], Mapping[Lease, bool]]) -> None:
        self._failed = False
        for lease_ms, leases in self._by_length().items():
            asked_ms = monotonic_ms()
            try:
                answer = renew(leases, lease_ms)
            except Exception as error:
                self._note_failure(error)
                continue
            self._note(leases, answer, asked_ms)
            self._post(self._tell, leases, answer)

    def _by_length(self) -> dict[int, list[Lease]]:
        groups: dict[int, list[Lease]] = {}
        with self._wake:
            for held in self._held.values():
                groups.setdefault(held.lease_ms, []).append(held.lease)
        return groups

    def _note(self, leases: Sequence[Lease], answer: Mapping[Lease, bool], asked_ms: float) -> None:
        with self._wake:
            for lease in leases:
                held = self._held.get(lease)
                if held is not None and lease in answer:
                    held.renewed(asked_ms)

    def _note_failure(self, error: Exception) -> None:
        """Whatever it was, the other leases must be kept, and this one is tried again soon."""
        self._failed = True
        unexpected = not isinstance(error, PerdureError)
        logger.warning("leases are not renewed, trying again: %s", error, exc_info=unexpected)

    def _post(self, callback: Callable[..., None], *values: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *values)
        except RuntimeError as error:
            raise _LoopClosed from error

    # The event loop.

    def _pong(self) -> None:
        self._answered_ms = monotonic_ms()

    def _tell(self, leases: Sequence[Lease], answer: Mapping[Lease, bool]) -> None:
        for lease in leases:
            held = self._held.get(lease)
            if held is None:
                continue
            if lease not in answer:
                held.lose()
            elif answer[lease]:
                held.ask_to_stop()

    async def _beat_on_loop(self) -> None:
        while self._held:
            await self._pause_on_loop()
            self._failed = False
            for lease_ms, leases in self._by_length().items():
                asked_ms = monotonic_ms()
                try:
                    answer = await self._store.renew(leases, lease_ms)
                except Exception as error:
                    self._note_failure(error)
                    continue
                self._note(leases, answer, asked_ms)
                self._tell(leases, answer)
        forget_idle_keeper(self)

    async def _pause_on_loop(self) -> None:
        begun_ms = monotonic_ms()
        while True:
            self._hurry.clear()
            self._pause_ms = self._next_pause_ms()
            remaining_ms = begun_ms + self._pause_ms - monotonic_ms()
            if remaining_ms <= 0:
                return
            try:
                async with asyncio.timeout(remaining_ms / 1_000):
                    await self._hurry.wait()
            except TimeoutError:
                return


class _LoopClosed(Exception):
    """The event loop that the leases belong to is gone."""


_keepers: dict[Hashable, LeaseKeeper] = {}


def keep_leases(
    store: RunStore, *, beat_ms: int = BEAT_MS, stall_ms: int = STALL_MS
) -> LeaseKeeper:
    """Say how the leases of the store's handle are kept, before the first of them is held."""
    for handle, keeper in list(_keepers.items()):
        if keeper.is_orphaned:
            del _keepers[handle]
    keeper = _keepers[store.handle] = LeaseKeeper(store, beat_ms=beat_ms, stall_ms=stall_ms)
    return keeper


def keeper_of(store: RunStore) -> LeaseKeeper:
    """Return the keeper that all runs of the store's handle share."""
    return _keepers.get(store.handle) or keep_leases(store)


def forget_idle_keeper(keeper: LeaseKeeper) -> None:
    """Drop a keeper without leases; one with numbers of its own stays."""
    for handle, known in list(_keepers.items()):
        if known is keeper and keeper.is_default and keeper.is_idle:
            del _keepers[handle]
