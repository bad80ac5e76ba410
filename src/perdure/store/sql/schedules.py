"""The schedules of an SQL database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from perdure.core.jsonvalue import decode_value
from perdure.core.recordjson import manifest_from_json
from perdure.store import scheduling
from perdure.store.scheduling import Firing, Schedule, Upcoming
from perdure.store.sql.claims import enqueue_statement
from perdure.store.sql.database import Database, Refused, Row, Statement
from perdure.store.waiting import Waiting

_SOONEST: Final = "upcoming_schedules"


class SqlSchedules:
    """`Schedules` of one handle, or its view of a tenant, on an SQL database."""

    def __init__(self, database: Database, waiting: Waiting, tenant: str) -> None:
        self._database = database
        self._waiting = waiting
        self._tenant = tenant

    async def put(self, schedule: Schedule) -> Schedule:
        values = (
            self._tenant,
            schedule.name,
            schedule.task,
            scheduling.template_of(schedule, self._tenant).manifest_text,
            schedule.cron,
            schedule.every_ms,
            schedule.timezone,
            schedule.catch_up,
            schedule.overlap,
            schedule.next_due_at,
        )
        ((row,),) = await self._database.run([Statement("put_schedule", values)])
        return _schedule(row)

    async def find(self, name: str) -> Schedule | None:
        (rows,) = await self._database.read([Statement("find_schedule", (self._tenant, name))])
        return _schedule(rows[0]) if rows else None

    async def list(self) -> Sequence[Schedule]:
        (rows,) = await self._database.read([Statement("list_schedules", (self._tenant,))])
        return [_schedule(row) for row in rows]

    async def pause(self, name: str) -> Schedule | None:
        return await self._change(Statement("pause_schedule", (self._tenant, name)))

    async def resume(self, name: str, *, next_due_at: str) -> Schedule | None:
        return await self._change(Statement("resume_schedule", (self._tenant, name, next_due_at)))

    async def _change(self, change: Statement) -> Schedule | None:
        find = Statement("find_schedule", change.values[:2])
        _, rows = await self._database.run([change, find])
        return _schedule(rows[0]) if rows else None

    async def remove(self, name: str) -> bool:
        (rows,) = await self._database.run([Statement("remove_schedule", (self._tenant, name))])
        return bool(rows)

    async def upcoming(self, tasks: Sequence[str], *, limit: int) -> Upcoming:
        looks = [Statement(_SOONEST, (task, max(limit, 0))) for task in tasks]
        nows, *lists = await self._database.read([Statement("read_now", ()), *looks])
        found = [_schedule(row) for rows in lists for row in rows]
        return Upcoming(str(nows[0][0]), scheduling.soonest(found, tasks, limit))

    async def fire(self, schedule: Schedule, *, next_due_at: str, firing: Firing | None) -> bool:
        opening = None if firing is None else scheduling.firing_of(schedule, firing)
        values = (
            schedule.tenant,
            schedule.name,
            schedule.next_due_at,
            next_due_at,
            None if opening is None else opening.run_id,
        )
        statements = [Statement("fire_schedule", values, required=True)]
        if opening is not None:
            statements.append(enqueue_statement(opening)._replace(required=False))
        try:
            await self._database.run(statements)
        except Refused:
            return False
        if opening is not None:
            self._waiting.changed(opening.stored_id, may_be_due=True)
        return True


def _schedule(row: Row) -> Schedule:
    """Return the schedule of a row that has SCHEDULE_COLUMNS."""
    return Schedule._make((*row[:2], manifest_from_json(decode_value(row[2])), *row[3:]))
