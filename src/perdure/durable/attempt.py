"""One attempt at a run: its lease, its history, and the one door through which it writes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from perdure.core.changes import BeginStep, Change, CompleteStep, EndRun, FailStep, Suspend
from perdure.core.effects import epoch_ms, iso_time, jittered, monotonic_ms
from perdure.core.jsonvalue import encode_value
from perdure.core.limits import LAZY_BEGIN_MS
from perdure.core.recordjson import step_error_of, step_error_to_json
from perdure.core.records import Claim, Lease, StepError, StepRecord, Written
from perdure.durable.lease import HeldLease, keeper_of
from perdure.errors import LeaseLostError, StoreError
from perdure.store.protocol import RunStore

logger = logging.getLogger("perdure.attempt")

RETRY_MS: Final = 50
RETRY_MAX_MS: Final = 1_000
"""How long a write that must not be lost waits between two tries, at first and at most."""


class Attempt:
    """A granted claim while somebody works on it.

    `store` is the view of the run's tenant. Every write goes through `write`, which hears of a
    lost lease and of a requested stop; `on_change` is called when either becomes known.
    """

    def __init__(
        self,
        store: RunStore,
        claim: Claim,
        *,
        lease_ms: int,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        assert claim.lease is not None
        self.store = store if store.tenant == claim.run.tenant else _view(store, claim)
        self.lease_ms = lease_ms
        self.on_change = on_change
        self._adopt(claim, claim.lease)

    def _adopt(self, claim: Claim, lease: Lease) -> None:
        self.claim = claim
        self.run = claim.run
        self.lease = lease
        self.history: dict[int, StepRecord] = {step.step_index: step for step in claim.steps}
        self.usage_calls = 0
        self.is_over = False
        self._is_leaving = False
        self._claimed_at_ms = epoch_ms(claim.run.updated_at)
        self._adopted_ms = monotonic_ms()
        self._open_begins: dict[int, tuple[BeginStep, float]] = {}
        self._begin_timer: asyncio.TimerHandle | None = None
        self._begin_write: asyncio.Task[None] | None = None
        self.held: HeldLease = keeper_of(self.store).hold(lease, self.lease_ms, self._changed)
        if claim.run.stop_requested_at is not None:
            self.held.ask_to_stop()

    @property
    def store_now_ms(self) -> int:
        """The store's clock, as far as it can be known without asking."""
        return self._claimed_at_ms + round(monotonic_ms() - self._adopted_ms)

    @property
    def stop_requested(self) -> bool:
        return self.held.stop_requested

    def check(self) -> None:
        """Raise LeaseLostError when this attempt may not go on."""
        if self.is_over:
            raise LeaseLostError(f"the attempt at run {self.run.run_id!r} is over")
        self.held.check()

    # Begins that ride along.

    def begin_lazily(self, begin: BeginStep) -> None:
        """Record a begin with the next write, or alone when the step is still open after 20 ms.

        A commit costs more than a short step; a long step must be visible while it runs.
        """
        self._open_begins[begin.position] = (begin, monotonic_ms())
        if self._begin_timer is None:
            loop = asyncio.get_running_loop()
            self._begin_timer = loop.call_later(LAZY_BEGIN_MS / 1_000, self._flush_begins)

    def forget_begin(self, position: int) -> None:
        """Drop a begin whose step is recorded otherwise, or not at all."""
        self._open_begins.pop(position, None)

    def _flush_begins(self) -> None:
        self._begin_timer = None
        if self.is_over or self.held.lost or not self._open_begins:
            return
        oldest_ms = min(begun_ms for _, begun_ms in self._open_begins.values())
        remaining_ms = LAZY_BEGIN_MS - (monotonic_ms() - oldest_ms)
        loop = asyncio.get_running_loop()
        if remaining_ms > 0:
            self._begin_timer = loop.call_later(remaining_ms / 1_000, self._flush_begins)
        else:
            self._begin_write = loop.create_task(self._write_begins())

    async def _write_begins(self) -> None:
        try:
            await self.write()
        except LeaseLostError:
            self.held.lose()

    # Writing.

    async def write(self, *changes: Change) -> Written:
        """Write `changes` in one transaction, with the begins of steps that are still open.

        Raises LeaseLostError (nothing was written) and whatever the store raises.
        """
        self.check()
        if self._open_begins:
            for change in changes:
                if isinstance(change, CompleteStep | FailStep | BeginStep):
                    self._open_begins.pop(change.position, None)
            begins = [begin for begin, _ in self._open_begins.values()]
            self._open_begins.clear()
            changes = (*begins, *changes)
        if not changes:
            return Written()
        try:
            written = await self.store.write(self.lease, *changes)
        except LeaseLostError:
            self.held.lose()
            raise
        if written.stop_requested:
            self.held.ask_to_stop()
        return written

    async def leave(self, *changes: Change) -> Written:
        """Write the last changes of this attempt, one of which gives the lease back.

        What was paid for must not be lost to a busy moment: while the store cannot write and the
        lease may still hold, this tries again. A repeated end is answered as done.
        """
        self.check()
        await self._settle_begins()
        self._is_leaving = True
        try:
            return await self._write_patiently(changes)
        finally:
            self.end()

    async def _write_patiently(self, changes: tuple[Change, ...]) -> Written:
        pause_ms = RETRY_MS
        while True:
            try:
                return await self.store.write(self.lease, *changes)
            except LeaseLostError:
                self.held.lose()
                raise
            except StoreError as error:
                if not error.retryable:
                    raise
                self.held.check()
                logger.warning("the end of an attempt waits for the store: %s", error)
            await asyncio.sleep(jittered(pause_ms) / 1_000)
            pause_ms = min(2 * pause_ms, RETRY_MAX_MS)

    async def _settle_begins(self) -> None:
        if self._begin_write is not None and not self._begin_write.done():
            await asyncio.wait([self._begin_write])
        self._open_begins.clear()

    def end(self) -> None:
        """Stop keeping the lease; nothing is written."""
        self.is_over = True
        if self._begin_timer is not None:
            self._begin_timer.cancel()
            self._begin_timer = None
        keeper_of(self.store).let_go(self.held)

    def readopt(self, claim: Claim) -> None:
        """Go on under a new claim of the same run, after a wait that gave the lease back."""
        assert claim.lease is not None
        self._adopt(claim, claim.lease)

    def _changed(self) -> None:
        # Whoever is leaving needs no telling: its run may have ended, so its lease is gone.
        if self.on_change is not None and not self._is_leaving:
            self.on_change()

    # What is left behind.

    async def park(self, reason: str, error: Exception | None = None, *changes: Change) -> None:
        """Give the run up with a reason: only a retry goes on."""
        text = None if error is None else error_text(step_error_of(error))
        await self.leave(*changes, Suspend("parked", reason=reason, error_text=text))

    async def fail(self, error: BaseException, *changes: Change, outcome_text: str) -> None:
        """End the run as failed."""
        text = error_text(step_error_of(error))
        await self.leave(
            *changes, EndRun("failed", outcome_text=outcome_text, error_text=text)
        )


def error_text(error: StepError) -> str:
    """Return the stored form of an error."""
    return encode_value(step_error_to_json(error), name="error")


def started_at(attempt: Attempt) -> str:
    """Return the moment, on the store's clock, at which a step begins now."""
    return iso_time(attempt.store_now_ms)


def _view(store: RunStore, claim: Claim) -> RunStore:
    return store.for_tenant(claim.run.tenant)
