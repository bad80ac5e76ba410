"""What a handle does to look after its folder, one method for each call, run by its thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from itertools import islice
from typing import Final

from perdure.core import identity
from perdure.core.records import DeliveryRecord, DeliveryState, RunRecord
from perdure.core.rundata import RunData
from perdure.core.transitions import ENDED_STATES, TERMINAL_STATES
from perdure.errors import RunNotFoundError, StoreCorruptError
from perdure.store.filedata import FileData, session_of
from perdure.store.filework import FileWork
from perdure.store.ledger import UsageEntry, UsagePage, UsageQuery
from perdure.store.memoryupkeep import (
    edge_of,
    frames_may_go,
    has_ended,
    matches,
    may_go,
    newest_order,
    survey_of,
    wanted_entries,
)
from perdure.store.upkeep import Edge, Found, RunQuery, Survey

LOOKED_MAX: Final = 500
"""So many logs are read for one page, so that the thread is soon free for others."""


class FileTending:
    """The searches and clean-ups of one handle. Belongs to its thread."""

    def __init__(self, data: FileData, work: FileWork) -> None:
        self._data = data
        self._work = work
        self._bare: set[tuple[str, str]] = set()
        """Runs without frames that have ended, with their creation: they never get any."""

    def now(self) -> str:
        return self._data.now()

    def _load(self, stored_id: str) -> RunData | None:
        """Return the run; one with a damaged log is passed over, and told of once."""
        if self._data.peek_for_sweep(stored_id) is None:
            return None
        return self._data.load(stored_id)

    def find_runs(self, wanted: RunQuery, after: str | None, limit: int) -> Sequence[RunRecord]:
        edge = self._place(after)
        found: list[RunRecord] = []
        for order in sorted(self._orders(wanted), reverse=True):
            if len(found) >= limit:
                break
            if edge is not None and order >= edge:
                continue
            data = self._load(order[1])
            if data is not None and matches(data.run, wanted):
                found.append(self._data.record(data))
            self._data.trim()
        return found

    def _place(self, run_id: str | None) -> tuple[str, str] | None:
        if run_id is None:
            return None
        last = self._data.load(run_id)
        if last is None:
            raise RunNotFoundError(f"there is no run {run_id!r} to go on behind")
        return newest_order(last.run)

    def skip_runs(self, count: int, tenant: str | None, after: str | None) -> Edge | None:
        return edge_of(self._orders(RunQuery(tenant=tenant)), count, self._place(after))

    def _orders(self, wanted: RunQuery) -> Iterator[tuple[str, str]]:
        """Yield the places of the runs that may be wanted, by what is known without their logs."""
        index = self._data.index
        index.catch_up()
        for stored_id, listed in index.closed_runs.items():
            if (
                wanted.tenant in (None, listed.tenant)
                and wanted.state in (None, listed.state)
                and (wanted.since is None or listed.created_at >= wanted.since)
            ):
                yield listed.created_at, stored_id
        for stored_id in list(index.open_runs):
            run = self._data.peek_for_sweep(stored_id)
            if run is not None and matches(run, wanted):
                yield newest_order(run)

    def find_framed(self, ended_by: str, after: str | None, limit: int) -> Found:
        def chosen(data: RunData) -> bool:
            if data.rows:
                return frames_may_go(data.run, ended_by)
            if data.run.state in TERMINAL_STATES:
                stored_id = identity.stored_id(data.run.tenant, data.run.run_id)
                self._bare.add((stored_id, data.run.created_at))
            return False

        return self._page(ended_by, after, limit, chosen, skipped=self._bare)

    def find_ended(self, ended_by: str, after: str | None, limit: int) -> Found:
        busy: dict[tuple[str, str], bool] = {}

        def chosen(data: RunData) -> bool:
            return may_go(data, ended_by, set()) and not self._in_busy_session(data, ended_by, busy)

        return self._page(ended_by, after, limit, chosen)

    def _page(
        self,
        ended_by: str,
        after: str | None,
        limit: int,
        chosen: Callable[[RunData], bool],
        skipped: Set[tuple[str, str]] = frozenset(),
    ) -> Found:
        found: list[str] = []
        last: str | None = None
        candidates = sorted(
            stored_id
            for stored_id, created_at in self._ended_before(ended_by)
            if (after is None or stored_id > after) and (stored_id, created_at) not in skipped
        )
        for stored_id in islice(candidates, LOOKED_MAX):
            if len(found) >= limit:
                break
            last = stored_id
            data = self._load(stored_id)
            if data is not None and chosen(data):
                found.append(stored_id)
            self._data.trim()
        is_last = last is None or last == candidates[-1]
        return Found(found, None if is_last else last)

    def _ended_before(self, ended_by: str) -> Iterator[tuple[str, str]]:
        """Yield what may have ended by then, with its creation: nothing ends before it begins."""
        index = self._data.index
        index.catch_up()
        for stored_id, listed in index.closed_runs.items():
            if listed.created_at <= ended_by:
                yield stored_id, listed.created_at
        for stored_id in list(index.open_runs):
            run = self._data.peek_for_sweep(stored_id)
            if run is not None and run.state in ENDED_STATES:
                yield stored_id, run.created_at

    def _in_busy_session(
        self, data: RunData, ended_by: str, known: dict[tuple[str, str], bool]
    ) -> bool:
        run = data.run
        if run.session_id is None:
            return False
        key = (run.tenant, run.session_id)
        if key not in known:
            turns = list(self._data.places_of(key))
            known[key] = any(self._may_go_on(stored_id, ended_by) for *_, stored_id in turns)
        return known[key]

    def _may_go_on(self, stored_id: str, ended_by: str) -> bool:
        try:
            run = self._data.peek(stored_id)
        except StoreCorruptError:
            return True  # Nobody knows, before its log is mended.
        return run is not None and not has_ended(run, ended_by)

    def remove_ended(self, run_ids: Sequence[str], ended_by: str) -> Sequence[str]:
        return [run_id for run_id in run_ids if self._remove(run_id, ended_by)]

    def _remove(self, stored_id: str, ended_by: str) -> bool:
        data = self._data.load(stored_id)
        if data is None:
            return False
        key = session_of(self._data.opening_of(stored_id, data))
        with (
            self._data.session_locked(key) as session_file,
            self._data.run_locked(stored_id) as file,
        ):
            data = self._data.runs.get(stored_id)
            if file is None or data is None or not may_go(data, ended_by, set()):
                return False
            if self._in_busy_session(data, ended_by, {}):
                return False
            self._work.remove(stored_id, file, key, session_file)
            return True

    def find_deliveries(
        self, state: DeliveryState, after: DeliveryRecord | None, limit: int
    ) -> Sequence[DeliveryRecord]:
        edge = ("", -1) if after is None else (after.run_id, after.position)
        found: list[DeliveryRecord] = []
        for stored_id in sorted(self._delivering(state)):
            if len(found) >= limit:
                break
            data = self._load(stored_id) if stored_id >= edge[0] else None
            for position in () if data is None else sorted(data.deliveries):
                is_wanted = data is not None and data.deliveries[position].state == state
                if data is not None and is_wanted and (stored_id, position) > edge:
                    found.append(data.delivery(position))
            self._data.trim()
        return found[: max(limit, 0)]

    def _delivering(self, state: DeliveryState) -> Iterator[str]:
        """Yield the runs that may have such deliveries: what waits keeps its run open."""
        index = self._data.index
        index.catch_up()
        yield from list(index.open_runs)
        if state != "waiting":
            yield from list(index.closed_runs)

    def retry_delivery(self, stored_id: str, position: int) -> DeliveryRecord | None:
        return self._work.retry_delivery(stored_id, position)

    def survey(self) -> Survey:
        return survey_of(self._all(), self._data.now())

    def find_usage(self, wanted: UsageQuery, after: str | None) -> UsagePage:
        """Return the wanted model calls of so many runs as are read for one page."""
        found: list[UsageEntry] = []
        candidates = sorted(run_id for run_id in self._calling(wanted) if run_id > (after or ""))
        page = candidates[:LOOKED_MAX]
        for stored_id in page:
            data = self._load(stored_id)
            if data is not None:
                found += wanted_entries(data, wanted)
            self._data.trim()
        return UsagePage(found, page[-1] if len(candidates) > len(page) else None)

    def _calling(self, wanted: UsageQuery) -> Iterator[str]:
        """Yield the runs that may have such calls: none is made before its run is created."""
        index = self._data.index
        index.catch_up()
        yield from list(index.open_runs)
        for stored_id, listed in index.closed_runs.items():
            begins = wanted.until is None or listed.created_at < wanted.until
            if begins and wanted.tenant in (None, listed.tenant):
                yield stored_id

    def _all(self) -> Iterator[RunData]:
        index = self._data.index
        index.catch_up()
        for stored_id in [*index.open_runs, *index.closed_runs]:
            data = self._load(stored_id)
            if data is not None:
                yield data
            self._data.trim()
