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
"""After a failed beat the next one comes sooner, so that one hiccup costs no lease."""


class HeldLease:
    """A lease that is being kept, and what is known of it.

    `lost` and `stop_requested` only ever become true. `on_change` is called on the event loop
    each time one of them does.
    """

    def __init__(self, lease: Lease, lease_ms: int, on_change: Callable[[], None]) -> None:
        self.lease = lease
        self.lease_ms = lease_ms
        self.lost = False
        self.stop_requested = False
        self._on_change = on_change
        self._renewed_ms = monotonic_ms()

    @property
    def is_overdue(self) -> bool:
        """Whether nobody knows any more that the lease holds: it might lapse within moments."""
        margin_ms = min(WATCHDOG_MS, self.lease_ms / 4)
        return monotonic_ms() - self._renewed_ms > self.lease_ms - margin_ms

    def check(self) -> None:
        """Raise LeaseLostError if the lease is lost, or too close to its deadline to rely on."""
        if not self.lost and self.is_overdue:
            self.lose()
        if self.lost:
            raise LeaseLostError(f"the lease on run {self.lease.run_id!r} is lost")

    def renewed(self, asked_at_ms: float) -> None:
        """Note a renewal that was asked for at this moment (any thread)."""
        self._renewed_ms = max(self._renewed_ms, asked_at_ms)

    def lose(self) -> None:
        """Note that the lease is gone."""
        if not self.lost:
            self.lost = True
            self._on_change()

    def ask_to_stop(self) -> None:
        """Note that somebody asked for the run to be stopped."""
        if not self.stop_requested:
            self.stop_requested = True
            self._on_change()


class LeaseKeeper:
    """Renews all leases of one store handle.

    It beats from a thread with a connection of its own where the store has one, so that a blocked
    event loop does not cost a lease; but only while the loop has answered a ping within
    `stall_ms`, so that a hung process loses its leases. Elsewhere it beats from the loop.
    """

    def __init__(
        self, store: RunStore, *, beat_ms: int = BEAT_MS, stall_ms: int = STALL_MS
    ) -> None:
        self._store = store
        self._beat_ms = beat_ms
        self._stall_ms = stall_ms
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._held: dict[Lease, HeldLease] = {}
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._task: asyncio.Task[None] | None = None
        self._answered_ms = monotonic_ms()

    def hold(self, lease: Lease, lease_ms: int, on_change: Callable[[], None]) -> HeldLease:
        """Begin to keep `lease`, which was granted or renewed just now."""
        held = HeldLease(lease, lease_ms, on_change)
        with self._wake:
            self._held[lease] = held
            self._answered_ms = monotonic_ms()
            self._start()
            self._wake.notify()
        return held

    def let_go(self, held: HeldLease) -> None:
        """Stop keeping a lease: it was given back, or is lost."""
        with self._wake:
            self._held.pop(held.lease, None)

    @property
    def serves_this_process(self) -> bool:
        """Whether the heartbeat still runs here: a thread does not survive a fork."""
        return self._pid == os.getpid() and self._loop is asyncio.get_running_loop()

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

    # The thread.

    def _beat_in_thread(self) -> None:
        renewer: Renewer | None = None
        try:
            while self._next_beat():
                self._post(self._pong)
                if monotonic_ms() - self._answered_ms <= self._stall_ms:
                    renewer = self._beat_with(renewer)
                self._watch()
        except RuntimeError:
            logger.debug("the event loop is closed: its leases lapse")
        finally:
            if renewer is not None:
                renewer.close()

    def _beat_with(self, renewer: Renewer | None) -> Renewer | None:
        """Renew all leases once. A run that ends within the first beat never opens a renewer."""
        assert isinstance(self._store, ThreadRenewal)
        try:
            opened = renewer or self._store.open_renewer()
        except PerdureError as error:
            logger.warning("the heartbeat cannot reach the store, trying again: %s", error)
            return None
        self._beat(opened.renew)
        return opened

    def _next_beat(self) -> bool:
        """Wait for the next beat; False when there was nothing to keep for a while."""
        with self._wake:
            if not self._held and not self._wake.wait_for(lambda: self._held, IDLE_MS / 1_000):
                self._thread = None
                _keepers.pop(self._store.handle, None)
                return False
            shortest_ms = min((held.lease_ms for held in self._held.values()), default=0)
            wait_ms = min(self._beat_ms, shortest_ms / 3)
            if any(held.is_overdue for held in self._held.values()):
                wait_ms = min(wait_ms, _LATE_TRY_MS)
            self._wake.wait_for(lambda: self._shorter_than(wait_ms), wait_ms / 1_000)
            return True

    def _shorter_than(self, wait_ms: float) -> bool:
        return any(held.lease_ms / 3 < wait_ms for held in self._held.values())

    def _beat(self, renew: Callable[[Sequence[Lease], int], Mapping[Lease, bool]]) -> None:
        for lease_ms, leases in self._by_length().items():
            asked_at_ms = monotonic_ms()
            try:
                answer = renew(leases, lease_ms)
            except PerdureError as error:
                logger.warning("leases could not be renewed, trying again: %s", error)
                continue
            self._note(leases, answer, asked_at_ms)
            self._post(self._tell, leases, answer)

    def _by_length(self) -> dict[int, list[Lease]]:
        groups: dict[int, list[Lease]] = {}
        with self._wake:
            for held in self._held.values():
                groups.setdefault(held.lease_ms, []).append(held.lease)
        return groups

    def _note(
        self, leases: Sequence[Lease], answer: Mapping[Lease, bool], asked_at_ms: float
    ) -> None:
        with self._wake:
            for lease in leases:
                held = self._held.get(lease)
                if held is not None and lease in answer:
                    held.renewed(asked_at_ms)

    def _watch(self) -> None:
        with self._wake:
            overdue = [held for held in self._held.values() if held.is_overdue]
        for held in overdue:
            self._post(held.lose)

    def _post(self, callback: Callable[..., None], *values: object) -> None:
        self._loop.call_soon_threadsafe(callback, *values)

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
            shortest_ms = min(held.lease_ms for held in self._held.values())
            await asyncio.sleep(min(self._beat_ms, shortest_ms / 3) / 1_000)
            for lease_ms, leases in self._by_length().items():
                asked_at_ms = monotonic_ms()
                try:
                    answer = await self._store.renew(leases, lease_ms)
                except PerdureError as error:
                    logger.warning("leases could not be renewed, trying again: %s", error)
                    continue
                self._note(leases, answer, asked_at_ms)
                self._tell(leases, answer)
            for held in list(self._held.values()):
                if held.is_overdue:
                    held.lose()
        _keepers.pop(self._store.handle, None)


_keepers: dict[Hashable, LeaseKeeper] = {}


def keeper_of(store: RunStore) -> LeaseKeeper:
    """Return the keeper that all runs of the store's handle share."""
    keeper = _keepers.get(store.handle)
    if keeper is None or not keeper.serves_this_process:
        keeper = _keepers[store.handle] = LeaseKeeper(store)
    return keeper
