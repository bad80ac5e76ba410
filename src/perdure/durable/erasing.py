"""Erasing: a session, or all sessions of a user, with everything that belongs to them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from perdure.core.changes import EndRun
from perdure.core.effects import monotonic_ms
from perdure.core.records import RunRecord
from perdure.core.transitions import RESTING_STATES
from perdure.durable.retrying import claim_as_stored
from perdure.durable.traces import remove_traces
from perdure.errors import LeaseHeldError, RunNotFoundError, SessionBusyError, UsageError
from perdure.store.erasure import busy_text, erasure_of
from perdure.store.protocol import RunStore

STOP_WAIT_MS: Final = 10_000
"""So long an erasure waits until those who work on turns have stopped them."""
POLL_MS: Final = 250
_PAGE: Final = 200

Stop = Callable[[RunRecord], Awaitable[object]]
"""Stops a turn, or asks whoever works on it to."""


class Erased(NamedTuple):
    """What an erasure came to."""

    sessions: int
    turns: int


async def erase_run(store: RunStore, run_id: str) -> bool:
    """Delete a run of the store's tenant with all that is its, traces of agents among it.

    Returns whether there was such a run. `RunStore.delete` leaves the traces. Raises UsageError
    for a run that is running, sleeping or waiting, StoreError.
    """
    # Before, so that no crash leaves traces that nobody finds; behind, for what came meanwhile.
    await remove_traces(store, run_id)
    deleted = await store.delete(run_id)
    await remove_traces(store, run_id)
    return deleted


async def erase_session(
    store: RunStore, session_id: str, *, owner_id: str | None = None, stop: Stop | None = None
) -> Erased:
    """Delete a session of the store's tenant, with its turns and all that belongs to them.

    With `owner_id`, one that belongs to somebody else is not found. While a turn is in flight or
    queued it is refused, unless `stop` is given: then each such turn is stopped first. Deliveries
    that wait are deleted, and never made. Raises RunNotFoundError, SessionBusyError (a turn is in
    flight, or was not stopped within 10 s), UsageError for a store without `erasure()`,
    StoreError.
    """
    turns = await _remove(store, session_id, owner_id, stop)
    if turns is None:
        raise RunNotFoundError(f"there is no session {session_id!r}")
    await erasure_of(store).scrub()
    return Erased(1, turns)


async def erase_user(store: RunStore, owner_id: str, *, stop: Stop | None = None) -> Erased:
    """Delete every session of the store's tenant that belongs to a user.

    As `erase_session` each; if one of them is refused, none is deleted, unless it became busy
    meanwhile. A user without sessions is no error. Repeat it after a failure: it goes on.
    """
    if not owner_id:
        raise UsageError("the user whose sessions are to be erased must be named")
    erasure = erasure_of(store)
    if stop is None:
        await _check_idle(store, owner_id)
    sessions = turns = 0
    after: str | None = None
    while found := await erasure.find_sessions(owner_id, after=after, limit=_PAGE):
        for session_id in found:
            removed = await _remove(store, session_id, owner_id, stop)
            sessions += removed is not None
            turns += removed or 0
        after = found[-1]
    if sessions:
        await erasure.scrub()
    return Erased(sessions, turns)


async def stop_for_good(store: RunStore, run: RunRecord) -> None:
    """Stop a turn that is to be erased: at once where nobody works on it, else by its holder.

    It is a `Stop` for whoever has no engine: an end that is recorded here has no last frames and
    calls no hooks, which nobody would see. Raises RunNotFoundError, StoreError.
    """
    run = await store.request_stop(run.run_id)
    if run.state in RESTING_STATES or run.manifest is None:
        return
    try:
        claim = await claim_as_stored(store, run)
    except LeaseHeldError:
        return  # Its holder sees the mark, and ends it.
    if claim.lease is not None:
        await store.write(claim.lease, EndRun("stopped", reason="erased"))


async def _check_idle(store: RunStore, owner_id: str) -> None:
    erasure = erasure_of(store)
    after: str | None = None
    while found := await erasure.find_sessions(owner_id, after=after, limit=_PAGE):
        for session_id in found:
            if await _unfinished(store, session_id):
                raise SessionBusyError(busy_text(session_id))
        after = found[-1]


async def _remove(
    store: RunStore, session_id: str, owner_id: str | None, stop: Stop | None
) -> int | None:
    erasure, deadline_ms = erasure_of(store), monotonic_ms() + STOP_WAIT_MS
    while True:
        turns = await _turns(store, session_id, owner_id)
        if all(run.state in RESTING_STATES for run in turns):
            # Before, so that no crash leaves traces that nobody finds.
            await _remove_traces(store, turns)
        try:
            removed = await erasure.remove_session(
                session_id, owner_id=owner_id, queued=stop is not None
            )
            if removed is not None:
                await _remove_traces(store, turns)
            return removed
        except SessionBusyError:
            if stop is None or monotonic_ms() > deadline_ms:
                raise
        for run in await _unfinished(store, session_id):
            if run.state != "queued":
                await _stop(store, run, stop)


async def _turns(store: RunStore, session_id: str, owner_id: str | None) -> list[RunRecord]:
    """Return the turns of a session, of those that the owner may erase; None: all of them."""
    turns: list[RunRecord] = []
    after: str | None = None
    while page := await store.list_runs(session_id=session_id, after=after, limit=_PAGE):
        turns += [run for run in page if owner_id is None or run.owner_id in (None, owner_id)]
        after = page[-1].run_id
    return turns


async def _remove_traces(store: RunStore, turns: Sequence[RunRecord]) -> None:
    for run in turns:
        await remove_traces(store, run.run_id)


async def _stop(store: RunStore, run: RunRecord, stop: Stop) -> None:
    try:
        await stop(run)
    except RunNotFoundError:
        return  # Somebody else erased it.
    now = await store.read_run(run.run_id)
    if now is not None and now.state not in RESTING_STATES:
        # Whoever works on it, in another process, will end it soon.
        await store.wait_for_change(run.run_id, timeout_ms=POLL_MS)


async def _unfinished(store: RunStore, session_id: str) -> list[RunRecord]:
    """Return the turns of a session that have not come to rest."""
    turns = await _turns(store, session_id, None)
    return [run for run in turns if run.state not in RESTING_STATES]
