"""What a handle reads in its folder, one method for each call of RunStore, run by its thread."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from perdure.core import identity
from perdure.core.frames import Frame, decode_row
from perdure.core.records import EventRecord, RunDetails, RunRecord, StepRecord
from perdure.core.rundata import FrameRow
from perdure.errors import RunNotFoundError
from perdure.store.filedata import FileData, unknown
from perdure.store.listing import Wanted, list_order
from perdure.store.memorydata import listed_record


class FileReads:
    """The calls that change nothing, and need no lock. Belongs to one thread."""

    def __init__(self, data: FileData) -> None:
        self._data = data

    def run(self, stored_id: str) -> RunRecord | None:
        data = self._data.load(stored_id)
        return None if data is None else self._data.record(data)

    def steps(self, stored_id: str) -> Sequence[StepRecord]:
        data = self._data.load(stored_id)
        return [] if data is None else data.all_steps()

    def event(self, stored_id: str, key: str) -> EventRecord | None:
        data = self._data.load(stored_id)
        return data.event(key) if data is not None and key in data.events else None

    def frames(self, stored_id: str, after: int, limit: int) -> Sequence[Frame]:
        data = self._data.load(stored_id)
        rows: Sequence[FrameRow] = () if data is None else data.rows
        found: list[Frame] = []
        for number in range(bisect_right(rows, after, key=_last_seq), len(rows)):
            if len(found) >= limit:
                break
            row = rows[number]
            frames = decode_row(row.first_seq, row.epoch, row.body)
            found.extend(frame for frame in frames if frame.seq > after)
        return found

    def details(self, stored_id: str, run_id: str) -> RunDetails:
        data = self._data.load(stored_id)
        if data is None:
            raise unknown(run_id)
        return data.details()

    def listed(self, wanted: Wanted) -> list[RunRecord]:
        if wanted.ancestors_of is not None:
            line = self._data.ancestors(wanted, wanted.ancestors_of)
            self._data.trim()
            return line
        edge: tuple[object, ...] | None = None
        if wanted.after is not None:
            last = self._data.load(identity.stored_id(wanted.tenant, wanted.after))
            if last is None:
                raise RunNotFoundError(f"there is no run {wanted.after!r} to go on from")
            edge = list_order(last.run, wanted.session_id)
        found: list[RunRecord] = []
        for order, stored_id in sorted(self._candidates(wanted)):
            if len(found) == wanted.limit:
                break
            if edge is not None and order <= edge:
                continue
            data = self._data.load(stored_id)
            # What was read of it first may be old news.
            if data is not None and wanted.state in (None, data.run.state):
                found.append(listed_record(self._data, data, wanted))
            self._data.trim()
        return found

    def _candidates(self, wanted: Wanted) -> Iterable[tuple[tuple[object, ...], str]]:
        """Yield the order and the stored id of each run that the list may have."""
        if wanted.session_id is not None:
            turns = self._data.places_of((wanted.tenant, wanted.session_id))
            for stored_id in turns.of_turn(wanted.turn_index):
                place = turns.get(stored_id) or (0, 0)
                yield (*place, identity.logical_id(stored_id)[1]), stored_id
            return
        index = self._data.index
        index.catch_up()
        for stored_id, listed in index.closed_runs.items():
            if listed.tenant == wanted.tenant and wanted.state in (None, listed.state):
                yield (listed.created_at, listed.run_id), stored_id
        for stored_id in list(index.open_runs):
            run = self._data.peek(stored_id)
            if run is not None and run.tenant == wanted.tenant:
                yield list_order(run, None), stored_id


def _last_seq(row: FrameRow) -> int:
    return row.last_seq
