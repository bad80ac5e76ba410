"""Looking after an SQL database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Sequence
from typing import Final

from perdure.core.records import DeliveryRecord, DeliveryState, RunRecord
from perdure.errors import RunNotFoundError
from perdure.store.ledger import Grouping, UsagePage, UsageQuery, UsageSum
from perdure.store.sql.database import Database, Refused, Row, Statement
from perdure.store.sql.ledger import (
    NewestGroup,
    NewestGroups,
    after_text,
    place_of,
    sums_of,
    usage_entry,
)
from perdure.store.sql.rows import delivery_record, owner_of, run_record
from perdure.store.upkeep import Edge, Found, RunQuery, Survey
from perdure.store.waiting import Waiting

_REST: Final = (
    "delete_steps",
    "delete_events",
    "delete_attempts",
    "delete_frames",
    "delete_deliveries",
    "delete_usage",
)
"""What goes with a run."""


_MANY: Final = ("run", "session")
"""Of these groups there may be as many as calls: the newest are found, and added up alone."""
_NEWEST_PAGE: Final = 1_000
_NEWEST_PAGES_MAX: Final = 20


class SqlUpkeep:
    """`Upkeep` of one handle on an SQL database."""

    def __init__(self, database: Database, waiting: Waiting) -> None:
        self._database = database
        self._waiting = waiting

    async def now(self) -> str:
        (rows,) = await self._database.read([Statement("read_now", ())])
        return str(rows[0][0])

    async def find_runs(
        self, wanted: RunQuery, *, after: str | None = None, limit: int = 50
    ) -> Sequence[RunRecord]:
        find = Statement(_search_of(wanted), (*wanted, after, max(limit, 0)))
        if after is None:
            (rows,) = await self._database.read([find])
        else:
            known, rows = await self._database.read([Statement("read_run", (after,)), find])
            if not known:
                raise RunNotFoundError(f"there is no run {after!r} to go on behind")
        return [run_record(row, owner_id=owner_of(row)) for row in rows]

    async def skip_runs(
        self, count: int, *, tenant: str | None = None, after: str | None = None
    ) -> Edge | None:
        if count < 1:
            return None
        values = (after, count - 1)
        skip = (
            Statement("skip_runs", values)
            if tenant is None
            else Statement("skip_tenant_runs", (*values, tenant))
        )
        known: list[Statement] = [] if after is None else [Statement("read_run", (after,))]
        rows, *found = await self._database.read([skip, *known])
        if found == [[]]:
            raise RunNotFoundError(f"there is no run {after!r} to go on behind")
        return Edge(*rows[0]) if rows else None

    async def find_framed(self, ended_by: str, *, after: str | None = None, limit: int) -> Found:
        values = (ended_by, after or "", max(limit, 1))
        (rows,) = await self._database.read([Statement("next_framed", values)])
        found = [str(run_id) for run_id, may_go in rows if may_go]
        return Found(found, str(rows[-1][0]) if len(rows) == max(limit, 1) else None)

    async def find_ended(self, ended_by: str, *, after: str | None = None, limit: int) -> Found:
        moment, _, run_id = (after or "").partition(" ")
        values = (ended_by, moment, run_id, max(limit, 1))
        (rows,) = await self._database.read([Statement("find_ended", values)])
        is_last = len(rows) < max(limit, 1)
        return Found([str(row[1]) for row in rows], None if is_last else " ".join(rows[-1]))

    async def remove_ended(self, run_ids: Sequence[str], ended_by: str) -> Sequence[str]:
        lists = [
            [
                Statement("remove_ended", (ended_by, run_id), required=True),
                *(Statement(name, (run_id,)) for name in _REST),
            ]
            for run_id in run_ids
        ]
        # Put into the queue together, they share a transaction.
        done = await asyncio.gather(*(_happened(self._database.run(each)) for each in lists))
        removed = [run_id for run_id, happened in zip(run_ids, done, strict=True) if happened]
        for run_id in removed:
            self._waiting.changed(run_id, may_be_due=False)
        return removed

    async def find_deliveries(
        self, state: DeliveryState, *, after: DeliveryRecord | None = None, limit: int = 50
    ) -> Sequence[DeliveryRecord]:
        edge = ("", -1) if after is None else (after.run_id, after.position)
        name = "find_deliveries" if state == "delivered" else "find_open_deliveries"
        (rows,) = await self._database.read([Statement(name, (state, *edge, max(limit, 0)))])
        return [delivery_record(row) for row in rows]

    async def retry_delivery(self, run_id: str, position: int) -> DeliveryRecord | None:
        (rows,) = await self._database.run([Statement("retry_delivery", (run_id, position))])
        if not rows:
            return None
        self._waiting.changed(run_id, may_be_due=True)
        return delivery_record(rows[0])

    async def survey(self) -> Survey:
        nows, runs, deliveries = await self._database.read(
            [Statement(name, ()) for name in ("read_now", "count_runs", "count_deliveries")]
        )
        open_ones: dict[str, Row] = {row[0]: row for row in deliveries}
        _, waiting, due_at = open_ones.get("waiting", ("waiting", 0, None))
        return Survey(
            now=nows[0][0],
            runs={state: count for state, count, _ in runs},
            newest_at=max((row[2] for row in runs), default=None),
            waiting=waiting,
            due_at=due_at,
            dead=open_ones["dead"][1] if "dead" in open_ones else 0,
        )

    async def sum_usage(
        self, by: Grouping | None, wanted: UsageQuery, *, limit: int | None = None
    ) -> Sequence[UsageSum]:
        most = None if limit is None else max(limit, 0)
        if most and by in _MANY and wanted.tenant is None and wanted.session_id is None:
            newest = await self._newest_groups(by, wanted, most)
            if newest is not None:
                return await self._sums_of_groups(by, wanted, newest)
        (rows,) = await self._database.read([Statement("sum_usage", (*wanted, by, most))])
        return sums_of(by, rows)

    async def _newest_groups(
        self, by: Grouping, wanted: UsageQuery, most: int
    ) -> Sequence[NewestGroup] | None:
        """Return the groups of the newest calls; None if those are too many, or of no group."""
        newest = NewestGroups(by, most)
        for _ in range(_NEWEST_PAGES_MAX):
            values = (wanted.since, wanted.until, *newest.edge, _NEWEST_PAGE)
            (rows,) = await self._database.read([Statement("find_newest_calls", values)])
            is_enough = newest.take(rows)
            if newest.has_nameless:
                return None
            if is_enough or len(rows) < _NEWEST_PAGE:
                return newest.groups
        return None

    async def _sums_of_groups(
        self, by: Grouping, wanted: UsageQuery, groups: Sequence[NewestGroup]
    ) -> Sequence[UsageSum]:
        listed = json.dumps([[key] if by == "run" else [key, tenant] for key, tenant in groups])
        values = (wanted.since, wanted.until, listed)
        (rows,) = await self._database.read([Statement(f"sum_{by}s", values)])
        known = set(groups)
        return [each for each in sums_of(by, rows) if (each.key, each.tenant) in known]

    async def find_unpriced(
        self, wanted: UsageQuery, *, after: str | None = None, limit: int = 1_000
    ) -> UsagePage:
        is_session = wanted.tenant is not None and wanted.session_id is not None
        name = "find_session_unpriced" if is_session else "find_unpriced"
        values = (*wanted, *place_of(after), max(limit, 1))
        (rows,) = await self._database.read([Statement(name, values)])
        entries = [usage_entry(row) for row in rows]
        return UsagePage(entries, after_text(entries[-1]) if len(rows) == max(limit, 1) else None)


def _search_of(wanted: RunQuery) -> str:
    """Return the statement whose index leads to the wanted runs."""
    if wanted.session_id is not None and wanted.tenant is not None:
        return "find_session_runs"
    if wanted.state not in (None, "completed", "stopped"):
        return "find_unfinished_runs"
    if wanted.tenant is not None:
        return "find_tenant_runs"
    return "find_runs"


async def _happened(running: Awaitable[object]) -> bool:
    try:
        await running
    except Refused:
        return False
    return True
