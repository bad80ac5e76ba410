"""Sessions among runs in memory: whose they are, whose turn it is, and which turn stands behind.

In a session one turn is in flight at a time. Those that wait for its place stand in line, in the
order in which they were queued, and nobody gets in before them.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from perdure.core import transitions
from perdure.core.records import RunRecord
from perdure.core.rundata import RunData
from perdure.errors import RunNotFoundError, SessionBusyError
from perdure.store.entry import Opening

Session = tuple[str, str]
"""The tenant and the id of a session."""


class SessionData(NamedTuple):
    """One session: its owner, and the run that has its place."""

    owner_id: str | None
    active_run_id: str | None
    created_at: str
    updated_at: str


class Places:
    """The turns of one session in order: turn, revision, stored id."""

    def __init__(self) -> None:
        self._ordered: list[tuple[int, int, str]] = []
        self._known: dict[str, tuple[int, int, str]] = {}

    def __contains__(self, stored_id: str) -> bool:
        return stored_id in self._known

    def __iter__(self) -> Iterator[tuple[int, int, str]]:
        return iter(self._ordered)

    def get(self, stored_id: str) -> tuple[int, int] | None:
        place = self._known.get(stored_id)
        return None if place is None else place[:2]

    def put(self, stored_id: str, turn_index: int, revision: int) -> None:
        self.remove(stored_id)
        self._known[stored_id] = place = (turn_index, revision, stored_id)
        insort(self._ordered, place)

    def remove(self, stored_id: str) -> None:
        place = self._known.pop(stored_id, None)
        if place is not None:
            del self._ordered[bisect_left(self._ordered, place)]

    def of_turn(self, turn_index: int | None) -> list[str]:
        """Return the stored ids of a turn's revisions, or (None) of all turns, in order."""
        if turn_index is None:
            return [stored_id for *_, stored_id in self._ordered]
        first = bisect_left(self._ordered, (turn_index, 0, ""))
        last = bisect_left(self._ordered, (turn_index + 1, 0, ""))
        return [stored_id for *_, stored_id in self._ordered[first:last]]

    def before(self, turn_index: int) -> Iterator[str]:
        """Yield the stored ids of earlier turns, the newest revision of the latest turn first."""
        for number in range(bisect_left(self._ordered, (turn_index, 0, "")) - 1, -1, -1):
            yield self._ordered[number][2]


class Sessions:
    """The sessions of a memory store."""

    def __init__(self) -> None:
        self.runs: dict[str, RunData] = {}
        self.sessions: dict[Session, SessionData] = {}
        self._places: dict[Session, Places] = {}
        self._line: dict[Session, dict[str, None]] = {}

    def find(self, stored_id: str) -> RunData | None:
        """Return the run that is stored under an id."""
        return self.runs.get(stored_id)

    def run_at(self, stored_id: str) -> RunRecord | None:
        """Return the bare record of the run that is stored under an id."""
        data = self.runs.get(stored_id)
        return None if data is None else data.run

    def owner_of(self, run: RunRecord) -> str | None:
        if run.session_id is None:
            return None
        session = self.sessions.get((run.tenant, run.session_id))
        return None if session is None else session.owner_id

    def check_owner(self, opening: Opening) -> None:
        """Raise RunNotFoundError if the session belongs to somebody else."""
        session = self._session(opening)
        if session is None or session.owner_id is None:
            return
        if opening.session is None or opening.session.owner_id != session.owner_id:
            raise RunNotFoundError(f"there is no run {opening.run_id!r}")

    def enter_session(self, opening: Opening, now: str) -> None:
        """Give the session's place to the run, or raise SessionBusyError."""
        key = opening.session
        if key is None:
            return
        session = (opening.tenant, key.session_id)
        if not self._may_enter(session, opening.stored_id, self.run_at(opening.stored_id)):
            raise SessionBusyError(
                f"another turn of the session {key.session_id!r} is in flight, or in line"
            )
        known = self._session(opening) or SessionData(key.owner_id, None, now, now)
        self.sessions[session] = known._replace(active_run_id=opening.stored_id, updated_at=now)

    def touch_session(self, opening: Opening, now: str) -> None:
        """Make the session known without giving its place away."""
        key = opening.session
        if key is not None and self._session(opening) is None:
            self.sessions[opening.tenant, key.session_id] = SessionData(
                key.owner_id, None, now, now
            )

    def session_is_free(self, run: RunRecord, stored_id: str) -> bool:
        if run.session_id is None:
            return True
        return self._may_enter((run.tenant, run.session_id), stored_id, run)

    def note_turn(self, stored_id: str, run: RunRecord) -> None:
        """Remember the place of a turn, which may stand in line."""
        if run.session_id is not None and run.turn_index is not None:
            session = (run.tenant, run.session_id)
            places = self._places.setdefault(session, Places())
            places.put(stored_id, run.turn_index, run.revision)
            self._line.setdefault(session, {})[stored_id] = None

    def forget_turn(self, stored_id: str, run: RunRecord) -> None:
        if run.session_id is not None:
            session = (run.tenant, run.session_id)
            self.places_of(session).remove(stored_id)

    def forget_session(self, session: Session) -> None:
        """Remember nothing of a session without turns."""
        for known in (self.sessions, self._places, self._line):
            known.pop(session, None)

    def places_of(self, session: Session) -> Places:
        """Return the turns of a session; some may not be there (any more)."""
        return self._places.get(session) or Places()

    def parent_for(self, run: RunRecord, *, out_of_line: bool = False) -> str | None:
        """Return the parent of a turn that is about to begin, unless it has begun before.

        It is the newest revision of the highest earlier turn that has an answer. One that is
        claimed `out_of_line`, to be stopped, comes behind what may still be answered too.
        """
        if run.epoch > 0 or run.parent_run_id is not None:
            return None
        if run.session_id is None or run.turn_index is None:
            return None
        for stored_id in self.places_of((run.tenant, run.session_id)).before(run.turn_index):
            earlier = self.run_at(stored_id)
            if earlier is None or earlier.session_id != run.session_id:
                continue
            may_be_answered = out_of_line and not _rests(earlier)
            if earlier.state in transitions.TERMINAL_STATES or may_be_answered:
                return earlier.run_id
        return None

    # Parts of the above.

    def _session(self, opening: Opening) -> SessionData | None:
        key = opening.session
        return None if key is None else self.sessions.get((opening.tenant, key.session_id))

    def _may_enter(self, session: Session, stored_id: str, run: RunRecord | None) -> bool:
        known = self.sessions.get(session)
        active = None if known is None else known.active_run_id
        if active is not None and active != stored_id and self._is_busy(active):
            return False
        if run is not None and run.state != "queued" and not _rests(run):
            return True
        line = self._in_line(session)
        if run is not None and run.state == "queued":
            mine = transitions.queue_order(run)
            line = [queued for queued in line if transitions.queue_order(queued) < mine]
        return not line

    def _is_busy(self, stored_id: str) -> bool:
        run = self.run_at(stored_id)
        return run is not None and run.state != "queued" and not _rests(run)

    def _in_line(self, session: Session) -> Sequence[RunRecord]:
        """Return the turns of a session that are queued."""
        queued: list[RunRecord] = []
        for stored_id in self._line_candidates(session):
            run = self.run_at(stored_id)
            if run is not None and run.state == "queued":
                queued.append(run)
            else:
                self._line.get(session, {}).pop(stored_id, None)
        return queued

    def _line_candidates(self, session: Session) -> Iterable[str]:
        return list(self._line.get(session, ()))


def _rests(run: RunRecord) -> bool:
    return run.state in transitions.RESTING_STATES
