"""One attempt at a task, from its claim to its settlement."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Hashable
from contextvars import ContextVar
from typing import Any, Final, Generic, TypeVar

from perdure.core import effects
from perdure.core.changes import EndRun, Release, Suspend
from perdure.core.recordjson import outcome_text, step_error_of
from perdure.core.records import RunOutcome
from perdure.durable.attempt import Attempt
from perdure.durable.calls import GRACE_MS, note_failure
from perdure.durable.context import DurableContext, RunContext
from perdure.durable.live import LiveRun, LiveRuns
from perdure.durable.steps import Steps
from perdure.durable.waits import Suspended
from perdure.durable.watched import watched
from perdure.errors import (
    DivergenceError,
    DurableRunError,
    LeaseLostError,
    PerdureError,
    RunParkedError,
    RunStoppedError,
    StepFailedError,
    StoreClosedError,
    StoreError,
    UsageError,
)
from perdure.store.closing import CLOSED, before_close

logger = logging.getLogger("perdure.execution")

LATER_MS: Final = 5_000
"""A worker that met a broken store leaves the run alone for this long, ± half of it."""

T = TypeVar("T")
Task = Callable[[DurableContext], Awaitable[T]]
DefaultOutcome = RunOutcome | Callable[[T], RunOutcome] | None
"""What is recorded of a run that completes: an outcome, or what makes one of the result."""


live_runs: Final[LiveRuns[asyncio.Task[Any]]] = LiveRuns()

running: Final[ContextVar[tuple[LiveRun[Any], ...]]] = ContextVar("perdure_runs", default=())
"""The live runs in whose tasks the code runs: to wait for one of them would take for ever."""


class Execution(Generic[T]):
    """One attempt at a task, from its claim to its settlement.

    The task runs as an asyncio task of its own, so that a stop or a lost lease can interrupt it
    in the middle of a call. `unwinds`: a wait ends the attempt (a worker has other work to do).
    """

    def __init__(
        self,
        attempt: Attempt,
        task: Task[T],
        default_outcome: DefaultOutcome[T],
        *,
        strikes_max: int,
        unwinds: bool,
    ) -> None:
        self._attempt = attempt
        self._task = task
        self._default_outcome = default_outcome
        self._strikes_max = strikes_max
        self._unwinds = unwinds
        self._steps = Steps(attempt.lease.run_id, attempt, {})
        self._context = RunContext(attempt.run, self._steps, attempt, unwinds=unwinds)
        self._work: asyncio.Task[T] | None = None
        self._settled: asyncio.Task[T] | None = None
        self._draining = False
        self._is_closing = False
        self._over = asyncio.Event()
        """Set when the task has ended, or is left behind."""
        attempt.on_change = self._interrupt
        self._steps.on_unwind = self._interrupt_from_aside

    def start(self, live: LiveRun[Any], handle: Hashable) -> None:
        """Begin, and be in the registry until the end, whoever still waits for it."""
        stored_id = self._attempt.lease.run_id
        work = watched(self._attempt, self._run(live))
        self._settled = live.work = asyncio.get_running_loop().create_task(work)
        self._steps.attendant = self._settled
        forget = before_close(handle, self._rest)

        def over(settled: asyncio.Task[T]) -> None:
            forget()
            live_runs.leave(handle, stored_id)
            # What points in a circle would lie about until the garbage is collected.
            self._attempt.on_change = self._steps.on_unwind = None
            self._attempt.held.forget()
            if not settled.cancelled():
                settled.exception()  # Who waited for it may have been cancelled.

        self._settled.add_done_callback(over)

    @property
    def settled(self) -> asyncio.Task[T] | None:
        """What ends with the execution, as others find it; None before it begins."""
        return self._settled

    async def result(self) -> T:
        """Wait for the end. Cancelling the waiting drains: the lease is given back."""
        assert self._settled is not None
        try:
            return await asyncio.shield(self._settled)
        except asyncio.CancelledError:
            if not self._settled.done():
                self.drain()
                await asyncio.wait((self._settled,))
            if not self._settled.cancelled() and self._settled.exception() is not None:
                logger.debug("the run was drained: %r", self._settled.exception())
            raise

    def drain(self) -> None:
        """Interrupt the task and give the lease back; the run stays to be continued."""
        self._draining = True
        self._interrupt()

    async def _rest(self) -> None:
        """Drain, because the store is being closed; who waits for the result is told so."""
        assert self._settled is not None
        self._is_closing = True
        self.drain()
        await asyncio.wait((self._settled,))

    def _drained(self) -> BaseException:
        if self._is_closing:
            return StoreClosedError(
                f"the run {self._attempt.run.run_id!r} was given back: {CLOSED}"
            )
        return asyncio.CancelledError()

    def _interrupt(self) -> None:
        """A stop was requested, or the lease is lost: no use in going on.

        A task that swallows the cancellation takes no more steps.
        """
        if self._work is None or self._work.done():
            return
        if not self._attempt.held.lost:
            self._steps.refuse(asyncio.CancelledError("the run is interrupted"))
        self._work.cancel()
        loop = asyncio.get_running_loop()
        loop.call_later(GRACE_MS / 1_000, self._leave_behind)

    def _leave_behind(self) -> None:
        """Wait no longer for a task that does not let itself be cancelled: it can write nothing."""
        if self._work is None or self._work.done() or self._over.is_set():
            return
        logger.warning(
            "the task of run %r does not let itself be cancelled: it is left behind",
            self._attempt.run.run_id,
        )
        self._over.set()

    def _interrupt_from_aside(self) -> None:
        """A wait beside the task has given the lease away; the task itself unwinds by raising."""
        if self._work is not None and asyncio.current_task() is not self._work:
            self._work.cancel()

    async def _run(self, live: LiveRun[Any]) -> T:
        attempt = self._attempt
        if self._draining:
            await self._release("drained")
            raise self._drained()
        if attempt.stop_requested:
            raise await self._stop()
        if attempt.run.strikes >= self._strikes_max:
            raise await self._give_up(
                RunParkedError(
                    f"the run {attempt.run.run_id!r} is parked: {attempt.run.strikes} attempts "
                    "crashed without progress"
                ),
                "attempts_exhausted",
            )
        mark = running.set((*running.get(), live))
        self._work = asyncio.get_running_loop().create_task(self._call())
        # The task has a copy. This context belongs to what `live` points at.
        running.reset(mark)
        self._work.add_done_callback(lambda _: self._over.set())
        try:
            await self._over.wait()
        except asyncio.CancelledError:
            # The event loop shuts down.
            self.drain()
            await self._over.wait()
        await self._steps.close()
        return await self._settle(self._work)

    async def _call(self) -> T:
        return await self._task(self._context)

    # Settling.

    async def _settle(self, work: asyncio.Task[T]) -> T:
        """Record how the task ended, and return or raise the same."""
        attempt, refusal = self._attempt, self._steps.refusal
        error = _error_of(work, attempt.run.run_id)
        if isinstance(refusal, Suspended):
            raise refusal
        if attempt.is_asleep and not self._draining:
            await self._steps.awake(attempt)
        if attempt.held.lost or (attempt.is_over and not attempt.is_asleep):
            attempt.end()
            if isinstance(refusal, PerdureError):
                raise refusal
            raise LeaseLostError(f"the lease on run {attempt.run.run_id!r} is lost")
        if isinstance(refusal, DivergenceError):
            raise await self._give_up(refusal, refusal.code)
        interrupted = isinstance(refusal, asyncio.CancelledError)
        if interrupted and attempt.stop_requested:
            raise await self._stop()
        if isinstance(refusal, StoreError):
            await self._leave_to_later("store")
            raise refusal
        if error is None and not (interrupted and self._draining):
            try:
                text = outcome_text_of(self._outcome_of(work.result()))
            except Exception as trouble:
                raise await self._fail(trouble) from trouble
            await attempt.leave(EndRun("completed", outcome_text=text))
            return work.result()
        if error is None or self._draining:
            await self._release("drained")
            raise self._drained()
        raise await self._fail(error)

    def _outcome_of(self, result: T) -> RunOutcome | None:
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise UsageError("the task returned what it should have awaited, a step for instance")
        default = self._context.outcome or self._default_outcome
        return default if default is None or isinstance(default, RunOutcome) else default(result)

    async def _fail(self, error: BaseException) -> BaseException:
        """End the run as failed and return what the caller is told.

        A store that could not answer says nothing about the task: the run stays as it is.
        """
        if isinstance(error, StoreError):
            await self._leave_to_later("store")
            return error
        if isinstance(error, KeyboardInterrupt | SystemExit):
            await self._release("interrupted")
            return error
        original = original_of(error)
        text = outcome_text_of(_failed_outcome(original, self._default_outcome))
        assert text is not None
        try:
            await self._attempt.fail(original, outcome_text=text)
        except PerdureError as trouble:
            raise trouble from original
        return original

    async def _stop(self) -> RunStoppedError:
        await self._attempt.leave(EndRun("stopped"))
        return RunStoppedError(f"the run {self._attempt.run.run_id!r} was stopped")

    async def _give_up(self, error: PerdureError, reason: str) -> RunParkedError:
        await self._attempt.park(reason, error)
        if isinstance(error, RunParkedError):
            return error
        parked = RunParkedError(f"the run {self._attempt.run.run_id!r} is parked: {error}")
        parked.__cause__ = error
        return parked

    async def _leave_to_later(self, reason: str) -> None:
        """Give the lease back; a worker that finds the run at once would only fail again."""
        if self._unwinds:
            pause_ms = round(effects.jittered(LATER_MS))
            await self._try_to_leave(Suspend("sleeping", wake_in_ms=pause_ms, reason=reason))
        else:
            await self._release(reason)

    async def _release(self, reason: str) -> None:
        await self._try_to_leave(Release(reason))

    async def _try_to_leave(self, change: Suspend | Release) -> None:
        if self._attempt.is_over:
            return
        try:
            await self._attempt.leave(change)
        except (LeaseLostError, StoreError) as error:
            logger.warning("a lease could not be given back, it will lapse: %s", error)


def _error_of(work: asyncio.Task[Any], run_id: str) -> BaseException | None:
    """Return what the task raised; nobody else cancels it but who interrupts it."""
    if not work.done():
        work.add_done_callback(note_failure)
        return asyncio.CancelledError("the task was left behind")
    if work.cancelled():
        return DurableRunError(f"the task of run {run_id!r} was cancelled from within")
    return work.exception()


def original_of(error: BaseException) -> BaseException:
    """Return what the user's own code raised, where it is known."""
    if isinstance(error, StepFailedError) and isinstance(error.__cause__, Exception):
        return error.__cause__
    return error


def _failed_outcome(error: BaseException, default: DefaultOutcome[Any]) -> RunOutcome:
    """A failed run did not pass, whatever the default says; its notes are kept beside."""
    default = default if isinstance(default, RunOutcome) else None
    metadata = dict(default.metadata or {}) if default is not None else {}
    if default is not None and default.notes is not None:
        metadata["defaultNotes"] = default.notes
    notes = step_error_of(error).message or type(error).__name__
    return RunOutcome(passed=False, notes=notes, metadata=metadata or None)


def outcome_text_of(outcome: RunOutcome | None) -> str | None:
    """Return the stored form of an outcome. Raises UsageError, NotSerializableError."""
    return None if outcome is None else outcome_text(outcome)
