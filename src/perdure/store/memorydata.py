"""What memory stores share: runs, sessions and whoever waits for a change of them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from perdure.core import effects, identity, transitions
from perdure.core.effects import epoch_ms, iso_time
from perdure.core.records import AttemptRecord, Lease, RunRecord, SessionKey
from perdure.core.rundata import RunData
from perdure.errors import (
    LeaseHeldError,
    RunInputMismatchError,
    RunNotFoundError,
    StoreClosedError,
    UsageError,
)
from perdure.store.closing import CLOSED
from perdure.store.entry import Opening
from perdure.store.listing import Wanted, list_order
from perdure.store.scheduling import Schedule
from perdure.store.sessiondata import Sessions

_forks = 0
"""How often this process is the child of a fork. No loop of the parent runs in a child."""


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


class Waiter(NamedTuple):
    """Somebody who waits for a change of one run, or (None) of any."""

    run_id: str | None
    loop: asyncio.AbstractEventLoop
    woken: asyncio.Event


class Grant(NamedTuple):
    """The lease as a new attempt gets it; `parent_run_id` is for a turn that has none yet."""

    worker_id: str
    lease_ms: int
    token: str
    handler: str | None
    code_version: str | None
    liveness: str | None = None
    parent_run_id: str | None = None


class MemoryData(Sessions):
    """The data behind memory stores. Every handle on it sees the same runs.

    One lock makes each operation atomic, so that a heartbeat thread may join in.
    """

    def __init__(self) -> None:
        super().__init__()
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
            parent_run_id=None if key is None else key.parent_run_id,
        )
        data = RunData(run, manifest_text=opening.manifest_text)
        self.runs[opening.stored_id] = data
        self.note_turn(opening.stored_id, run)
        return data

    @staticmethod
    def grant(data: RunData, grant: Grant, now: str) -> None:
        """Give the lease of a free run to a new attempt; the same token is the same claim."""
        expires_at = iso_time(epoch_ms(now) + grant.lease_ms)
        run, worker_id = data.run, grant.worker_id
        if _is_same_claim(data, worker_id, grant.token):
            data.run = run._replace(lease_expires_at=expires_at, updated_at=now)
            return
        for epoch, attempt in data.attempts.items():
            if attempt.ended_at is None:
                data.attempts[epoch] = attempt._replace(ended_at=now, ended="lost")
        parent = grant.parent_run_id if run.parent_run_id is None else run.parent_run_id
        claimed = transitions.claimed(run, worker_id=worker_id, now=now, expires_at=expires_at)
        data.run = claimed._replace(handler=run.handler or grant.handler, parent_run_id=parent)
        data.token = grant.token
        data.attempts[claimed.epoch] = AttemptRecord(
            epoch=claimed.epoch,
            holder=worker_id,
            started_at=now,
            code_version=grant.code_version,
            liveness=grant.liveness,
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

    def listed(self, wanted: Wanted) -> list[RunRecord]:
        """Return what `RunStore.list_runs` says."""
        if wanted.ancestors_of is not None:
            return self.ancestors(wanted, wanted.ancestors_of)
        session_id = wanted.session_id
        chosen = [
            data
            for data in self._candidates(wanted)
            if data.run.tenant == wanted.tenant
            and wanted.state in (None, data.run.state)
            and session_id in (None, data.run.session_id)
        ]
        chosen.sort(key=lambda data: list_order(data.run, session_id))
        if wanted.after is not None:
            edge = list_order(self._from(wanted, wanted.after).run, session_id)
            chosen = [data for data in chosen if list_order(data.run, session_id) > edge]
        return [listed_record(self, data, wanted) for data in chosen[: wanted.limit]]

    def _candidates(self, wanted: Wanted) -> Iterable[RunData]:
        if wanted.session_id is None:
            return self.runs.values()
        turns = self.places_of((wanted.tenant, wanted.session_id)).of_turn(wanted.turn_index)
        return [self.runs[stored_id] for stored_id in turns if stored_id in self.runs]

    def ancestors(self, wanted: Wanted, run_id: str) -> list[RunRecord]:
        """Return the parent of a run, the parent of that one, and so on."""
        data: RunData | None = self._from(wanted, run_id)
        line: list[RunRecord] = []
        while data is not None and len(line) < wanted.limit:
            parent = data.run.parent_run_id
            data = None if not parent else self.find(identity.stored_id(wanted.tenant, parent))
            if data is not None:
                line.append(listed_record(self, data, wanted))
        return line

    def _from(self, wanted: Wanted, run_id: str) -> RunData:
        data = self.find(identity.stored_id(wanted.tenant, run_id))
        if data is None:
            raise RunNotFoundError(f"there is no run {run_id!r} to go on from")
        return data


def listed_record(among: MemoryData, data: RunData, wanted: Wanted) -> RunRecord:
    """Return the run as a list shows it."""
    record = among.record(data)
    answered = wanted.with_answer and 0 in data.steps and data.steps[0].status == "completed"
    return record._replace(answer=data.step(0).result) if answered else record


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
        self._home = (0, 0)
        """The thread in which the loop ran, and the forks until then."""

    def check(self) -> None:
        if self.closed:
            raise StoreClosedError(CLOSED)
        home = (threading.get_ident(), _forks)
        if self._home == home and self._loop is not None and self._loop.is_running():
            return  # `get_running_loop` says the same, and makes a system call on Python 3.11.
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise UsageError("a store belongs to one event loop: open another handle for this one")
        self._home = home
