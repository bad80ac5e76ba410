"""RunStore: what every store must do, in signatures and contracts.

A store does all of it or it is not a RunStore; `perdure.testing.STORE_CASES` is the proof. Every
method is atomic: it happens whole or not at all, also when the process dies within it. A call
that was cancelled after it reached the database may still have happened.

Ids given to a handle are logical ids of its tenant. `Lease.run_id` is the stored id, so `write`,
`renew` and `settle_usage` need no tenant, and `claim_due` and `claim_deliveries` see the runs of
every tenant: a worker serves them all.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from perdure.core.changes import Change, SettleUsage
from perdure.core.frames import Frame
from perdure.core.limits import LEASE_MS
from perdure.core.records import (
    Claim,
    DeliveryRecord,
    EventRecord,
    JsonValue,
    Lease,
    RunDetails,
    RunManifest,
    RunRecord,
    RunState,
    SessionKey,
    StepRecord,
    Written,
)
from perdure.errors import UsageError


class RunStore(Protocol):
    """Remembers runs, steps, events, frames, deliveries and usage.

    `tenant` is '' for the handle that `open_store` returned. `handle` is one object for a handle
    and all its `for_tenant` views: two handles on the same data are two workers.
    """

    @property
    def tenant(self) -> str: ...
    @property
    def handle(self) -> Hashable: ...

    async def start_or_resume(
        self,
        run_id: str,
        manifest: RunManifest,
        *,
        worker_id: str,
        lease_ms: int = LEASE_MS,
        handler: str | None = None,
        session: SessionKey | None = None,
        retry: bool = False,
        token: str | None = None,
    ) -> Claim:
        """Create the run, take it over if it is free, or read it if it is terminal or parked.

        A terminal run (completed, stopped), and without `retry` a failed or parked one, is
        answered by a pure read (`lease` None). Otherwise the caller gets the lease: epoch + 1
        and a fresh token. `token` repeats a call whose reply was lost: the same token of the
        same worker on a live lease is the same claim. Stores what a stranger needs to go on:
        manifest, handler, tenant, session. With a session, the session's place is taken in the
        same transaction. A run whose holder the store knows to be dead is free before its lease
        has lapsed; in doubt a holder lives, also one whose handle was closed.

        Raises RunInputMismatchError (other manifest hash, in every state, first of all),
        LeaseHeldError (a live lease of another claim), SessionBusyError (another turn of the
        session is in flight, or queued before this one), RunNotFoundError (the session has
        another owner), UsageError (`lease_ms` is no whole number from 1 up; so do `claim_due` and
        `renew`).
        """
        ...

    async def enqueue(
        self,
        run_id: str,
        manifest: RunManifest,
        *,
        handler: str,
        session: SessionKey | None = None,
        retry: bool = False,
    ) -> RunRecord:
        """Record a run that a worker will start; idempotent: a known run is returned as it is.

        A turn is in the line of its session from then on, behind those that were queued before.
        Its parent is chosen when it begins, unless the caller names one.

        With `retry`, a failed or parked run is queued again (strikes 0). Raises
        RunInputMismatchError, and RunNotFoundError for a session of another owner.
        """
        ...

    async def write(self, lease: Lease, *changes: Change) -> Written:
        """Apply `changes` in order, all or nothing, if the lease still holds.

        The fence is epoch + token + holder + status running, not the deadline: a lapsed lease
        that nobody claimed since may still write. A write with CompleteStep or EndRun is progress:
        strikes go back to 0. A CompleteStep or FailStep never changes the result of a completed
        step and is answered with the stored record; with another intent it raises
        DivergenceError. A write that ended the run and is repeated (its reply was lost) is
        answered as done.

        Raises LeaseLostError (nothing was written), StoreCorruptError (frames that do not follow
        the last stored seq; nothing was written).
        """
        ...

    async def renew(self, leases: Sequence[Lease], lease_ms: int) -> Mapping[Lease, bool]:
        """Move the deadlines of the leases that still hold; they map to "a stop was requested".

        A lease that is missing in the answer is lost. One stuck run never costs another its lease.
        """
        ...

    async def claim_due(
        self, handlers: Sequence[str], *, worker_id: str, lease_ms: int, limit: int
    ) -> Sequence[Claim]:
        """Claim up to `limit` runs of `handlers` that are lapsed, released, due or queued.

        Lapsed is also what the store knows to be held by the dead.

        Each is claimed as `start_or_resume` would from its own stored manifest; one that somebody
        else was faster to claim is left out. Failed and parked runs are never claimed. Of the turns
        that are queued in a session only the first is due, and only while none is in flight.
        """
        ...

    async def emit_event(
        self, run_id: str, key: str, payload: JsonValue
    ) -> tuple[bool, EventRecord]:
        """Record the event if the run has none of this key; wake a run that waits for it.

        Returns whether this emit won, and the stored event. Raises RunNotFoundError.
        """
        ...

    async def request_stop(self, run_id: str) -> RunRecord:
        """Mark the run to be stopped and return it; a run that has ended is returned unchanged.

        A sleeping or waiting run becomes due. Raises RunNotFoundError.
        """
        ...

    async def settle_usage(self, lease: Lease, usage: SettleUsage) -> None:
        """Settle a usage row of the lease's own epoch and token, even if the lease is lost."""
        ...

    async def claim_deliveries(
        self, handlers: Sequence[str], *, limit: int, run_id: str | None = None
    ) -> Sequence[DeliveryRecord]:
        """Claim due deliveries of runs that ended, per run in order of position, for 60 s.

        `run_id` (a stored id) narrows to one run. `tries` counts this claim; one whose 20th try
        was never settled is made `dead` instead, and the next of its run is claimed.
        """
        ...

    async def settle_delivery(self, delivery: DeliveryRecord, *, error: str | None = None) -> None:
        """Record that a claimed delivery was made, or failed with `error`.

        A failed one is due again after a back-off of 1 s doubling to 1 h; the 20th failure makes
        it `dead`. A delivery that somebody else has claimed since is left as it is.
        """
        ...

    async def read_run(self, run_id: str) -> RunRecord | None:
        """Return the run, or None."""
        ...

    async def list_runs(
        self,
        *,
        state: RunState | None = None,
        session_id: str | None = None,
        turn_index: int | None = None,
        ancestors_of: str | None = None,
        after: str | None = None,
        limit: int = 50,
        with_answer: bool = False,
    ) -> Sequence[RunRecord]:
        """Return runs of this tenant, oldest first, behind the run id `after`.

        With `session_id`: that session's turns, by turn and revision; `turn_index` narrows them
        to the revisions of one turn. `ancestors_of` (which goes with a limit only): the parent of
        that run, the parent of the parent, and so on, the nearest first. `with_answer` fills
        `RunRecord.answer` with the result of step 0. Raises RunNotFoundError for an unknown
        `after` or `ancestors_of`, and UsageError for what does not go together.
        """
        ...

    async def read_steps(self, run_id: str) -> Sequence[StepRecord]:
        """Return all recorded steps by position; empty for an unknown run."""
        ...

    async def load_event(self, run_id: str, key: str) -> EventRecord | None:
        """Return the event of this key, or None."""
        ...

    async def read_frames(
        self, run_id: str, *, after: int = -1, limit: int = 1_000
    ) -> Sequence[Frame]:
        """Return stored frames with a seq greater than `after`, in order.

        Reads at most about `limit` frames, cut at a row's end; an empty answer means that none
        are stored behind `after` now.
        """
        ...

    async def read_details(self, run_id: str) -> RunDetails:
        """Return attempts, events, usage and deliveries. Raises RunNotFoundError."""
        ...

    async def delete(self, run_id: str, *, frames_only: bool = False) -> bool:
        """Delete the run and everything of it, or only its frames (retention).

        Returns whether there was something to delete. Raises UsageError for a run that is
        running, sleeping or waiting (stop it first), and with `frames_only` for one that is not
        completed or stopped.
        """
        ...

    async def wait_for_change(self, run_id: str | None, *, timeout_ms: int) -> None:
        """Return when the run may have changed, at the latest after `timeout_ms`: only a hint.

        `run_id` None: when any run may have changed (for whoever looks for due work).
        """
        ...

    def for_tenant(self, tenant: str) -> RunStore:
        """Return a view on the same data in which other tenants do not exist."""
        ...

    async def close(self) -> None:
        """Bring to rest what works with this handle, finish what was accepted, let go; idempotent.

        First of all it awaits `perdure.store.closing.bring_to_rest(handle)`; as soon as that has
        begun, `start_or_resume` and `claim_due` raise StoreClosedError (`entry.check_claim`), and
        then every call.
        """
        ...


@runtime_checkable
class ThreadRenewal(Protocol):
    """A store whose leases can be renewed from a thread, so that a blocked loop costs no lease."""

    def open_renewer(self) -> Renewer:
        """Return a renewer with a connection of its own, to be used and closed by one thread."""
        ...


class Renewer(Protocol):
    """`RunStore.renew` for a thread."""

    renew: Callable[[Sequence[Lease], int], Mapping[Lease, bool]]
    close: Callable[[], None]


def checked_store(store: RunStore) -> RunStore:
    """Return `store`. Raises UsageError for what is none, such as the address of one."""
    if not hasattr(store, "for_tenant"):
        raise UsageError(
            f"the store must be a RunStore, as `await open_store('sqlite:PATH')` returns one, "
            f"not {store!r:.60}"
        )
    return store
