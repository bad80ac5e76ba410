"""One attempt at a run: its lease, its history, and the one door through which it writes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeVar

from perdure.core.changes import (
    BeginStep,
    Change,
    CompleteStep,
    EndRun,
    FailStep,
    Release,
    SettleUsage,
    Suspend,
)
from perdure.core.effects import epoch_ms, iso_time, jittered, monotonic_ms
from perdure.core.limits import LAZY_BEGIN_MS
from perdure.core.recordjson import step_error_of
from perdure.core.records import Claim, Lease, StepRecord, Written
from perdure.durable.claiming import Claiming, gone
from perdure.durable.failures import error_text as error_text
from perdure.durable.lease import HeldLease, keeper_of
from perdure.durable.untorn import finish_even_if_cancelled
from perdure.errors import LeaseHeldError, LeaseLostError, PerdureError, StoreError
from perdure.store.protocol import RunStore

logger = logging.getLogger("perdure.attempt")

T = TypeVar("T")

_ABOUT_STEPS: Final = (CompleteStep, FailStep, BeginStep)
_RETRY_MS: Final = 50
_RETRY_MAX_MS: Final = 1_000


class Attempt:
    """A granted claim while somebody works on it.

    `store` is the view of the run's tenant. Every write goes through `write`, which hears of a
    lost lease and of a requested stop; `on_change` is called when either becomes known.
    `asked_ms`: the monotonic moment at which the claim was asked for. `keeps_records`: somebody
    wants all steps at the end; `recorded` has them then, those of the history and those added.
    `swept` is given where what goes on is bound to its own past: it wakes only as the very next
    attempt, and returns once the claims that sweeps of this process have made are handed out.
    """

    def __init__(
        self,
        store: RunStore,
        claim: Claim,
        *,
        lease_ms: int,
        on_change: Callable[[], None] | None = None,
        asked_ms: float | None = None,
        keeps_records: bool = False,
        swept: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        assert claim.lease is not None
        tenant = claim.run.tenant
        self.store = store if store.tenant == tenant else store.for_tenant(tenant)
        self.lease_ms = lease_ms
        self.on_change = on_change
        self.on_doze: Callable[[], None] | None = None
        """Called when the lease was given back for a while."""
        self.is_asleep = False
        """The lease was given back for a while; `wake` claims the run again."""
        self.first_lease = claim.lease
        """The lease that this began with; it has another one after each sleep."""
        self._keeps_records = keeps_records
        self._swept = swept
        self._keeper = keeper_of(store)
        self._waking = asyncio.Lock()
        self._adopt(claim, claim.lease, asked_ms)

    def _adopt(self, claim: Claim, lease: Lease, asked_ms: float | None) -> None:
        self.run = claim.run
        self.lease = lease
        self.history: dict[int, StepRecord] = {step.step_index: step for step in claim.steps}
        self.recorded = dict(self.history) if self._keeps_records else None
        self.usage_calls = 0
        self.is_over = False
        self._claimed_at_ms = epoch_ms(claim.run.updated_at)
        self._second, self._second_text = -1, ""
        self._adopted_ms = monotonic_ms()
        self._open_begins: dict[int, tuple[Callable[[], BeginStep], float]] = {}
        self._begin_timer: asyncio.TimerHandle | None = None
        self._begin_write: asyncio.Task[None] | None = None
        self.held: HeldLease = self._keeper.hold(
            lease, self.lease_ms, self._changed, granted_ms=asked_ms
        )
        if claim.run.stop_requested_at is not None:
            self.held.ask_to_stop()

    @property
    def store_now_ms(self) -> int:
        """The store's clock, as far as it can be known without asking."""
        return self._claimed_at_ms + round(monotonic_ms() - self._adopted_ms)

    def store_now(self) -> str:
        """Return the store's time as text, the part down to the second kept for the next call."""
        second, milliseconds = divmod(self.store_now_ms, 1_000)
        if second != self._second:
            self._second, self._second_text = second, iso_time(second * 1_000)[: -len("000Z")]
        return f"{self._second_text}{milliseconds:03d}Z"

    @property
    def stop_requested(self) -> bool:
        return self.held.stop_requested

    def check(self) -> None:
        """Raise LeaseLostError when this attempt may not go on."""
        if self.is_over:
            raise LeaseLostError(f"the attempt at run {self.run.run_id!r} is over")
        self.held.check()

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()

    # Begins that ride along.

    def begin_lazily(self, position: int, begun: Callable[[], BeginStep]) -> None:
        """Record a begin with the next write, or alone when the step is still open after 20 ms.

        A commit costs more than a short step; a long step must be visible while it runs. `begun`
        says, when it is written, how the step stands.
        """
        self._open_begins[position] = (begun, monotonic_ms())
        if self._begin_timer is None:
            loop = asyncio.get_running_loop()
            self._begin_timer = loop.call_later(LAZY_BEGIN_MS / 1_000, self._flush_begins)

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
        begins = self._with_begins(())
        try:
            if begins:
                await self._send(begins)
        except LeaseLostError:
            logger.debug("a begin of run %r was late: its lease is lost", self.run.run_id)
        except StoreError as error:
            logger.warning("a begin of run %r was not recorded: %s", self.run.run_id, error)

    def _with_begins(self, changes: tuple[Change, ...]) -> tuple[Change, ...]:
        """Put the begins of other steps that are still open before `changes`."""
        begins = self._open_begins
        for change in changes:
            if isinstance(change, _ABOUT_STEPS):
                begins.pop(change.position, None)
        if not begins:
            return changes
        changes = (*(begun() for begun, _ in begins.values()), *changes)
        begins.clear()
        return changes

    async def _settle_begins(self) -> None:
        """Wait for a begin that is being written: what ends its step must stand behind it."""
        writing = self._begin_write
        if writing is not None:
            await asyncio.wait((writing,))
            if self._begin_write is writing:
                self._begin_write = None

    # Writing.

    async def write(self, *changes: Change) -> Written:
        """Write `changes` in one transaction, with the begins of steps that are still open.

        A store that cannot answer is asked again while the lease may be relied on: what was done
        is worth waiting for. A caller that is cancelled cannot withdraw what the store has
        accepted. Raises LeaseLostError (nothing was written), StoreError.
        """
        self.check()
        if self._begin_write is not None:
            await self._settle_begins()
        if self._open_begins:
            changes = self._with_begins(changes)
        return await self._send(changes)

    async def leave(self, *changes: Change) -> Written:
        """Write the last changes of this attempt, one of which gives the lease back.

        The heartbeat is stopped first, so that it cannot revive what has ended.
        """
        self.check()
        await self._settle_begins()
        self._open_begins.clear()
        self.end()
        return await self._send(changes)

    async def _send(self, changes: Sequence[Change]) -> Written:
        try:
            try:
                written = await self.store.write(self.lease, *changes)
            except StoreError as error:
                written = await self._send_again(changes, error)
        except LeaseLostError:
            self.held.lose()
            raise
        if self.recorded is not None:
            for step in written.steps:
                self.recorded[step.step_index] = step
        if written.run is not None:
            self.run = written.run
        if written.stop_requested:
            self.held.ask_to_stop()
        return written

    async def _send_again(self, changes: Sequence[Change], error: StoreError) -> Written:
        """A write that happened, though its answer was lost, is answered as done or as lost."""
        if not error.retryable:
            raise error
        logger.warning("run %r waits for the store: %s", self.run.run_id, error)
        return await patiently(
            lambda: self.store.write(self.lease, *changes), for_ms=self.held.remaining_ms
        )

    def end(self) -> None:
        """Stop keeping the lease; nothing is written."""
        self.is_over = True
        if self._begin_timer is not None:
            self._begin_timer.cancel()
            self._begin_timer = None
        self._keeper.let_go(self.held)

    # Being asleep.

    async def doze(self, *changes: Change) -> Written:
        """Give the lease back with the last of `changes`, to claim the run again later."""
        async with self._waking:
            self.is_asleep = True
            return await finish_even_if_cancelled(self._leave_to_doze(*changes))

    async def _leave_to_doze(self, *changes: Change) -> Written:
        try:
            written = await self.leave(*changes)
        except BaseException:
            self.is_asleep = False
            raise
        if self.on_doze is not None:
            self.on_doze()
        return written

    async def wake(self) -> None:
        """Claim the run again; of all that need the lease, the first does it for the others.

        Raises LeaseLostError (somebody else works on the run), RunStoppedError, RunParkedError,
        StoreError.
        """
        async with self._waking:
            if not self.is_asleep:
                return
            try:
                if self._swept is None:
                    await self._claim_again()
                else:
                    await self._claim_next(self._swept)
            except PerdureError:
                # Nobody tries twice: what the task was told holds.
                self.is_asleep = False
                raise
            self.is_asleep = False

    def take(self, claim: Claim, *, asked_ms: float) -> bool:
        """Go on with a claim that a sweep of this process has made while this slept, if it fits."""
        lease = claim.lease
        if not self.is_asleep or lease is None or lease.epoch != self.lease.epoch + 1:
            return False
        self.is_asleep = False
        self._adopt(claim, lease, asked_ms)
        return True

    async def stay_asleep(self) -> bool:
        """Return whether this sleeps: then it never wakes, and whoever is next goes on."""
        async with self._waking:
            slept, self.is_asleep = self.is_asleep, False
            return slept

    async def _claim_next(self, swept: Callable[[], Awaitable[None]]) -> None:
        """Claim the run unless somebody else has done so meanwhile, or deleted it."""
        read_run, epoch = partial(self.store.read_run, self.run.run_id), self.lease.epoch
        run = await patiently(read_run, for_ms=self.lease_ms)
        try:
            if run is None or run.epoch != epoch or run.state not in ("sleeping", "waiting"):
                raise LeaseLostError(f"run {self.run.run_id!r} went on elsewhere while it slept")
            await self._claim_again()
        except LeaseLostError:
            await swept()
            if self.is_asleep:
                raise
            return
        if self.lease.epoch != epoch + 1:
            # Somebody was there between the look and the claim.
            await self.leave(Release("outrun"))
            raise LeaseLostError(f"run {self.run.run_id!r} went on elsewhere while it slept")

    async def _claim_again(self) -> None:
        manifest = self.run.manifest
        assert manifest is not None
        claiming = Claiming(
            self.store,
            self.run.run_id,
            manifest,
            worker_id=self.lease.worker_id,
            lease_ms=self.lease_ms,
        )
        try:
            claim = await patiently(claiming.claim, for_ms=self.lease_ms)
        except LeaseHeldError as error:
            raise LeaseLostError(
                f"another worker went on with run {self.run.run_id!r} while it was asleep"
            ) from error
        if claim.lease is None:
            raise gone(claim)
        self._adopt(claim, claim.lease, claiming.asked_ms)

    # What is left behind.

    async def settle_late(self, usage: SettleUsage | None, *, lease: Lease | None = None) -> None:
        """Record what a call used though nothing else is recorded: a lost worker has the bill.

        `lease`: under which the call was made, if this attempt has slept since.
        """
        if usage is None:
            return
        try:
            await finish_even_if_cancelled(self.store.settle_usage(lease or self.lease, usage))
        except StoreError as error:
            logger.warning("the usage of a call of %r is not recorded: %s", self.run.run_id, error)

    async def park(self, reason: str, error: Exception | None = None, *changes: Change) -> None:
        """Give the run up with a reason: only a retry goes on."""
        text = None if error is None else error_text(step_error_of(error))
        await self.leave(*changes, Suspend("parked", reason=reason, error_text=text))

    async def fail(self, error: BaseException, *changes: Change, outcome_text: str) -> None:
        """End the run as failed."""
        text = error_text(step_error_of(error))
        await self.leave(*changes, EndRun("failed", outcome_text=outcome_text, error_text=text))


async def patiently(call: Callable[[], Awaitable[T]], *, for_ms: float) -> T:
    """Return what `call` returns once the store can answer.

    After `for_ms` the last StoreError is raised, and at once one that no other try would mend.
    """
    until_ms, longest_ms = monotonic_ms() + for_ms, _RETRY_MS
    while True:
        try:
            return await call()
        except StoreError as error:
            # Drawn before it is compared: no pause outlasts what is waited for.
            pause_ms = jittered(longest_ms)
            if not error.retryable or monotonic_ms() + pause_ms > until_ms:
                raise
        await asyncio.sleep(pause_ms / 1_000)
        longest_ms = min(2 * longest_ms, _RETRY_MAX_MS)


def started_at(attempt: Attempt) -> str:
    """Return the moment, on the store's clock, at which a step begins now."""
    return attempt.store_now()
