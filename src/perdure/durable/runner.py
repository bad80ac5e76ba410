"""run_durable: claim a run, replay what is recorded, execute the rest, settle how it ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from perdure.core import identity
from perdure.core.changes import EndRun, Release
from perdure.core.jsonvalue import encode_value
from perdure.core.limits import LEASE_MS, STRIKES_MAX_RUN
from perdure.core.recordjson import outcome_to_json
from perdure.core.records import (
    Claim,
    JsonValue,
    RunManifest,
    RunOutcome,
    RunRecord,
    StepRecord,
)
from perdure.durable.attempt import Attempt
from perdure.durable.context import DurableContext, RunContext
from perdure.durable.live import LiveRun, LiveRuns
from perdure.durable.steps import Steps
from perdure.durable.waits import Suspended, gone
from perdure.errors import (
    DivergenceError,
    LeaseLostError,
    PerdureError,
    RunInputMismatchError,
    RunParkedError,
    RunStoppedError,
    StepFailedError,
    StoreError,
    UsageError,
)
from perdure.store.protocol import RunStore

logger = logging.getLogger("perdure.runner")

T = TypeVar("T")
Task = Callable[[DurableContext], Awaitable[T]]


class RunResult(NamedTuple, Generic[T]):
    """What a durable run came to: the task's result, the final record, the steps by position."""

    result: T
    record: RunRecord
    steps: Sequence[StepRecord]


live_runs: Final[LiveRuns[asyncio.Task[RunResult[JsonValue]]]] = LiveRuns()


async def run_durable(
    store: RunStore,
    *,
    run_id: str,
    manifest: RunManifest,
    task: Callable[[DurableContext], Awaitable[T]],
    worker_id: str | None = None,
    lease_ms: int = LEASE_MS,
    default_outcome: RunOutcome | None = None,
    strikes_max: int = STRIKES_MAX_RUN,
) -> RunResult[T]:
    """Run `task` durably under `run_id`, or go on where an earlier attempt was cut off.

    Steps that are recorded replay; the rest executes. A failed or parked run is retried. A
    completed run calls `task` over its record and writes nothing. A run that is live in this
    process is joined: the caller gets the result of the first call. Cancelling the call gives the
    lease back and leaves the run to be continued.

    Raises what the task raises; LeaseHeldError (live in another process), RunInputMismatchError,
    RunStoppedError, RunParkedError (this call gave the run up: a divergence, or too many
    crashes), LeaseLostError (another worker went on), StoreError.
    """
    stored_id = identity.stored_id(store.tenant, identity.check_run_id(run_id))
    manifest_hash = identity.manifest_hash(manifest)
    if lease_ms <= 0:
        raise UsageError(f"lease_ms must be positive, it is {lease_ms}")
    while (known := live_runs.find(store.handle, stored_id)) is not None:
        joined = await _join(known, run_id, manifest_hash)
        if joined is not None:
            return joined
    live = live_runs.enter(store.handle, stored_id, manifest_hash)
    try:
        claim = await store.start_or_resume(
            run_id,
            manifest,
            worker_id=worker_id or identity.derive_worker_id(),
            lease_ms=lease_ms,
            retry=True,
        )
        if claim.lease is None:
            return await _replay(store, stored_id, claim, task)
        attempt = Attempt(store, claim, lease_ms=lease_ms)
        execution = Execution(
            attempt,
            task,
            default_outcome=default_outcome,
            strikes_max=strikes_max,
            unwinds=False,
        )
        live.work = execution.start()
        return await execution.result()
    finally:
        live_runs.leave(store.handle, stored_id)


async def emit_event(store: RunStore, run_id: str, key: str, payload: JsonValue) -> bool:
    """Emit an event to a run from outside; return whether it was the first of its key.

    The first emit wins for ever; a run that waits for the event becomes due. Raises
    RunNotFoundError, NotSerializableError.
    """
    accepted, _ = await store.emit_event(run_id, key, payload)
    return accepted


async def _join(
    live: LiveRun[asyncio.Task[RunResult[T]]], run_id: str, manifest_hash: str
) -> RunResult[T] | None:
    """Wait for the live run; None when its owner left it unfinished, so that we may claim."""
    if live.manifest_hash != manifest_hash:
        raise RunInputMismatchError(f"the run {run_id!r} is live with another manifest")
    await live.gone.wait()
    work = live.work
    if work is None or not work.done() or work.cancelled():
        return None
    if isinstance(work.exception(), Suspended):
        return None
    return work.result()


async def _replay(store: RunStore, stored_id: str, claim: Claim, task: Task[T]) -> RunResult[T]:
    if claim.run.state != "completed":
        raise gone(claim)
    history = {step.step_index: step for step in claim.steps}
    steps = Steps(stored_id, None, history)
    context = RunContext(claim.run, steps, None, unwinds=False)
    try:
        result = await task(context)
    except StepFailedError as error:
        raise _original(error) from error.__cause__
    return RunResult(result, claim.run, claim.steps)


class Execution(Generic[T]):
    """One attempt at a task, from its claim to its settlement.

    The task runs as an asyncio task of its own, so that a stop or a lost lease can interrupt it
    in the middle of a call. `unwinds`: a wait ends the attempt (a worker has other work to do).
    """

    def __init__(
        self,
        attempt: Attempt,
        task: Task[T],
        *,
        default_outcome: RunOutcome | None,
        strikes_max: int,
        unwinds: bool,
    ) -> None:
        self._attempt = attempt
        self._task = task
        self._default_outcome = default_outcome
        self._strikes_max = strikes_max
        self._steps = Steps(attempt.lease.run_id, attempt, {})
        self._context = RunContext(attempt.run, self._steps, attempt, unwinds=unwinds)
        self._work: asyncio.Task[T] | None = None
        self._settled: asyncio.Task[RunResult[T]] | None = None
        self._draining = False
        attempt.on_change = self._interrupt

    def start(self) -> asyncio.Task[RunResult[T]]:
        """Begin; the returned task ends with the result or with what `result` raises."""
        self._settled = asyncio.get_running_loop().create_task(self._run())
        return self._settled

    async def result(self) -> RunResult[T]:
        """Wait for the end. Cancelling the waiting drains: the lease is given back."""
        assert self._settled is not None
        try:
            return await asyncio.shield(self._settled)
        except asyncio.CancelledError:
            if not self._settled.done():
                self.drain()
                await asyncio.wait([self._settled])
            if not self._settled.cancelled() and self._settled.exception() is not None:
                logger.debug("the run was drained: %r", self._settled.exception())
            raise

    def drain(self) -> None:
        """Interrupt the task and give the lease back; the run stays to be continued."""
        self._draining = True
        self._interrupt()

    def _interrupt(self) -> None:
        """A stop was requested, or the lease is lost: no use in going on."""
        if self._work is not None:
            self._work.cancel()

    async def _run(self) -> RunResult[T]:
        attempt = self._attempt
        if self._draining:
            await self._release("drained")
            raise asyncio.CancelledError
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
        self._work = asyncio.get_running_loop().create_task(self._call())
        await asyncio.wait([self._work])
        return await self._settle(self._work)

    async def _call(self) -> T:
        return await self._task(self._context)

    async def _settle(self, work: asyncio.Task[T]) -> RunResult[T]:
        """Record how the task ended, and return or raise the same."""
        attempt = self._attempt
        error = None if work.cancelled() else work.exception()
        if self._is_suspended(work):
            assert self._steps.refusal is not None
            raise self._steps.refusal
        if attempt.held.lost:
            attempt.end()
            raise LeaseLostError(f"the lease on run {attempt.run.run_id!r} is lost")
        refusal = self._steps.refusal
        if isinstance(refusal, DivergenceError):
            raise await self._give_up(refusal, refusal.code)
        if work.cancelled():
            if attempt.stop_requested:
                raise await self._stop()
            await self._release("drained")
            raise asyncio.CancelledError
        if error is not None:
            raise await self._fail(error)
        return await self._complete(work.result())

    def _is_suspended(self, work: asyncio.Task[T]) -> bool:
        return isinstance(self._steps.refusal, Suspended) and not work.cancelled()

    async def _complete(self, result: T) -> RunResult[T]:
        outcome = self._default_outcome
        text = None if outcome is None else _outcome_text(outcome)
        await self._attempt.leave(EndRun("completed", outcome_text=text))
        return await self._report(result)

    async def _report(self, result: T) -> RunResult[T]:
        """Read what is stored now; opening an ended run is one pure read of all of it."""
        run = self._attempt.run
        assert run.manifest is not None
        ended = await self._attempt.store.start_or_resume(
            run.run_id, run.manifest, worker_id=self._attempt.lease.worker_id
        )
        return RunResult(result, ended.run, ended.steps)

    async def _fail(self, error: BaseException) -> BaseException:
        """End the run as failed and return what the caller is told.

        A store that could not answer says nothing about the task: the run stays as it is.
        """
        if isinstance(error, LeaseLostError | RunStoppedError | RunParkedError):
            self._attempt.end()
            return error
        if isinstance(error, StoreError) or not isinstance(error, Exception):
            await self._release("store" if isinstance(error, StoreError) else "interrupted")
            return error
        original = _original(error)
        text = _outcome_text(_failed_outcome(original, self._default_outcome))
        await self._attempt.fail(original, outcome_text=text)
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

    async def _release(self, reason: str) -> None:
        if self._attempt.is_over:
            return
        try:
            await self._attempt.leave(Release(reason))
        except (LeaseLostError, StoreError) as error:
            logger.warning("a lease could not be given back, it will lapse: %s", error)


def _original(error: BaseException) -> BaseException:
    """Return what the user's own code raised, where it is known."""
    if isinstance(error, StepFailedError) and isinstance(error.__cause__, Exception):
        return error.__cause__
    return error


def _failed_outcome(error: BaseException, default: RunOutcome | None) -> RunOutcome:
    """A failed run did not pass, whatever the default says; its notes are kept beside."""
    metadata = dict(default.metadata or {}) if default is not None else {}
    if default is not None and default.notes is not None:
        metadata["defaultNotes"] = default.notes
    return RunOutcome(passed=False, notes=str(error) or type(error).__name__, metadata=metadata)


def _outcome_text(outcome: RunOutcome) -> str:
    return encode_value(outcome_to_json(outcome), name="outcome")

