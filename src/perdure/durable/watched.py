"""Having attempts and steps watched, and keeping where an attempt stands in its trace."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from perdure.core import observing
from perdure.core.observing import AttemptSeen, TraceLink
from perdure.durable.attempt import Attempt
from perdure.errors import LeaseLostError, PerdureError, RunParkedError, RunStoppedError, StoreError

logger = logging.getLogger("perdure.watched")

T = TypeVar("T")

TRACE_KEY: Final = "perdure.trace."
"""The event of this key and the number of an attempt holds where the attempt stands in its trace.

Once told it stays, so a takeover finds what the lost worker can say no more.
"""


def watched(
    attempt: Attempt,
    work: Coroutine[Any, Any, T],
    *,
    agent: str | None = None,
    outcome: Callable[[], str] | None = None,
) -> Coroutine[Any, Any, T]:
    """Return `work`, which is the whole attempt, to be watched if somebody watches.

    `outcome` says how it ended, for work that does not raise; else that is read from the error.
    """
    observer = observing.observer
    if observer is None:
        return work
    return _watched(observer, attempt, work, agent=agent, outcome=outcome or _completed)


async def _watched(
    observer: observing.Observer,
    attempt: Attempt,
    work: Coroutine[Any, Any, T],
    *,
    agent: str | None,
    outcome: Callable[[], str],
) -> T:
    epoch = attempt.lease.epoch
    try:
        earlier = await _earlier(attempt) if epoch > 1 else ()
        watch = observer.attempt(AttemptSeen(attempt.run, epoch, agent, earlier))
        if watch.traceparent is not None:
            await _keep(attempt, epoch, watch.traceparent)
    except asyncio.CancelledError:
        # The event loop shuts down: the work is told, so that it gives its lease back.
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return await work
    except Exception:
        logger.exception("run %r cannot be watched", attempt.run.run_id)
        return await work
    try:
        with watch.active():
            result = await work
    except BaseException as error:
        watch.end(outcome=_outcome_of(error), error=_failure(error))
        raise
    watch.end(outcome=outcome())
    return result


async def _earlier(attempt: Attempt) -> tuple[TraceLink, ...]:
    try:
        details = await attempt.store.read_details(attempt.run.run_id)
    except PerdureError as error:
        logger.warning("the trace of run %r is not continued: %s", attempt.run.run_id, error)
        return ()
    ends = {one.epoch: one.ended for one in details.attempts}
    links: list[TraceLink] = []
    for event in details.events:
        number = event.key.removeprefix(TRACE_KEY)
        if number != event.key and number.isdecimal() and isinstance(event.payload, str):
            epoch = int(number)
            links.append(TraceLink(epoch, event.payload, ends.get(epoch)))
    return tuple(sorted(link for link in links if link.epoch < attempt.lease.epoch))


async def _keep(attempt: Attempt, epoch: int, traceparent: str) -> None:
    try:
        await attempt.store.emit_event(attempt.run.run_id, f"{TRACE_KEY}{epoch}", traceparent)
    except PerdureError as error:
        logger.warning("the trace of run %r is not kept: %s", attempt.run.run_id, error)


def _completed() -> str:
    return "completed"


def _outcome_of(error: BaseException) -> str:
    match error:
        case RunStoppedError():
            return "stopped"
        case RunParkedError():
            return "parked"
        case StoreError():
            return "left"
        case LeaseLostError():
            return "lost"
        case Exception():
            return "failed"
        case _:
            # Asleep, or drained: the lease was given back.
            return "given_back"


def _failure(error: BaseException) -> BaseException | None:
    """Return what counts as a failure: a stop is somebody's wish."""
    return None if isinstance(error, RunStoppedError) else error
