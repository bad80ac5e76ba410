"""Opening runs: those that rest are read, new ones created, free ones claimed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from perdure.core import identity
from perdure.core.effects import monotonic_ms, new_token, shuffled
from perdure.core.records import Claim, RunRecord
from perdure.core.transitions import RESTING_STATES, TERMINAL_STATES, lease_is_live
from perdure.errors import (
    LeaseHeldError,
    RunInputMismatchError,
    RunNotFoundError,
    SessionBusyError,
    StoreBusyError,
)
from perdure.store.entry import Opening
from perdure.store.sql.database import Database, Refused, Row, Statement, Value
from perdure.store.sql.granted import Wish, created, taken
from perdure.store.sql.lists import foreign_turns, turns_among
from perdure.store.sql.rows import (
    now_of,
    owner_of,
    run_record,
    step_records,
    token_of,
)

_DUE: Final = ("due_runs", "due_wakes", "due_queued")
_LOOK_MS: Final = 250
"""Sweeps for the same handlers look at most so often whether holders of live leases are dead."""
_OPENED: Final = 7
"""How many values of a new run are not of a session; they stand first."""
_LEASE_KNOWN_MS_MAX: Final = 366 * 24 * 3_600_000
"""The end of a longer lease is left to the database, which may not be able to write it."""
_ROUNDS: Final = 16
"""How often an opening looks again when others are faster, before it gives up."""


class _Look(NamedTuple):
    """Which holders were dead at a monotonic moment."""

    at_ms: float
    dead: Collection[str]


class Claims:
    """The claims of one handle."""

    def __init__(self, database: Database, code_version: str | None) -> None:
        self._database = database
        self._code_version = code_version
        self._liveness = database.liveness
        self._looks: dict[frozenset[str], _Look] = {}

    async def open(self, opening: Opening, wish: Wish) -> Claim:
        """Open a run as `RunStore.start_or_resume` says."""
        busy = False
        for number in range(_ROUNDS):
            if number == 0 and opening.session is None and not self._database.writes_wait:
                claim, row = await self._find_or_create(opening, wish)
                if claim is not None:
                    return claim
                foreign: list[Statement] = []
            else:
                row, foreign = await self._look(opening)
            if row is not None:
                run = run_record(row, owner_id=owner_of(row))
                if _rests(run, retry=wish.retry):
                    claim = await self._read(opening.stored_id, wish)
                    if claim is None:
                        continue  # It was retried or deleted meanwhile.
                    return claim
                wish = wish._replace(dead=await self._check_free(opening, run, row, wish))
            if busy:
                raise SessionBusyError(
                    f"another turn of the session {opening.session_id!r} is in flight"
                )
            wish = wish._replace(lock=await self._liveness.name())
            statements = [*foreign, *self._claim(opening, wish, known=row is not None)]
            try:
                rows = await self._database.run(statements)
            except Refused as refusal:
                busy = statements[refusal.index].name == "open_session"
                continue
            lists = dict(zip((statement.name for statement in statements), rows, strict=True))
            return created(opening, wish, lists) if row is None else taken(wish, lists)
        raise StoreBusyError(f"the run {opening.run_id!r} changes too fast to be opened")

    async def enqueue(self, opening: Opening, *, retry: bool) -> tuple[RunRecord, bool]:
        """Queue a run as `RunStore.enqueue` says; also return whether that changed anything."""
        for _ in range(_ROUNDS):
            row, foreign = await self._look(opening)
            if row is None:
                statements = [*foreign, *_lock_session(opening), enqueue_statement(opening)]
            else:
                run = run_record(row, owner_id=owner_of(row))
                is_asked_for = retry and run.state in RESTING_STATES - TERMINAL_STATES
                # A TypeScript worker that runs a failed run once more leaves it failed meanwhile.
                if not is_asked_for or lease_is_live(run, now_of(row)):
                    return run, False
                statements = [
                    *foreign,
                    Statement(
                        "requeue_run",
                        (opening.stored_id, opening.handler, opening.manifest_text),
                        required=True,
                    ),
                ]
            statements.append(Statement("read_run", (opening.stored_id,), required=True))
            try:
                rows = await self._database.run(statements)
            except Refused:
                continue
            (row,) = rows[-1]
            return run_record(row, owner_id=owner_of(row)), True
        raise StoreBusyError(f"the run {opening.run_id!r} changes too fast to be queued")

    async def due(
        self, handlers: Sequence[str], *, worker_id: str, lease_ms: int, limit: int
    ) -> list[Claim]:
        """Claim due runs as `RunStore.claim_due` says."""
        dead = await self._dead_holders(handlers)
        statements = [Statement(name, (handler, limit)) for handler in handlers for name in _DUE]
        if dead:
            names = _name_rows(dead)
            statements += [
                Statement("due_orphans", (handler, limit, names)) for handler in handlers
            ]
        lists = await self._database.read(statements)
        wish = Wish(worker_id, lease_ms, "", retry=False, dead=dead)
        candidates = shuffled(row for rows in lists for row in rows)
        claims: list[Claim] = []
        while candidates and len(claims) < limit:
            batch = [candidates.pop() for _ in range(min(len(candidates), limit - len(claims)))]
            results = await asyncio.gather(
                *(self._claim_due(row, wish._replace(token=new_token())) for row in batch),
                return_exceptions=True,
            )
            claims += [result for result in results if isinstance(result, Claim)]
            errors = [result for result in results if isinstance(result, BaseException)]
            if errors and not claims:
                raise errors[0]
            if errors:
                # What was claimed must reach the caller, or it would have to lapse; what is wrong
                # with the others is met again by the next sweep.
                break
        return claims

    async def _claim_due(self, row: Row, wish: Wish) -> Claim | None:
        """Claim one run from its own row; None if somebody else was faster."""
        stored_id, manifest_hash, tenant, session_id, turn_index, owner_id = row
        wish = wish._replace(lock=await self._liveness.name())
        key = None if session_id is None else (session_id, turn_index)
        free = Statement("free_run", (stored_id,), required=True)
        statements = [free, *self._take(stored_id, manifest_hash, wish, key=key)]
        if session_id is not None:
            foreign = [] if tenant else await self._foreign(session_id)
            place = _session(tenant, session_id, owner_id, stored_id)
            statements = [*foreign, *place, *statements]
        try:
            rows = await self._database.run(statements)
        except Refused:
            return None
        names = (statement.name for statement in statements)
        return taken(wish, dict(zip(names, rows, strict=True)))

    async def _dead_holders(self, handlers: Sequence[str]) -> Collection[str]:
        """Return the locks of live leases whose holders are dead, as they were a moment ago."""
        now_ms, names = monotonic_ms(), frozenset(handlers)
        look = self._looks.get(names)
        if look is None or now_ms - look.at_ms >= _LOOK_MS:
            lists = await self._database.read(
                [Statement("locks_of_handler", (handler,)) for handler in names]
            )
            locks = {lock for rows in lists for (lock,) in rows}
            look = self._looks[names] = _Look(now_ms, await self._liveness.dead(locks))
        return look.dead

    async def _check_free(
        self, opening: Opening, run: RunRecord, row: Row, wish: Wish
    ) -> Collection[str]:
        """Raise LeaseHeldError if somebody else holds the run and lives.

        Return the lock of whoever holds it and is dead.
        """
        same = token_of(row) == wish.token and run.lease_holder_id == wish.worker_id
        if not lease_is_live(run, now_of(row)) or (same and run.state == "running"):
            return ()
        (rows,) = await self._database.read([Statement("lock_of_run", (opening.stored_id,))])
        dead = await self._liveness.dead([name for (name,) in rows])
        if not dead:
            raise LeaseHeldError(
                f"the run {run.run_id!r} is held by another worker until {run.lease_expires_at}"
            )
        return dead

    async def _look(self, opening: Opening) -> tuple[Row | None, list[Statement]]:
        """Return the run's row, if there is one, and refuse what may not be opened at all.

        Also return what gives turns of TypeScript workers their places in the same session.
        """
        key = opening.session
        statements = [Statement("read_run", (opening.stored_id,))]
        if key is not None:
            statements.append(Statement("read_session", (opening.tenant, key.session_id)))
            if not opening.tenant:
                statements.append(foreign_turns(key.session_id))
        found, *others = await self._database.read(statements)
        row = _same(opening, found)
        if key is None:
            return row, []
        sessions, *foreign = others
        owner_id = sessions[0][0] if sessions else None
        if owner_id is not None and owner_id != key.owner_id:
            raise RunNotFoundError(f"there is no run {opening.run_id!r}")
        return row, [put for rows in foreign for put in _putting(rows, key.session_id)]

    async def _find_or_create(
        self, opening: Opening, wish: Wish
    ) -> tuple[Claim | None, Row | None]:
        """Claim the run if it is new, else return its row; neither: it is just being created."""
        wish = wish._replace(lock=await self._liveness.name())
        create = _create(opening, wish)._replace(required=False)
        read = Statement("read_run", (opening.stored_id,))
        statements = [create, self._attempt(opening.stored_id, wish), read]
        new, _, found = await self._database.run(statements)
        if new:
            return created(opening, wish, {"create_run": new}), None
        return None, _same(opening, found)

    async def _foreign(self, session_id: str) -> list[Statement]:
        (rows,) = await self._database.read([foreign_turns(session_id)])
        return _putting(rows, session_id)

    async def _read(self, stored_id: str, wish: Wish) -> Claim | None:
        """Return a claim that is a pure read, or None if the run does not rest any more."""
        found, steps, end = await self._database.read(_whole_run(stored_id))
        if not found:
            return None
        run = run_record(found[0], owner_id=owner_of(found[0]))
        if not _rests(run, retry=wish.retry):
            return None
        return Claim(None, run, step_records(run.run_id, steps), end[0][0])

    def _claim(self, opening: Opening, wish: Wish, *, known: bool) -> list[Statement]:
        key, stored_id = opening.session, opening.stored_id
        statements: list[Statement] = []
        if key is not None:
            statements += _session(opening.tenant, key.session_id, key.owner_id, stored_id)
        if not known:
            return [*statements, _create(opening, wish), self._first_attempt(stored_id, wish)]
        return statements + self._take(
            stored_id,
            opening.manifest_hash,
            wish,
            handler=opening.handler,
            manifest_text=opening.manifest_text,
            key=None if key is None else (key.session_id, key.turn_index),
        )

    def _take(
        self,
        stored_id: str,
        manifest_hash: str,
        wish: Wish,
        *,
        handler: str | None = None,
        manifest_text: str | None = None,
        key: tuple[str, int | None] | None = None,
    ) -> list[Statement]:
        values = (
            stored_id,
            manifest_hash,
            wish.worker_id,
            wish.lease_ms,
            wish.token,
            int(wish.retry),
            handler,
            manifest_text,
            *(key or (None, None)),
            _name_rows(wish.dead),
        )
        return [
            Statement("take_run", values, required=True),
            Statement("close_lost_attempt", (stored_id, wish.token)),
            self._attempt(stored_id, wish),
            *_whole_run(stored_id),
        ]

    def _first_attempt(self, stored_id: str, wish: Wish) -> Statement:
        known = (stored_id, wish.worker_id, self._code_version, wish.lock)
        attempt = self._attempt(stored_id, wish)
        return Statement(*attempt[:3], "insert_attempt", known)

    def _attempt(self, stored_id: str, wish: Wish) -> Statement:
        return Statement("open_attempt", (stored_id, wish.token, self._code_version, wish.lock))


def _same(opening: Opening, found: Sequence[Row]) -> Row | None:
    """Return the row of the run, if there is one. Raises RunInputMismatchError."""
    row = found[0] if found else None
    if row is not None and row[1] != opening.manifest_hash:
        raise RunInputMismatchError(
            f"the run {opening.run_id!r} exists with another manifest: its project, scenario, "
            "task or input differs"
        )
    return row


def _session(tenant: str, session_id: str, owner_id: str | None, stored_id: str) -> list[Statement]:
    return [
        Statement("lock_session", (tenant, session_id, owner_id), required=True),
        Statement("open_session", (tenant, session_id, stored_id), required=True),
    ]


def _putting(rows: Sequence[Row], session_id: str) -> list[Statement]:
    """Return what puts turns of TypeScript workers in their places, each behind its parent."""
    return [
        Statement("put_turn", (run.run_id, session_id, run.turn_index))
        for run in turns_among(rows, session_id)
    ]


def _lock_session(opening: Opening) -> list[Statement]:
    key = opening.session
    if key is None:
        return []
    values = (opening.tenant, key.session_id, key.owner_id)
    return [Statement("lock_session", values, required=True)]


def _whole_run(stored_id: str) -> list[Statement]:
    return [Statement(name, (stored_id,)) for name in ("read_run", "read_steps", "frames_end")]


def _stored(opening: Opening) -> tuple[Value, ...]:
    """Return what a new run keeps of its opening, as the first ten parameters."""
    key = opening.session
    return (
        opening.stored_id,
        opening.manifest_hash,
        opening.project_id,
        opening.scenario_id,
        opening.tenant,
        opening.handler,
        opening.manifest_text,
        *((None, None, 0) if key is None else key[:3]),
    )


def _parent(opening: Opening) -> str | None:
    """Return the stored id of the parent that the caller named; else the store chooses it."""
    key = opening.session
    if key is None or not key.parent_run_id:
        return None if key is None else key.parent_run_id
    return identity.stored_id(opening.tenant, key.parent_run_id)


def _create(opening: Opening, wish: Wish) -> Statement:
    lease = (wish.worker_id, wish.lease_ms, wish.token)
    values = (*_stored(opening), *lease, _parent(opening))
    if opening.session is not None or wish.lease_ms > _LEASE_KNOWN_MS_MAX:
        return Statement("create_run", values, required=True)
    return Statement("create_run", values, True, "insert_run", (*values[:_OPENED], *lease))


def enqueue_statement(opening: Opening) -> Statement:
    """Return what records a new run that a worker will start."""
    return Statement("enqueue_run", (*_stored(opening), _parent(opening)), required=True)


def _rests(run: RunRecord, *, retry: bool) -> bool:
    """Return whether an opening only reads the run."""
    return run.state in (TERMINAL_STATES if retry else RESTING_STATES)


def _name_rows(names: Collection[str]) -> str:
    return json.dumps([[name] for name in names])
