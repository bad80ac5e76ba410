"""How a handle opens, queues and sweeps runs in its folder, run by its thread."""

from __future__ import annotations

from typing import NamedTuple

from perdure.core import transitions
from perdure.core.effects import new_token, shuffled
from perdure.core.records import (
    Claim,
    Lease,
    RunRecord,
)
from perdure.errors import (
    LeaseHeldError,
    SessionBusyError,
    StoreBusyError,
)
from perdure.store.entry import Opening
from perdure.store.filedata import FileData, session_of
from perdure.store.fileentries import (
    Create,
    Operation,
    Requeue,
)
from perdure.store.memorydata import Grant


class Wish(NamedTuple):
    """What somebody wants who claims a run."""

    worker_id: str
    lease_ms: int
    token: str | None = None
    retry: bool = False


class FileClaims:
    """The calls by which somebody gets a run. Belongs to one thread.

    Locks are taken in one order, session, run, index, and of each kind only one at a time.
    """

    def __init__(self, data: FileData) -> None:
        self._data = data

    def start(self, opening: Opening, wish: Wish) -> Claim:
        found = self._read_claim(opening, wish)
        if found is not None:
            return found
        key = session_of(opening)
        stored_id = opening.stored_id
        with (
            self._data.session_locked(key) as session_file,
            self._data.run_locked(stored_id, create=True) as file,
        ):
            # Somebody may have been faster.
            found = self._read_claim(opening, wish, loaded=True)
            if found is not None:
                return found
            assert file is not None
            return self._claim(opening, wish, session_file, file)

    def _read_claim(self, opening: Opening, wish: Wish, *, loaded: bool = False) -> Claim | None:
        """Return the answer if a pure read is one; refuse what is about another run."""
        if not loaded:
            self._data.load(opening.stored_id)
            key = session_of(opening)
            if key is not None:
                self._data.session(key)
        data = self._data.check_same(opening)
        self._data.check_owner(opening)
        command: transitions.Command = "claim_retry" if wish.retry else "claim"
        if data is None or transitions.judge(data.run, command, self._data.now()) != "read":
            return None
        return Claim(None, self._data.record(data), data.all_steps(), data.next_seq)

    def _claim(self, opening: Opening, wish: Wish, session_file: int | None, file: int) -> Claim:
        """Give the run to the caller, who holds the locks of its session and of the run itself."""
        now, stored_id = self._data.now(), opening.stored_id
        token = wish.token or new_token()
        data = self._data.runs.get(stored_id)
        if data is not None:
            self._data.check_free(data, worker_id=wish.worker_id, token=token, now=now)
        self._data.enter_session(opening, now)
        self._note_session(opening, session_file)
        # Not before the end of the turn that had the place: it may have ended just now.
        now = self._data.now()
        operations: list[Operation] = []
        if data is None:
            created = self._new_run(opening, now)
            operations.append(created)
            parent = self._data.parent_for(created.run)
        else:
            parent = self._data.parent_for(data.run, out_of_line=opening.session is None)
        operations.append(
            Grant(
                wish.worker_id,
                wish.lease_ms,
                token,
                opening.handler,
                self._data.options.code_version,
                self._data.locks.take(),
                parent,
            )
        )
        self._data.accept(stored_id, file, now, *operations)
        data = self._data.runs[stored_id]
        lease = Lease(stored_id, data.run.epoch, token, wish.worker_id)
        return Claim(lease, self._data.record(data), data.all_steps(), data.next_seq)

    def enqueue(self, opening: Opening, *, retry: bool) -> tuple[RunRecord, bool]:
        """Return the run, and whether something was changed."""
        stored_id = opening.stored_id
        command: transitions.Command = "enqueue_retry" if retry else "enqueue"
        with (
            self._data.session_locked(session_of(opening)) as session_file,
            self._data.run_locked(stored_id, create=True) as file,
        ):
            assert file is not None
            now = self._data.now()
            data = self._data.check_same(opening)
            self._data.check_owner(opening)
            handler = opening.handler or ""
            verdict = transitions.judge(None if data is None else data.run, command, now)
            if verdict == "create":
                operation: Operation = self._new_run(opening, now)
                self._data.touch_session(opening, now)
                self._note_session(opening, session_file)
            elif verdict == "queue":
                operation = Requeue(handler)
            else:
                return self._record(stored_id), False
            self._data.accept(stored_id, file, now, operation)
            return self._record(stored_id), True

    def _new_run(self, opening: Opening, now: str) -> Create:
        data = self._data.create(opening, now)
        # It is there once that is written down.
        del self._data.runs[opening.stored_id]
        return Create(data.run, data.manifest_text)

    def _note_session(self, opening: Opening, session_file: int | None) -> None:
        key = session_of(opening)
        if key is None or session_file is None or opening.session is None:
            return
        data = self._data.runs.get(opening.stored_id)
        place: tuple[int, int] | None = (opening.session.turn_index, opening.session.revision)
        if data is not None:
            run = data.run
            is_turn = run.session_id == key[1] and run.turn_index is not None
            place = (run.turn_index or 0, run.revision) if is_turn else None
        self._data.note_session(key, session_file, opening.stored_id, place)

    # The sweep.

    def claim_due(self, handlers: frozenset[str], wish: Wish, limit: int) -> list[Claim]:
        claims: list[Claim] = []
        for stored_id in self._due(handlers):
            if len(claims) == limit:
                break
            try:
                claim = self._claim_due(stored_id, handlers, wish)
            except (LeaseHeldError, SessionBusyError, StoreBusyError):
                continue  # Somebody was faster.
            if claim is not None:
                claims.append(claim)
        return claims

    def _due(self, handlers: frozenset[str]) -> list[str]:
        self._data.index.catch_up()
        now = self._data.now()
        due: list[str] = []
        locks: dict[str, str] = {}
        for stored_id in list(self._data.index.open_runs):
            run = self._data.peek_for_sweep(stored_id)
            if run is None:
                continue
            known = self._data.file_of(stored_id)
            if not known.is_open:
                self._close(stored_id)
            elif run.handler not in handlers:
                continue
            elif transitions.is_due(run, now):
                due.append(stored_id)
            elif known.holder_lock is not None:
                locks[stored_id] = known.holder_lock
        dead = self._data.locks.dead(set(locks.values()))
        due += [stored_id for stored_id, lock in locks.items() if lock in dead]
        return shuffled(due)

    def _close(self, stored_id: str) -> None:
        """Make up for a process that ended between the rest of a run and its note of that."""
        with self._data.run_locked(stored_id) as file:
            known = self._data.file_of(stored_id)
            if file is not None and not known.is_open:
                self._data.index.close_run(stored_id, known.run)

    def _claim_due(self, stored_id: str, handlers: frozenset[str], wish: Wish) -> Claim | None:
        data = self._data.load(stored_id)
        if data is None:
            return None
        key = session_of(self._data.opening_of(stored_id, data))
        with (
            self._data.session_locked(key) as session_file,
            self._data.run_locked(stored_id) as file,
        ):
            data = self._data.runs.get(stored_id)
            if file is None or data is None:
                return None
            opening = self._data.opening_of(stored_id, data)
            now = self._data.now()
            is_due = transitions.is_due(data.run, now)
            if data.run.state == "running":
                is_due = not self._data.is_held(data, now)
            if session_of(opening) != key or not is_due or data.run.handler not in handlers:
                return None
            return self._claim(opening, wish, session_file, file)

    def _record(self, stored_id: str) -> RunRecord:
        return self._data.record(self._data.runs[stored_id])
