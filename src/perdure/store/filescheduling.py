"""What a handle does with the schedules of its folder, one method for each call, by its thread.

They are in one log. A firing is written there first, with the run that it begins; whoever holds
the lock next makes up for a process that died before it had queued that run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from perdure.core.recordjson import manifest_from_json, manifest_to_json
from perdure.errors import RunInputMismatchError, StoreCorruptError
from perdure.store import scheduling
from perdure.store.entry import Opening
from perdure.store.fileclaims import FileClaims
from perdure.store.filedata import FileData
from perdure.store.filelog import FileLog, locked, open_for_reading
from perdure.store.scheduling import Schedule, Upcoming

LINES_SPARE: Final = 1_000
"""So many lines more than are needed thrice over, and the log is written anew."""
_dumps = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class FileScheduling:
    """The schedules as one handle has read them. Its lock is taken before all others."""

    def __init__(self, data: FileData, claims: FileClaims) -> None:
        self._data = data
        self._claims = claims
        self._log = FileLog(os.path.join(data.options.path, "schedules"))
        self._known: dict[tuple[str, str], Schedule] = {}
        self._unqueued: Opening | None = None

    def put(self, schedule: Schedule, tenant: str) -> Schedule:
        with self._locked() as file:
            known = self._known.get((tenant, schedule.name))
            kept = scheduling.replaced(known, schedule, tenant=tenant, now=self._data.now())
            self._write(file, {"put": _to_json(kept)})
            return kept

    def find(self, tenant: str, name: str) -> Schedule | None:
        self._catch_up()
        return self._known.get((tenant, name))

    def list(self, tenant: str) -> Sequence[Schedule]:
        self._catch_up()
        mine = [one for one in self._known.values() if one.tenant == tenant]
        return sorted(mine, key=lambda one: one.name)

    def change(
        self, tenant: str, name: str, change: Callable[[Schedule, str], Schedule]
    ) -> Schedule | None:
        """Change a schedule that is there, by a function of it and of the moment."""
        with self._locked() as file:
            known = self._known.get((tenant, name))
            if known is None:
                return None
            changed = change(known, self._data.now())
            if changed is not known:
                self._write(file, {"put": _to_json(changed)})
            return changed

    def remove(self, tenant: str, name: str) -> bool:
        with self._locked() as file:
            if (tenant, name) not in self._known:
                return False
            self._write(file, {"gone": [tenant, name]})
            return True

    def upcoming(self, tasks: Sequence[str], limit: int) -> Upcoming:
        self._catch_up()
        if self._unqueued is not None:
            with self._locked():
                pass  # Who gets the lock has made up for it.
        known = list(self._known.values())
        return Upcoming(self._data.now(), scheduling.soonest(known, tasks, limit))

    def fire(self, schedule: Schedule, next_due_at: str, opening: Opening | None) -> bool:
        with self._locked() as file:
            known = self._known.get((schedule.tenant, schedule.name))
            if known is None or not scheduling.may_fire(known, schedule):
                return False
            run_id = None if opening is None else opening.run_id
            gone_on = scheduling.fired(known, next_due_at, run_id, self._data.now())
            self._write(file, {"put": _to_json(gone_on), "queues": opening})
            self._make_up(file)
            return True

    # The log.

    @contextmanager
    def _locked(self) -> Generator[int]:
        patience_ms = self._data.options.patience_ms
        with locked(self._log.path, create=True, patience_ms=patience_ms) as file:
            assert file is not None
            self._follow(file)
            self._make_up(file)
            yield file
            self._shorten()

    def _catch_up(self) -> None:
        with open_for_reading(self._log.path) as file:
            self._follow(file)

    def _make_up(self, file: int) -> None:
        """Queue the run of the last firing, if nobody has yet."""
        opening = self._unqueued
        if opening is None:
            return
        if self._data.load(opening.stored_id) is None:
            with suppress(RunInputMismatchError):
                self._claims.enqueue(opening, retry=False)
        self._write(file, {"queued": opening.stored_id}, durable=False)

    def _write(self, file: int, line: Mapping[str, Any], *, durable: bool = True) -> None:
        durable = durable and self._data.options.durable
        self._data.write_down(self._log, file, _dumps(line), durable=durable)
        self._apply(line)

    def _shorten(self) -> None:
        if self._log.lines <= 3 * len(self._known) + LINES_SPARE:
            return
        # Without room for a second log, the first goes on to grow.
        with suppress(OSError):
            self._log.replace([_dumps({"put": _to_json(one)}) for one in self._known.values()])

    def _follow(self, file: int | None) -> None:
        tail = self._log.catch_up(file)
        if tail.anew:
            self._known, self._unqueued = {}, None
        try:
            for text in tail.texts:
                self._apply(json.loads(text))
        except (KeyError, TypeError, ValueError) as error:
            self._log.forget()
            raise StoreCorruptError(
                f"{self._log.path!r} has a line that this version does not know"
            ) from error

    def _apply(self, line: Mapping[str, Any]) -> None:
        if "put" in line:
            schedule = _from_json(line["put"])
            self._known[schedule.tenant, schedule.name] = schedule
        if "gone" in line:
            tenant, name = line["gone"]
            self._known.pop((tenant, name), None)
        if line.get("queues") is not None:
            self._unqueued = Opening(*line["queues"])
        if "queued" in line:
            self._unqueued = None


def _to_json(schedule: Schedule) -> Sequence[Any]:
    return [*schedule[:2], manifest_to_json(schedule.manifest), *schedule[3:]]


def _from_json(members: Sequence[Any]) -> Schedule:
    return Schedule._make((*members[:2], manifest_from_json(members[2]), *members[3:]))
