"""The index of a folder: which runs there are, and which of them may need a worker.

A run is opened here before it can need one, and closed here after it has come to rest, both under
the run's lock. So no run is overlooked; one that a crash kept from being closed is looked at in
vain, and closed then. Openings are always flushed: a power cut that took one, and left the run,
would hide the run. Of a closed run the index has what lists choose and sort by, so its log stays
unread.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

from perdure.core.records import RunRecord, RunState
from perdure.errors import StoreCorruptError
from perdure.store.filelog import (
    FileLog,
    flush,
    flush_folder,
    locked,
    open_for_reading,
)

LINES_SPARE: Final = 1_000
"""So many lines more than are needed thrice over, and the index is written anew."""
_dumps = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Listed(NamedTuple):
    """What a list chooses and sorts by."""

    tenant: str
    run_id: str
    state: RunState
    created_at: str


class FileIndex:
    """The index as one handle has read it."""

    def __init__(self, path: str, patience_ms: float) -> None:
        self._log = FileLog(path)
        self._patience_ms = patience_ms
        self._open: dict[str, None] = {}
        self._closed: dict[str, Listed] = {}

    @property
    def path(self) -> str:
        return self._log.path

    @property
    def open_runs(self) -> Collection[str]:
        """The stored ids of the runs that may need a worker."""
        return self._open.keys()

    @property
    def closed_runs(self) -> Mapping[str, Listed]:
        """What was at rest when it was last heard of."""
        return self._closed

    def catch_up(self) -> None:
        """Read what was written since."""
        with open_for_reading(self._log.path) as descriptor:
            self._read(descriptor)

    def make(self) -> None:
        """See to it that there is an index."""
        self._append()

    def open_run(self, stored_id: str) -> None:
        """Announce, before it is so, that a run may need a worker."""
        self._append({"open": stored_id})

    def close_run(self, stored_id: str, run: RunRecord | None) -> None:
        """Note that a run has come to rest, or (None) that it was deleted."""
        if run is None:
            self._append({"gone": stored_id}, flushed=False)
        else:
            listed = Listed(run.tenant, run.run_id, run.state, run.created_at)
            self._append({"closed": stored_id, "run": listed}, flushed=False)

    def scrub(self) -> None:
        """Write the index anew, without the ids of runs that are gone."""
        with locked(self._log.path, create=True, patience_ms=self._patience_ms) as descriptor:
            self._read(descriptor)
            self._rewrite()

    def _append(self, *entries: Mapping[str, Any], flushed: bool = True) -> None:
        with locked(self._log.path, create=True, patience_ms=self._patience_ms) as descriptor:
            assert descriptor is not None
            self._read(descriptor)
            created = not self._log.name
            self._log.append(descriptor, [_dumps(entry) for entry in entries])
            if flushed:
                flush(descriptor)
                self._log.settle()
            if created:
                flush_folder(os.path.dirname(self._log.path))
            for entry in entries:
                self._apply(entry)
            if flushed:
                self._shorten()

    def _shorten(self) -> None:
        needed = len(self._open) + len(self._closed)
        if self._log.lines <= 3 * needed + LINES_SPARE:
            return
        # Without room for a second index, the first goes on to grow.
        with suppress(OSError):
            self._rewrite()

    def _rewrite(self) -> None:
        entries: list[Mapping[str, Any]] = [{"open": stored_id} for stored_id in self._open]
        entries += [{"closed": at, "run": listed} for at, listed in self._closed.items()]
        self._log.replace([_dumps(entry) for entry in entries])

    def _read(self, descriptor: int | None) -> None:
        tail = self._log.catch_up(descriptor)
        if tail.anew:
            self._open, self._closed = {}, {}
        try:
            for text in tail.texts:
                self._apply(json.loads(text))
        except (KeyError, TypeError, ValueError) as error:
            self._log.forget()
            raise StoreCorruptError(
                f"{self._log.path!r} has a line that this version does not know"
            ) from error

    def _apply(self, entry: Mapping[str, Any]) -> None:
        if "open" in entry:
            self._closed.pop(entry["open"], None)
            self._open[entry["open"]] = None
        elif "closed" in entry:
            self._open.pop(entry["closed"], None)
            self._closed[entry["closed"]] = Listed(*entry["run"])
        else:
            self._open.pop(entry["gone"], None)
            self._closed.pop(entry["gone"], None)
