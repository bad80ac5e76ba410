"""run_durable: claim a run, replay what is recorded, execute the rest, settle how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, cast

from perdure.core import identity
from perdure.core.lengths import check_length
from perdure.core.limits import LEASE_MS, STRIKES_MAX_RUN
from perdure.core.records import Claim, JsonValue, RunManifest, RunOutcome, RunRecord, StepRecord
from perdure.durable.attempt import Attempt
from perdure.durable.claiming import Claiming, gone
from perdure.durable.context import DurableContext, RunContext
from perdure.durable.execution import (
    Execution,
    Task,
    live_runs,
    original_of,
    outcome_text_of,
    running,
)
from perdure.durable.live import LiveRun
from perdure.durable.steps import Steps
from perdure.durable.waits import Suspended
from perdure.errors import (
    LeaseHeldError,
    LeaseLostError,
    RunInputMismatchError,
    RunNotFoundError,
    StepFailedError,
    UsageError,
)
from perdure.store.protocol import RunStore, checked_store

T = TypeVar("T")


class RunResult(NamedTuple, Generic[T]):
    """What a durable run came to: the task's result, the final record, the steps by position.

    Of a step that is still under way, because it does not let itself be cancelled, there is none.
    """

    result: T
    record: RunRecord
    steps: Sequence[StepRecord]


async def run_durable(
    store: RunStore,
    *,
    run_id: str,
    manifest: RunManifest,
    task: Callable[[DurableContext], Awaitable[T]],
    worker_id: str | None = None,
    lease_ms: int = LEASE_MS,
    default_outcome: RunOutcome | Callable[[T], RunOutcome] | None = None,
    strikes_max: int = STRIKES_MAX_RUN,
) -> RunResult[T]:
    """Run `task` durably under `run_id`, or go on where an earlier attempt was cut off.

    Steps that are recorded replay; the rest executes. A failed or parked run is retried. A
    completed run calls `task` over its record and writes nothing. A run that is live in this
    process is joined: the caller gets the result of the first call. Cancelling the call gives the
    lease back and leaves the run to be continued. `default_outcome` is recorded with a run that
    completes; a function makes it of the task's result, and fails the run if it raises.

    Raises what the task raises; LeaseHeldError (live in another process), RunInputMismatchError,
    RunStoppedError, RunParkedError (this call gave the run up: a divergence, or too many
    crashes), LeaseLostError (a worker of another process went on), StoreError.
    """
    tenant = checked_store(store).tenant
    stored_id = identity.stored_id(tenant, identity.check_run_id(run_id))
    known = identity.KnownManifest.of(manifest, identity.manifest_hash(manifest))
    check_length(lease_ms, name="lease_ms", least=1)
    # Refused now, not when the work is done.
    outcome_text_of(default_outcome if isinstance(default_outcome, RunOutcome) else None)
    claiming = Claiming(
        store,
        run_id,
        known,
        worker_id=worker_id or identity.derive_worker_id(),
        lease_ms=lease_ms,
        retry=True,
    )
    while True:
        live = live_runs.find(store.handle, stored_id)
        if live is None:
            live = live_runs.enter(store.handle, stored_id, known.known_hash)
            claim = await _claim(claiming, store, stored_id, live)
            if claim is not None and claim.lease is None:
                return await _replay(stored_id, claim, task)
            if claim is not None:
                asked_ms = claiming.asked_ms
                attempt = Attempt(
                    store, claim, lease_ms=lease_ms, asked_ms=asked_ms, keeps_records=True
                )
                execution = Execution(
                    attempt, task, default_outcome, strikes_max=strikes_max, unwinds=False
                )
                done = await _worked(store, attempt, execution, live)
                if isinstance(done, RunResult):
                    return done
                live = done
        work = await _join(live, run_id, known.known_hash)
        if work is not None:
            return await _report(store, run_id, cast(T, work.result()))


async def _claim(
    claiming: Claiming, store: RunStore, stored_id: str, live: LiveRun[Any]
) -> Claim | None:
    """Claim the run; None if a worker of this process was faster, so that we may join."""
    try:
        claim = await claiming.claim()
    except LeaseHeldError:
        await live_runs.swept(store.handle)
        live_runs.leave(store.handle, stored_id)
        if live.work is None:
            raise
        return None
    except BaseException:
        live_runs.leave(store.handle, stored_id)
        raise
    if claim.lease is None:
        # Whoever only reads is in nobody's way.
        live_runs.leave(store.handle, stored_id)
    return claim


async def _worked(
    store: RunStore, attempt: Attempt, execution: Execution[T], live: LiveRun[Any]
) -> RunResult[T] | LiveRun[Any]:
    """Work, and return the result; or the run, to be joined, if a worker here was faster.

    It may be where the run wakes. Raises what the task raises, and LeaseLostError.
    """
    execution.start(live, store.handle)
    try:
        return _reported(attempt, await execution.result())
    except LeaseLostError:
        await live_runs.swept(store.handle)
        # A worker that came before the execution had ended shares its entry.
        is_shared = live.work is not execution.settled
        taken = live if is_shared else live_runs.find(store.handle, attempt.lease.run_id)
        if taken is None:
            raise
        return taken


async def emit_event(store: RunStore, run_id: str, key: str, payload: JsonValue) -> bool:
    """Emit an event to a run from outside; return whether it was the first of its key.

    The first emit wins for ever; a run that waits for the event becomes due. Raises
    RunNotFoundError, NotSerializableError.
    """
    accepted, _ = await store.emit_event(run_id, key, payload)
    return accepted


async def _join(
    live: LiveRun[asyncio.Task[Any]], run_id: str, manifest_hash: str
) -> asyncio.Task[Any] | None:
    """Wait for the live run; None when its owner left it unfinished, so that we may claim."""
    if live.manifest_hash != manifest_hash:
        raise RunInputMismatchError(f"the run {run_id!r} is live with another manifest")
    if live in running.get():
        raise UsageError(f"the task of run {run_id!r} waits for its own run")
    await live.gone.wait()
    work = live.work
    if work is None or not work.done() or work.cancelled():
        return None
    if isinstance(work.exception(), Suspended):
        return None
    return work


def _reported(attempt: Attempt, result: T) -> RunResult[T]:
    """Return how the run stands at its end, which the attempt was told when it ended it."""
    recorded = attempt.recorded or {}
    return RunResult(result, attempt.run, [recorded[position] for position in sorted(recorded)])


async def _report(store: RunStore, run_id: str, result: T) -> RunResult[T]:
    """Read how a run stands that somebody else here has ended."""
    run = await store.read_run(run_id)
    if run is None:
        raise RunNotFoundError(f"the run {run_id!r} was deleted as soon as it ended")
    return RunResult(result, run, await store.read_steps(run_id))


async def _replay(stored_id: str, claim: Claim, task: Task[T]) -> RunResult[T]:
    if claim.run.state != "completed":
        raise gone(claim)
    history = {step.step_index: step for step in claim.steps}
    steps = Steps(stored_id, None, history)
    context = RunContext(claim.run, steps, None, unwinds=False)
    try:
        result = await task(context)
    except StepFailedError as error:
        raise original_of(error) from error.__cause__
    finally:
        await steps.close()
    if steps.refusal is not None:
        raise steps.refusal
    return RunResult(result, claim.run, claim.steps)
