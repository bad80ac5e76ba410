"""Looking after a folder of logs: the calls, which its thread answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from perdure.core.records import DeliveryRecord, DeliveryState, RunRecord
from perdure.store.filehandle import FileHandle
from perdure.store.ledger import Grouping, Tallies, UsagePage, UsageQuery, UsageSum, is_unpriced
from perdure.store.upkeep import Edge, Found, RunQuery, Survey


class FileUpkeep:
    """`Upkeep` of one handle on a folder."""

    def __init__(self, inside: FileHandle) -> None:
        self._inside = inside
        self._tending = inside.tending

    async def now(self) -> str:
        return await self._inside.run(self._tending.now)

    async def find_runs(
        self, wanted: RunQuery, *, after: str | None = None, limit: int = 50
    ) -> Sequence[RunRecord]:
        return await self._inside.run(partial(self._tending.find_runs, wanted, after, limit))

    async def skip_runs(
        self, count: int, *, tenant: str | None = None, after: str | None = None
    ) -> Edge | None:
        return await self._inside.run(partial(self._tending.skip_runs, count, tenant, after))

    async def find_framed(self, ended_by: str, *, after: str | None = None, limit: int) -> Found:
        return await self._inside.run(partial(self._tending.find_framed, ended_by, after, limit))

    async def find_ended(self, ended_by: str, *, after: str | None = None, limit: int) -> Found:
        return await self._inside.run(partial(self._tending.find_ended, ended_by, after, limit))

    async def remove_ended(self, run_ids: Sequence[str], ended_by: str) -> Sequence[str]:
        removed = await self._inside.run(partial(self._tending.remove_ended, run_ids, ended_by))
        for run_id in removed:
            self._inside.waiting.changed(run_id, may_be_due=False)
        return removed

    async def find_deliveries(
        self, state: DeliveryState, *, after: DeliveryRecord | None = None, limit: int = 50
    ) -> Sequence[DeliveryRecord]:
        return await self._inside.run(partial(self._tending.find_deliveries, state, after, limit))

    async def retry_delivery(self, run_id: str, position: int) -> DeliveryRecord | None:
        retry = partial(self._tending.retry_delivery, run_id, position)
        delivery = await self._inside.run(retry)
        if delivery is not None:
            self._inside.waiting.changed(run_id, may_be_due=True)
        return delivery

    async def survey(self) -> Survey:
        return await self._inside.run(self._tending.survey)

    async def sum_usage(
        self, by: Grouping | None, wanted: UsageQuery, *, limit: int | None = None
    ) -> Sequence[UsageSum]:
        tallies = Tallies(by)
        page = await self._usage(wanted, None)
        tallies.add(page.entries)
        while page.after is not None:
            page = await self._usage(wanted, page.after)
            tallies.add(page.entries)
        return tallies.sums(limit)

    async def find_unpriced(
        self, wanted: UsageQuery, *, after: str | None = None, limit: int = 1_000
    ) -> UsagePage:
        page = await self._usage(wanted, after)
        return page._replace(entries=[each for each in page.entries if is_unpriced(each.usage)])

    async def _usage(self, wanted: UsageQuery, after: str | None) -> UsagePage:
        return await self._inside.run(partial(self._tending.find_usage, wanted, after))
