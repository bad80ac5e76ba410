"""What memory stores share: runs, sessions and whoever waits for a change of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from perdure.core import effects, transitions
from perdure.core.effects import epoch_ms, iso_time
from perdure.core.records import AttemptRecord, Lease, RunRecord, SessionKey
from perdure.core.rundata import RunData
from perdure.errors import (
    LeaseHeldError,
    RunInputMismatchError,
    RunNotFoundError,
    SessionBusyError,
    StoreClosedError,
    UsageError,
)
from perdure.store.closing import CLOSED
from perdure.store.entry import Opening
from perdure.store.scheduling import Schedule


class SessionData(NamedTuple):
    """One session: its owner, and the run that has its place."""

    owner_id: str | None
    active_run_id: str | None
    created_at: str
    updated_at: str


class Waiter(NamedTuple):
    """Somebody who waits for a change of one run, or (None) of any."""

    run_id: str | None
    loop: asyncio.AbstractEventLoop
    woken: asyncio.Event


class MemoryData:
    """The data behind memory stores. Every handle on it sees the same runs.

    One lock makes each operation atomic, so that a heartbeat thread may join in.
    """

    def __init__(self) -> None:
        self.runs: dict[str, RunData] = {}
        self.sessions: dict[tuple[str, str], SessionData] = {}
        self.schedules: dict[tuple[str, str], Schedule] = {}
        self.lock = threading.RLock()
        self.waiters: set[Waiter] = set()

    def changed(self, stored_id: str) -> None:
        """Wake whoever waits for a change of this run."""
        for waiter in list(self.waiters):
            if waiter.run_id is None or waiter.run_id == stored_id:
                waiter.loop.call_soon_threadsafe(waiter.woken.set)

    @contextmanager
    def waiting(self, stored_id: str | None) -> Generator[asyncio.Event, None, None]:
        waiter = Waiter(stored_id, asyncio.get_running_loop(), asyncio.Event())
        with self.lock:
            self.waiters.add(waiter)
        try:
            yield waiter.woken
        finally:
            with self.lock:
                self.waiters.discard(waiter)

    def owner_of(self, run: RunRecord) -> str | None:
        if run.session_id is None:
            return None
        session = self.sessions.get((run.tenant, run.session_id))
        return None if session is None else session.owner_id

    def record(self, data: RunData) -> RunRecord:
        return data.record(self.owner_of(data.run))

    def check_same(self, opening: Opening) -> RunData | None:
        """Return the run if it is known; RunInputMismatchError if it is about something else."""
        data = self.runs.get(opening.stored_id)
        if data is not None and data.run.manifest_hash != opening.manifest_hash:
            raise RunInputMismatchError(
                f"the run {opening.run_id!r} exists with another manifest: its project, scenario, "
                "task or input differs"
            )
        return data

    def check_owner(self, opening: Opening) -> None:
        """Raise RunNotFoundError if the session belongs to somebody else."""
        session = self._session(opening)
        if session is None or session.owner_id is None:
            return
        if opening.session is None or opening.session.owner_id != session.owner_id:
            raise RunNotFoundError(f"there is no run {opening.run_id!r}")

    def check_free(self, data: RunData, *, worker_id: str, token: str, now: str) -> None:
        """Raise LeaseHeldError if somebody else holds the run."""
        run = data.run
        same = _is_same_claim(data, worker_id, token)
        if self.is_held(data, now) and not same:
            raise LeaseHeldError(
                f"the run {run.run_id!r} is held by another worker until {run.lease_expires_at}"
            )

    def is_held(self, data: RunData, now: str) -> bool:
        """Return whether somebody works on the run, as far as can be known."""
        return transitions.phase_of(data.run, now) == "held"

    def opening_of(self, stored_id: str, data: RunData) -> Opening:
        """Return what a stranger brings who goes on with a stored run."""
        run = data.run
        key: SessionKey | None = None
        if run.session_id is not None and run.turn_index is not None:
            key = SessionKey(run.session_id, run.turn_index, run.revision, self.owner_of(run))
        return Opening(
            stored_id=stored_id,
            tenant=run.tenant,
            run_id=run.run_id,
            manifest_hash=run.manifest_hash,
            manifest_text=data.manifest_text,
            project_id=run.project_id,
            scenario_id=run.scenario_id,
            handler=run.handler,
            session=key,
        )

    def enter_session(self, opening: Opening, now: str) -> None:
        """Give the session's place to the run, or raise SessionBusyError."""
        key = opening.session
        if key is None:
            return
        known = self._session(opening)
        if known is None:
            known = SessionData(key.owner_id, None, now, now)
        active = known.active_run_id
        if active is not None and active != opening.stored_id and self._is_busy(active):
            raise SessionBusyError(f"another turn of the session {key.session_id!r} is in flight")
        self.sessions[opening.tenant, key.session_id] = known._replace(
            active_run_id=opening.stored_id, updated_at=now
        )

    def touch_session(self, opening: Opening, now: str) -> None:
        """Make the session known without giving its place away."""
        key = opening.session
        if key is not None and self._session(opening) is None:
            self.sessions[opening.tenant, key.session_id] = SessionData(
                key.owner_id, None, now, now
            )

    def session_is_free(self, run: RunRecord, stored_id: str) -> bool:
        if run.session_id is None:
            return True
        session = self.sessions.get((run.tenant, run.session_id))
        active = None if session is None else session.active_run_id
        return active is None or active == stored_id or not self._is_busy(active)

    def create(self, opening: Opening, now: str) -> RunData:
        """Add a queued run."""
        key = opening.session
        run = RunRecord(
            run_id=opening.run_id,
            manifest_hash=opening.manifest_hash,
            project_id=opening.project_id,
            scenario_id=opening.scenario_id,
            status="pending",
            state="queued",
            created_at=now,
            updated_at=now,
            tenant=opening.tenant,
            handler=opening.handler,
            session_id=None if key is None else key.session_id,
            turn_index=None if key is None else key.turn_index,
            revision=0 if key is None else key.revision,
            parent_run_id=None if key is None else key.parent_run_id or self._parent(opening),
        )
        data = RunData(run, manifest_text=opening.manifest_text)
        self.runs[opening.stored_id] = data
        return data

    @staticmethod
    def grant(
        data: RunData,
        *,
        worker_id: str,
        lease_ms: int,
        token: str,
        handler: str | None,
        code_version: str | None,
        now: str,
        liveness: str | None = None,
    ) -> None:
        """Give the lease of a free run to a new attempt; the same token is the same claim."""
        expires_at = iso_time(epoch_ms(now) + lease_ms)
        run = data.run
        if _is_same_claim(data, worker_id, token):
            data.run = run._replace(lease_expires_at=expires_at, updated_at=now)
            return
        for epoch, attempt in data.attempts.items():
            if attempt.ended_at is None:
                data.attempts[epoch] = attempt._replace(ended_at=now, ended="lost")
        claimed = transitions.claimed(run, worker_id=worker_id, now=now, expires_at=expires_at)
        data.run = claimed._replace(handler=run.handler or handler)
        data.token = token
        data.attempts[claimed.epoch] = AttemptRecord(
            epoch=claimed.epoch,
            holder=worker_id,
            started_at=now,
            code_version=code_version,
            liveness=liveness,
        )

    def due(self, handlers: frozenset[str], now: str) -> list[str]:
        """Return the stored ids of runs that a worker should claim, in random order."""
        return effects.shuffled(
            stored_id
            for stored_id, data in self.runs.items()
            if data.run.handler in handlers
            and transitions.is_due(data.run, now)
            and self.session_is_free(data.run, stored_id)
        )

    def _session(self, opening: Opening) -> SessionData | None:
        key = opening.session
        return None if key is None else self.sessions.get((opening.tenant, key.session_id))

    def _is_busy(self, stored_id: str) -> bool:
        data = self.runs.get(stored_id)
        if data is None or data.run.state == "queued":
            return False
        return data.run.state not in transitions.RESTING_STATES

    def _parent(self, opening: Opening) -> str | None:
        """Return the newest revision of the highest earlier turn that has an answer."""
        key = opening.session
        if key is None:
            return None
        earlier = [
            data.run
            for data in self.runs.values()
            if data.run.tenant == opening.tenant
            and data.run.session_id == key.session_id
            and data.run.turn_index is not None
            and data.run.turn_index < key.turn_index
            and data.run.state in transitions.TERMINAL_STATES
        ]
        newest = max(earlier, key=lambda run: (run.turn_index, run.revision), default=None)
        return None if newest is None else newest.run_id


def _is_same_claim(data: RunData, worker_id: str, token: str) -> bool:
    """The same token of the same worker on a running run is a claim whose reply was lost."""
    run = data.run
    return run.status == "running" and data.token == token and run.lease_holder_id == worker_id


class MemoryRenewer:
    """Renews leases from any thread."""

    def __init__(self, renew: Callable[[Sequence[Lease], int], Mapping[Lease, bool]]) -> None:
        self.renew = renew

    def close(self) -> None:
        """Nothing is held."""


class HandleState:
    """Whether a handle, with all its views, may still be used, and from which event loop."""

    def __init__(self) -> None:
        self.closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def check(self) -> None:
        if self.closed:
            raise StoreClosedError(CLOSED)
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise UsageError("a store belongs to one event loop: open another handle for this one")


def list_order(run: RunRecord, session_id: str | None) -> tuple[object, ...]:
    if session_id is not None:
        return (run.turn_index or 0, run.revision, run.run_id)
    return (run.created_at, run.run_id)
