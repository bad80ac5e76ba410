"""What one handle knows of a folder: its runs, its sessions, and what memory looks up among them.

Three kinds of logs: `runs/HASH/log` is the truth of one run, `sessions/HASH/log` that of one
session, and `index` tells which runs there are, and which of them somebody may have to work on.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from perdure.core.records import RunRecord
from perdure.errors import RunNotFoundError, StoreBusyError, StoreCorruptError
from perdure.store.entry import Opening
from perdure.store.fileentries import Delete
from perdure.store.filelog import FileLog, flush, locked, open_for_reading
from perdure.store.fileruns import FileRuns, FolderOptions, remove_log
from perdure.store.filetombstones import Tombstone, Tombstones
from perdure.store.sessiondata import Places, SessionData

logger = logging.getLogger("perdure.store")

SESSIONS_KEPT: Final = 10_000
"""So many sessions are kept in memory."""
_dumps = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class SessionFile:
    """The log of one session; `turns` have their places, as turn and revision.

    `founder` is the turn by which the session began, until a later line or its deletion shows
    that this turn was recorded: a session that died with its first turn never was.
    """

    def __init__(self, path: str) -> None:
        self.log = FileLog(path)
        self.data: SessionData | None = None
        self.turns = Places()
        self.founder: str | None = None


class FileData(FileRuns):
    """The runs and sessions of a folder. Belongs to one thread."""

    def __init__(self, options: FolderOptions) -> None:
        super().__init__(options)
        self.tombstones = Tombstones(options.path, durable=options.durable)
        self._sessions: dict[tuple[str, str], SessionFile] = {}

    def prepare(self) -> None:
        """Make the folder one of runs, and end the erasures that a crash has cut off."""
        super().prepare()
        left = self.tombstones.all()
        for tombstone in left:
            try:
                with self.session_locked(tombstone.key):
                    pass
            except (OSError, StoreBusyError) as error:
                # Whoever holds the lock is at it; who may not write here leaves it to others.
                logger.info("the erasure of a session is left to others: %s", error)
                return
        if left:
            self.index.scrub()

    def trim(self) -> None:
        super().trim()
        while len(self._sessions) > SESSIONS_KEPT:
            self._forget_session(next(iter(self._sessions)))

    @contextmanager
    def session_locked(self, key: tuple[str, str] | None) -> Generator[int | None]:
        """Hold the lock of a session, always before that of a run; of none if `key` is None.

        An erasure of it that was cut off is ended first.
        """
        if key is None:
            yield None
            return
        path, patience_ms = self._session_file(key).log.path, self.options.patience_ms
        with locked(path, create=True, patience_ms=patience_ms) as descriptor:
            assert descriptor is not None
            try:
                self._catch_up_session(key, descriptor)
                if (tombstone := self.tombstones.of(key)) is not None:
                    self.bury(tombstone, descriptor)
                yield descriptor
            finally:
                if os.fstat(descriptor).st_size == 0:
                    remove_log(path)

    def session(self, key: tuple[str, str]) -> SessionData | None:
        """Return the session as it stands in its log now."""
        known = self._session_file(key)
        with open_for_reading(known.log.path) as descriptor:
            found = self._catch_up_session(key, descriptor)
        if not known.log.name:
            self._forget_session(key)
        return found

    def places_of(self, session: tuple[str, str]) -> Places:
        self.session(session)
        return self._session_file(session).turns

    def note_turn(self, stored_id: str, run: RunRecord) -> None:
        """The log of the session has the place, and the index tells what is in line."""

    def _line_candidates(self, session: tuple[str, str]) -> Sequence[str]:
        self.index.catch_up()
        places = self.places_of(session)
        return [stored_id for stored_id in self.index.open_runs if stored_id in places]

    def note_session(
        self, key: tuple[str, str], descriptor: int, turn: str, place: tuple[int, int] | None
    ) -> None:
        """Write down what became of a session. The caller holds its lock.

        `place` is that of the turn, None if the run `turn` is no turn of this session.
        """
        after, known = self.sessions[key], self._session_file(key)
        before = self._visible(known)
        same = before is not None and before.active_run_id == after.active_run_id
        if same and known.turns.get(turn) == place and known.founder is None:
            return
        line: dict[str, Any] = {"key": key, "session": after, "turn": turn, "place": place}
        line["founds"] = before is None
        try:
            # A power cut that took this, and left the run, would let two turns in at once.
            self.write_down(known.log, descriptor, _dumps(line), durable=True)
        except BaseException:
            self._forget_session(key)
            raise
        self._follow_session(known, line)

    def keep_session(self, key: tuple[str, str], descriptor: int, turn: str) -> None:
        """See to it that the session outlives this turn. The caller holds its lock."""
        known = self._session_file(key)
        if known.founder == turn:
            self.note_session(key, descriptor, turn, known.turns.get(turn))

    def all_sessions(self) -> Iterator[tuple[tuple[str, str], str | None]]:
        """Yield every session of which there is a log, also one that never was, with its owner."""
        folder = os.path.join(self.options.path, "sessions")
        for name in sorted(os.listdir(folder)):
            log = FileLog(os.path.join(folder, name, "log"))
            with open_for_reading(log.path) as descriptor:
                texts = log.catch_up(descriptor).texts
            if texts:
                newest = json.loads(texts[-1])
                tenant, session_id = newest["key"]
                yield (tenant, session_id), newest["session"][0]

    def kept_session(self, key: tuple[str, str]) -> SessionData | None:
        """Return what the log of a session says, though it may never have been."""
        self.session(key)
        return self._session_file(key).data

    def bury(self, tombstone: Tombstone, descriptor: int) -> list[str]:
        """Delete a session with its turns; return which there were. The caller holds its lock.

        The log is emptied and not removed: without it nobody would be kept out, and the tombstone
        has yet to go. What comes next writes a log of its own, with another name, into the file.
        """
        removed = [turn for turn in tombstone.turns if self._bury_turn(tombstone.key, turn)]
        os.ftruncate(descriptor, 0)
        if self.options.durable:
            flush(descriptor)
        self._forget_session(tombstone.key)
        self.tombstones.remove(tombstone.key)
        return removed

    def _bury_turn(self, key: tuple[str, str], stored_id: str) -> bool:
        with self.run_locked(stored_id) as file:
            data = self.runs.get(stored_id)
            if file is None or (data is not None and data.run.session_id != key[1]):
                return False
            if data is not None:
                self.accept(stored_id, file, self.now(), Delete())
            # Without data, a crash came between its last line and this.
            remove_log(self.file_of(stored_id).log.path)
            self.forget(stored_id)
            return True

    def owner_of(self, run: RunRecord) -> str | None:
        if run.session_id is None:
            return None
        session = self.session((run.tenant, run.session_id))
        return None if session is None else session.owner_id

    def _session_file(self, key: tuple[str, str]) -> SessionFile:
        known = self._sessions.get(key)
        if known is None:
            path = self.path_to("sessions", json.dumps(key))
            known = self._sessions[key] = SessionFile(path)
        return known

    def _catch_up_session(self, key: tuple[str, str], descriptor: int | None) -> SessionData | None:
        known = self._session_file(key)
        try:
            tail = known.log.catch_up(descriptor)
            if tail.anew:
                known.data, known.turns, known.founder = None, Places(), None
            for text in tail.texts:
                self._follow_session(known, json.loads(text))
        except (KeyError, TypeError, ValueError) as error:
            self._forget_session(key)
            raise StoreCorruptError(f"{known.log.path!r} cannot be followed: {error}") from error
        except BaseException:
            self._forget_session(key)
            raise
        visible = self._visible(known)
        if visible is None:
            self.sessions.pop(key, None)
        else:
            self.sessions[key] = visible
        return visible

    @staticmethod
    def _follow_session(known: SessionFile, line: Mapping[str, Any]) -> None:
        known.data = SessionData(*line["session"])
        known.founder = line["turn"] if line["founds"] else None
        if line["place"] is not None:
            turn, revision = line["place"]
            known.turns.put(line["turn"], turn, revision)

    def _visible(self, known: SessionFile) -> SessionData | None:
        if known.founder is not None and self.peek(known.founder) is None:
            return None
        return known.data

    def _forget_session(self, key: tuple[str, str]) -> None:
        self._sessions.pop(key, None)
        self.sessions.pop(key, None)


def session_of(opening: Opening) -> tuple[str, str] | None:
    """Return the tenant and the id of the session of a turn."""
    return None if opening.session is None else (opening.tenant, opening.session.session_id)


def unknown(run_id: str) -> RunNotFoundError:
    return RunNotFoundError(f"there is no run {run_id!r}")
