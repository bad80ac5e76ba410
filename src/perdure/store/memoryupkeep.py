"""Looking after a store in memory."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from perdure.core import identity
from perdure.core.records import DeliveryRecord, DeliveryState, RunRecord, RunState
from perdure.core.rundata import RunData
from perdure.core.transitions import ENDED_STATES, TERMINAL_STATES
from perdure.errors import RunNotFoundError
from perdure.store.ledger import (
    Grouping,
    Tallies,
    UsageEntry,
    UsagePage,
    UsageQuery,
    UsageSum,
    is_unpriced,
    is_wanted,
)
from perdure.store.memorydata import HandleState, MemoryData
from perdure.store.upkeep import Edge, Found, RunQuery, Survey


class MemoryUpkeep:
    """`Upkeep` of one handle on data in memory."""

    def __init__(self, data: MemoryData, state: HandleState, now: Callable[[], str]) -> None:
        self._data = data
        self._state = state
        self._now = now

    async def now(self) -> str:
        self._state.check()
        return self._now()

    async def find_runs(
        self, wanted: RunQuery, *, after: str | None = None, limit: int = 50
    ) -> Sequence[RunRecord]:
        self._state.check()
        with self._data.lock:
            edge = None if after is None else newest_order(self._known(after).run)
            chosen = [
                data
                for data in self._data.runs.values()
                if matches(data.run, wanted) and (edge is None or newest_order(data.run) < edge)
            ]
            chosen.sort(key=lambda data: newest_order(data.run), reverse=True)
            return [self._data.record(data) for data in chosen[: max(limit, 0)]]

    async def skip_runs(
        self, count: int, *, tenant: str | None = None, after: str | None = None
    ) -> Edge | None:
        self._state.check()
        with self._data.lock:
            edge = None if after is None else newest_order(self._known(after).run)
            orders = [
                newest_order(data.run)
                for data in self._data.runs.values()
                if tenant in (None, data.run.tenant)
            ]
        return edge_of(orders, count, edge)

    async def find_framed(self, ended_by: str, *, after: str | None = None, limit: int) -> Found:
        self._state.check()
        with self._data.lock:
            return self._page(
                after,
                limit,
                lambda data: bool(data.rows) and frames_may_go(data.run, ended_by),
            )

    async def find_ended(self, ended_by: str, *, after: str | None = None, limit: int) -> Found:
        self._state.check()
        with self._data.lock:
            busy = self._busy_sessions(ended_by)
            return self._page(after, limit, lambda data: may_go(data, ended_by, busy))

    async def remove_ended(self, run_ids: Sequence[str], ended_by: str) -> Sequence[str]:
        self._state.check()
        removed: list[str] = []
        with self._data.lock:
            busy = self._busy_sessions(ended_by)
            for run_id in run_ids:
                data = self._data.runs.get(run_id)
                if data is not None and may_go(data, ended_by, busy):
                    del self._data.runs[run_id]
                    self._data.forget_turn(run_id, data.run)
                    self._data.changed(run_id)
                    removed.append(run_id)
        return removed

    async def find_deliveries(
        self, state: DeliveryState, *, after: DeliveryRecord | None = None, limit: int = 50
    ) -> Sequence[DeliveryRecord]:
        self._state.check()
        edge = ("", -1) if after is None else (after.run_id, after.position)
        with self._data.lock:
            places = sorted(
                (run_id, position)
                for run_id, data in self._data.runs.items()
                for position, delivery in data.deliveries.items()
                if delivery.state == state and (run_id, position) > edge
            )
            return [
                self._data.runs[run_id].delivery(position)
                for run_id, position in places[: max(limit, 0)]
            ]

    async def retry_delivery(self, run_id: str, position: int) -> DeliveryRecord | None:
        self._state.check()
        with self._data.lock:
            data = self._data.runs.get(run_id)
            if data is None or not data.retry_delivery(position, self._now()):
                return None
            self._data.changed(run_id)
            return data.delivery(position)

    async def survey(self) -> Survey:
        self._state.check()
        with self._data.lock:
            return survey_of(self._data.runs.values(), self._now())

    async def sum_usage(
        self, by: Grouping | None, wanted: UsageQuery, *, limit: int | None = None
    ) -> Sequence[UsageSum]:
        self._state.check()
        tallies = Tallies(by)
        with self._data.lock:
            for data in self._data.runs.values():
                tallies.add(wanted_entries(data, wanted))
        return tallies.sums(limit)

    async def find_unpriced(
        self, wanted: UsageQuery, *, after: str | None = None, limit: int = 1_000
    ) -> UsagePage:
        self._state.check()
        found: list[UsageEntry] = []
        with self._data.lock:
            run_ids = sorted(run_id for run_id in self._data.runs if run_id > (after or ""))
            for run_id in run_ids:
                entries = wanted_entries(self._data.runs[run_id], wanted)
                found += (entry for entry in entries if is_unpriced(entry.usage))
                if len(found) >= limit:
                    return UsagePage(found, run_id)
        return UsagePage(found, None)

    def _known(self, run_id: str) -> RunData:
        data = self._data.runs.get(run_id)
        if data is None:
            raise RunNotFoundError(f"there is no run {run_id!r} to go on behind")
        return data

    def _page(self, after: str | None, limit: int, chosen: Callable[[RunData], bool]) -> Found:
        found = sorted(
            run_id
            for run_id, data in self._data.runs.items()
            if (after is None or run_id > after) and chosen(data)
        )
        page = found[: max(limit, 0)]
        return Found(page, page[-1] if page and len(found) > len(page) else None)

    def _busy_sessions(self, ended_by: str) -> set[tuple[str, str]]:
        """Return the sessions with a turn that has not ended by then."""
        return {
            (data.run.tenant, data.run.session_id)
            for data in self._data.runs.values()
            if data.run.session_id is not None and not has_ended(data.run, ended_by)
        }


def newest_order(run: RunRecord) -> tuple[str, str]:
    """Return what runs are ordered by, the newest with the greatest."""
    return run.created_at, identity.stored_id(run.tenant, run.run_id)


def edge_of(
    orders: Iterable[tuple[str, str]], count: int, behind: tuple[str, str] | None
) -> Edge | None:
    """Return where `count` of the places behind another one end; None if there are not so many."""
    rest = (order for order in orders if behind is None or order < behind)
    newest = heapq.nlargest(max(count, 0), rest)
    return Edge(*newest[-1]) if 0 < count == len(newest) else None


def matches(run: RunRecord, wanted: RunQuery) -> bool:
    """Return whether the run is one of the wanted."""
    return (
        wanted.tenant in (None, run.tenant)
        and wanted.state in (None, run.state)
        and wanted.session_id in (None, run.session_id)
        and wanted.handler in (None, run.handler)
        and (wanted.since is None or run.created_at >= wanted.since)
    )


def has_ended(run: RunRecord, ended_by: str) -> bool:
    """Return whether the run is over, and was at that moment."""
    return (
        run.state in ENDED_STATES and run.completed_at is not None and run.completed_at <= ended_by
    )


def frames_may_go(run: RunRecord, ended_by: str) -> bool:
    """Return whether nobody needs the frames: a retry would go on behind those of a failure."""
    return run.state in TERMINAL_STATES and has_ended(run, ended_by)


def may_go(data: RunData, ended_by: str, busy: set[tuple[str, str]]) -> bool:
    """Return whether the run is over and done with."""
    run = data.run
    in_busy_session = run.session_id is not None and (run.tenant, run.session_id) in busy
    return has_ended(run, ended_by) and not in_busy_session and not data.has_waiting()


def survey_of(runs: Iterable[RunData], now: str) -> Survey:
    """Return what the runs come to."""
    states: Counter[RunState] = Counter()
    newest_at: str | None = None
    due: list[str] = []
    dead = 0
    for data in runs:
        states[data.run.state] += 1
        newest_at = max(newest_at or "", data.run.updated_at)
        for delivery in data.deliveries.values():
            if delivery.state == "waiting":
                due.append(delivery.due_at or "")
            dead += delivery.state == "dead"
    return Survey(now, dict(states), newest_at, len(due), min(due, default=None), dead)


def wanted_entries(data: RunData, wanted: UsageQuery) -> list[UsageEntry]:
    """Return the wanted model calls of a run."""
    run = data.run
    if wanted.tenant not in (None, run.tenant):
        return []
    stored_id = identity.stored_id(run.tenant, run.run_id)
    entries = (UsageEntry(stored_id, run.tenant, run.session_id, each) for each in data.all_usage())
    return [entry for entry in entries if is_wanted(entry, wanted)]
