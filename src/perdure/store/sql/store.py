"""SqlStore: the one RunStore for every SQL database."""

from __future__ import annotations

import copy
import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Final

from perdure.core import identity
from perdure.core.changes import Change, SettleUsage
from perdure.core.draft import ends
from perdure.core.effects import new_token
from perdure.core.frames import Frame
from perdure.core.limits import DELIVERY_CLAIM_MS, DELIVERY_TRIES_MAX, LEASE_MS
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
from perdure.core.rundata import DELIVERY_LOST, delivery_backoff_ms
from perdure.core.transitions import ENDED_STATES
from perdure.errors import LeaseLostError, RunNotFoundError, UsageError
from perdure.store.closing import bring_to_rest
from perdure.store.entry import check_claim, opening_for, payload_text
from perdure.store.listing import Wanted, check_wanted
from perdure.store.sql.claims import Claims
from perdure.store.sql.database import Database, Refused, Row, Statement
from perdure.store.sql.erasure import SqlErasure
from perdure.store.sql.framerows import decode_behind
from perdure.store.sql.granted import Wish
from perdure.store.sql.leases import SqlRenewer, renew
from perdure.store.sql.lists import list_runs
from perdure.store.sql.rows import (
    attempt_record,
    delivery_record,
    event_record,
    logical_run_id,
    owner_of,
    run_record,
    step_record,
    step_records,
    token_of,
    usage_record,
)
from perdure.store.sql.schedules import SqlSchedules
from perdure.store.sql.upkeep import SqlUpkeep
from perdure.store.sql.writes import (
    FENCE,
    LEAVING,
    has_left,
    refusal,
    settle_statement,
    settled_positions,
    write_statements,
    written,
)
from perdure.store.waiting import Waiting

_ROUNDS: Final = 16
"""How often a claim of deliveries looks again when others are faster."""
_DELETE: Final = (
    "delete_run",
    "delete_steps",
    "delete_events",
    "delete_attempts",
    "delete_frames",
    "delete_deliveries",
    "delete_usage",
)
_EXPIRE: Final = ("expire_frames", "delete_frames")
_DETAILS: Final = ("read_run", "read_attempts", "read_events", "read_usage", "read_deliveries")


class SqlStore:
    """Runs in an SQL database, behind a driver such as `Sqlite(path)`.

    `code_version` is stored with every attempt, so that people see which code ran.
    """

    def __init__(
        self, database: Database, *, tenant: str = "", code_version: str | None = None
    ) -> None:
        self._database = database
        self._handle = object()
        self._claims = Claims(database, code_version)
        self._waiting = Waiting(database)
        self._tenant = identity.check_tenant(tenant)

    @property
    def tenant(self) -> str:
        return self._tenant

    @property
    def handle(self) -> Hashable:
        return self._handle

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
        check_claim(self._handle, lease_ms)
        opening = opening_for(self._tenant, run_id, manifest, handler=handler, session=session)
        wish = Wish(worker_id, lease_ms, token or new_token(), retry)
        claim = await self._claims.open(opening, wish)
        if claim.lease is not None:
            self._waiting.changed(opening.stored_id, may_be_due=False)
        return claim

    async def enqueue(
        self,
        run_id: str,
        manifest: RunManifest,
        *,
        handler: str,
        session: SessionKey | None = None,
        retry: bool = False,
    ) -> RunRecord:
        opening = opening_for(self._tenant, run_id, manifest, handler=handler, session=session)
        run, changed = await self._claims.enqueue(opening, retry=retry)
        if changed:
            self._waiting.changed(opening.stored_id, may_be_due=True)
        return run

    async def claim_due(
        self, handlers: Sequence[str], *, worker_id: str, lease_ms: int, limit: int
    ) -> Sequence[Claim]:
        check_claim(self._handle, lease_ms)
        claims = await self._claims.due(
            handlers, worker_id=worker_id, lease_ms=lease_ms, limit=limit
        )
        for claim in claims:
            if claim.lease is not None:
                self._waiting.changed(claim.lease.run_id, may_be_due=False)
        return claims

    async def write(self, lease: Lease, *changes: Change) -> Written:
        statements = write_statements(lease, changes)
        try:
            rows = await self._database.run(statements)
        except Refused as refused:
            if refused.index != FENCE:
                raise refusal(lease, statements[refused.index]) from None
            return await self._left_before(lease, changes, repeated=refused.repeated)
        self._waiting.changed(lease.run_id, may_be_due=statements[-1].name in LEAVING)
        return written(lease, statements, rows)

    async def _left_before(
        self, lease: Lease, changes: Sequence[Change], *, repeated: bool
    ) -> Written:
        """Answer a write whose fence found no lease: a repeated one may have given it back."""
        steps = [
            Statement("read_step", (lease.run_id, position))
            for position in settled_positions(changes)
        ]
        found, *step_rows = await self._database.read(
            [Statement("read_run", (lease.run_id,)), *steps]
        )
        run_id = logical_run_id(lease.run_id)
        if found:
            run = run_record(found[0], owner_id=owner_of(found[0]))
            ended = run if run.state in ENDED_STATES else None
            mine = run.epoch == lease.epoch and token_of(found[0]) == lease.token
            recorded = [step_record(run_id, rows[0]) for rows in step_rows if rows]
            if mine and repeated and has_left(run, changes):
                return Written(recorded, run.stop_requested_at is not None, run.wake_at, ended)
            if mine and ended is not None and ends(changes):
                return Written(recorded, run=ended)
        raise LeaseLostError(f"the lease on the run {run_id!r} is lost")

    async def renew(self, leases: Sequence[Lease], lease_ms: int) -> Mapping[Lease, bool]:
        return await renew(self._database, leases, lease_ms)

    def open_renewer(self) -> SqlRenewer:
        """Return a renewer with a connection of its own, to be used and closed by one thread."""
        return SqlRenewer(self._database.connect())

    async def settle_usage(self, lease: Lease, usage: SettleUsage) -> None:
        await self._database.run([settle_statement(lease, usage)])

    async def emit_event(
        self, run_id: str, key: str, payload: JsonValue
    ) -> tuple[bool, EventRecord]:
        identity.check_event_key(key)
        stored_id = self._stored(run_id)
        text = payload_text(payload)
        statements = [
            Statement("lock_run", (stored_id,), required=True),
            Statement("wake_on_event", (stored_id, key)),
            Statement("emit_event", (stored_id, key, text)),
            Statement("read_event", (stored_id, key)),
        ]
        try:
            _, _, emitted, (row,) = await self._database.run(statements)
        except Refused:
            raise _unknown(run_id) from None
        if emitted:
            self._waiting.changed(stored_id, may_be_due=True)
        return bool(emitted), event_record(run_id, row)

    async def request_stop(self, run_id: str) -> RunRecord:
        stored_id = self._stored(run_id)
        statements = [
            Statement("request_stop", (stored_id,)),
            Statement("read_run", (stored_id,)),
        ]
        _, rows = await self._database.run(statements)
        if not rows:
            raise _unknown(run_id)
        self._waiting.changed(stored_id, may_be_due=True)
        return run_record(rows[0], owner_id=owner_of(rows[0]))

    async def claim_deliveries(
        self, handlers: Sequence[str], *, limit: int, run_id: str | None = None
    ) -> Sequence[DeliveryRecord]:
        names = json.dumps([[handler] for handler in handlers])
        claim = (new_token(), DELIVERY_CLAIM_MS, names, DELIVERY_TRIES_MAX, DELIVERY_LOST)
        claimed: list[DeliveryRecord] = []
        for _ in range(_ROUNDS):
            room = max(limit - len(claimed), 0)
            if run_id is None:
                looks = [Statement("due_deliveries", (handler, room)) for handler in handlers]
            else:
                looks = [Statement("waiting_delivery", (run_id,))]
            places = [place for rows in await self._database.read(looks) for place in rows]
            claims = [Statement("claim_delivery", (*place, *claim)) for place in places[:room]]
            if not claims:
                break
            found = [row for rows in await self._database.run(claims) for row in rows]
            decided = list(map(delivery_record, found))
            won = [one for one in decided if one.state == "waiting"]
            claimed += won
            for dead in decided:
                if dead.state == "dead":
                    self._waiting.changed(dead.run_id, may_be_due=True)
            # Where others were faster, or one is dead, there may be more; of one run only one.
            if len(won) == len(claims) or (run_id is not None and not decided):
                break
        return sorted(claimed, key=_place)

    async def settle_delivery(self, delivery: DeliveryRecord, *, error: str | None = None) -> None:
        state, later_ms = "delivered", 0
        if error is not None:
            state = "dead" if delivery.tries >= DELIVERY_TRIES_MAX else "waiting"
            later_ms = delivery_backoff_ms(delivery.tries)
        values = (delivery.run_id, delivery.position, delivery.token, state, later_ms, error)
        (rows,) = await self._database.run([Statement("settle_delivery", values)])
        if rows:
            self._waiting.changed(delivery.run_id, may_be_due=True)

    async def delete(self, run_id: str, *, frames_only: bool = False) -> bool:
        stored_id = self._stored(run_id)
        names = _EXPIRE if frames_only else _DELETE
        first, *others = (Statement(name, (stored_id,)) for name in names)
        try:
            rows = await self._database.run([first._replace(required=True), *others])
        except Refused:
            run = await self.read_run(run_id)
            if run is None:
                return False
            raise UsageError(
                f"the run {run_id!r} is {run.state}: it cannot be deleted before it ends"
            ) from None
        self._waiting.changed(stored_id, may_be_due=not frames_only)
        return bool(rows[-1]) if frames_only else True

    async def read_run(self, run_id: str) -> RunRecord | None:
        row = await self._find(run_id)
        return None if row is None else run_record(row, owner_id=owner_of(row))

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
        wanted = Wanted(
            *(self._tenant, state, session_id, turn_index),
            *(ancestors_of, after, max(limit, 0), with_answer),
        )
        return await list_runs(self._database, check_wanted(wanted))

    async def read_steps(self, run_id: str) -> Sequence[StepRecord]:
        (rows,) = await self._database.read([Statement("read_steps", (self._stored(run_id),))])
        return step_records(run_id, rows)

    async def load_event(self, run_id: str, key: str) -> EventRecord | None:
        values = (self._stored(run_id), key)
        (rows,) = await self._database.read([Statement("read_event", values)])
        return event_record(run_id, rows[0]) if rows else None

    async def read_frames(
        self, run_id: str, *, after: int = -1, limit: int = 1_000
    ) -> Sequence[Frame]:
        # Frames begin at 1: the seq 0 is the run itself.
        first = max(after + 1, 1)
        values = (self._stored(run_id), first, limit)
        (rows,) = await self._database.read([Statement("read_frames", values)])
        return [
            frame
            for row in rows
            for frame in decode_behind(*row, after=first - 1, before=first + limit)
        ]

    async def read_details(self, run_id: str) -> RunDetails:
        stored_id = self._stored(run_id)
        found, attempts, events, usage, deliveries = await self._database.read(
            [Statement(name, (stored_id,)) for name in _DETAILS]
        )
        if not found:
            raise _unknown(run_id)
        return RunDetails(
            attempts=[attempt_record(row) for row in attempts],
            events=[event_record(run_id, row) for row in events],
            usage=[usage_record(row) for row in usage],
            deliveries=[delivery_record(row) for row in deliveries],
        )

    async def wait_for_change(self, run_id: str | None, *, timeout_ms: int) -> None:
        await self._waiting.wait(None if run_id is None else self._stored(run_id), timeout_ms)

    def upkeep(self) -> SqlUpkeep:
        return SqlUpkeep(self._database, self._waiting)

    def erasure(self) -> SqlErasure:
        return SqlErasure(self._database, self._waiting, self._tenant)

    def schedules(self) -> SqlSchedules:
        return SqlSchedules(self._database, self._waiting, self._tenant)

    def for_tenant(self, tenant: str) -> SqlStore:
        view = copy.copy(self)
        view._tenant = identity.check_tenant(tenant)
        return view

    async def close(self) -> None:
        await bring_to_rest(self._handle)
        await self._database.close()

    def _stored(self, run_id: str) -> str:
        return identity.stored_id(self._tenant, identity.check_run_id(run_id))

    async def _find(self, run_id: str) -> Row | None:
        (rows,) = await self._database.read([Statement("read_run", (self._stored(run_id),))])
        return rows[0] if rows else None


def _unknown(run_id: str) -> RunNotFoundError:
    return RunNotFoundError(f"there is no run {run_id!r}")


def _place(delivery: DeliveryRecord) -> tuple[str, int]:
    return (delivery.run_id, delivery.position)
