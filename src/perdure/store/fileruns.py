"""What one handle knows of the runs of a folder: the logs that it has read, and their newest lines.

The data is that of a memory store. What belongs to a run is read from its log before it is used,
and only what was appended since; every change is written there.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

from perdure.core.effects import Clock, iso_time
from perdure.core.records import RunRecord
from perdure.core.rundata import RunData
from perdure.errors import StoreCorruptError, StoreError, UsageError
from perdure.store.fileentries import (
    Operation,
    Write,
    apply,
    entry_text,
    is_open,
    may_be_due,
    read_entry,
)
from perdure.store.fileindex import FileIndex
from perdure.store.filelog import (
    FileLog,
    flush,
    flush_folder,
    locked,
    new_path,
    open_for_reading,
)
from perdure.store.lockfolder import LockFolder
from perdure.store.memorydata import MemoryData

logger = logging.getLogger("perdure.store")

CACHE_BYTES: Final = 64 * 1024 * 1024
"""The logs of so many bytes are kept in memory, as what they say."""
_NAMES: Final = frozenset(
    (
        "erasing",
        "index",
        "index.new",
        "live",
        "runs",
        "schedules",
        "schedules.new",
        "sessions",
        "lost+found",
    )
)


class FolderOptions(NamedTuple):
    """Where the runs are, and how they are kept."""

    path: str
    durable: bool
    clock: Clock
    code_version: str | None
    patience_ms: float


class RunFile:
    """The log of one run; `run` and the rest here are kept when what it says is let go.

    `holder_lock` is the liveness lock of whoever holds the lease.
    """

    def __init__(self, path: str) -> None:
        self.log = FileLog(path)
        self.run: RunRecord | None = None
        self.holder_lock: str | None = None
        self.is_open = False
        self.bytes_kept = 0


class FileRuns(MemoryData):
    """The runs of a folder, read from their logs. Belongs to one thread."""

    def __init__(self, options: FolderOptions) -> None:
        super().__init__()
        self.options = options
        self.locks = LockFolder(os.path.join(options.path, "live"))
        self.index = FileIndex(os.path.join(options.path, "index"), options.patience_ms)
        self._files: dict[str, RunFile] = {}
        self._bytes_kept = 0
        self._damaged: set[str] = set()

    def prepare(self) -> None:
        """See to it that the folder is one of runs; nothing is written if it is."""
        path = self.options.path
        with suppress(FileExistsError):
            os.mkdir(path)
        strange = sorted(set(os.listdir(path)).difference(_NAMES))
        if strange and not os.path.exists(self.index.path):
            raise UsageError(
                f"the folder {path!r} holds {strange[0]!r:.60} and no runs: give the path of a "
                "folder that is only for them"
            )
        for name in ("runs", "sessions"):
            with suppress(FileExistsError):
                os.mkdir(os.path.join(path, name))
        if not os.path.exists(self.index.path):
            self.index.make()
            # One may be allowed to use a folder, and not to read it.
            with suppress(PermissionError):
                flush_folder(os.path.dirname(path))
        self.index.catch_up()

    def now(self) -> str:
        return iso_time(self.options.clock())

    def is_held(self, data: RunData, now: str) -> bool:
        if not super().is_held(data, now):
            return False
        lock = _lock_of_holder(data)
        return lock is None or not self.locks.dead((lock,))

    def file_of(self, stored_id: str) -> RunFile:
        known = self._files.get(stored_id)
        if known is None:
            known = self._files[stored_id] = RunFile(self.path_of(stored_id))
        return known

    def path_of(self, stored_id: str) -> str:
        """Return where the log of the run is, if there is one."""
        return self.path_to("runs", stored_id)

    def has_read(self, stored_id: str, size: int) -> bool:
        """Return whether the log of the run was read up to this size."""
        known = self._files.get(stored_id)
        return known is not None and known.log.size == size

    def load(self, stored_id: str) -> RunData | None:
        """Return the run as it stands in its log now."""
        with open_for_reading(self.file_of(stored_id).log.path) as descriptor:
            return self.catch_up(stored_id, descriptor)

    def find(self, stored_id: str) -> RunData | None:
        return self.load(stored_id)

    def run_at(self, stored_id: str) -> RunRecord | None:
        return self.peek(stored_id)

    def peek(self, stored_id: str) -> RunRecord | None:
        """Return the run alone, as it stands in its log now, read only if it has grown."""
        known = self.file_of(stored_id)
        if stored_id not in self.runs and known.log.name:
            with open_for_reading(known.log.path) as descriptor:
                if known.log.is_current(descriptor):
                    return known.run
        data = self.load(stored_id)
        return None if data is None else data.run

    def peek_for_sweep(self, stored_id: str) -> RunRecord | None:
        """Return the run; a damaged one must not keep a sweep from the others."""
        try:
            return self.peek(stored_id)
        except StoreCorruptError as error:
            if stored_id not in self._damaged:
                self._damaged.add(stored_id)
                logger.error("no worker goes on with a damaged run: %s", error)
            return None

    def catch_up(self, stored_id: str, descriptor: int | None) -> RunData | None:
        """Apply the lines that were not read yet, and return the run."""
        known = self.file_of(stored_id)
        data = self.runs.get(stored_id)
        if data is None:
            known.log.forget()
        try:
            tail = known.log.catch_up(descriptor)
            data = self._replayed(None if tail.anew else data, tail.texts, known.log.path)
        except BaseException:
            self.forget(stored_id)
            raise
        self._keep(stored_id, data)
        return data

    @staticmethod
    def _replayed(data: RunData | None, texts: Sequence[str], path: str) -> RunData | None:
        try:
            for text in texts:
                now, operations = read_entry(text)
                for operation in operations:
                    data, _ = apply(data, operation, now)
        except Exception as error:
            raise StoreCorruptError(f"{path!r} cannot be followed: {error}") from error
        return data

    def _keep(self, stored_id: str, data: RunData | None) -> None:
        known = self.file_of(stored_id)
        known.is_open = is_open(data)
        known.run = None if data is None else data.run
        known.holder_lock = None if data is None else _lock_of_holder(data)
        self._let_go(stored_id)
        if not known.log.name:
            del self._files[stored_id]
        if data is not None:
            # The newest stand last, so that the oldest can be let go first.
            self.runs[stored_id] = data
            known.bytes_kept = known.log.size
            self._bytes_kept += known.bytes_kept

    def _let_go(self, stored_id: str) -> None:
        known = self._files[stored_id]
        self._bytes_kept -= known.bytes_kept
        known.bytes_kept = 0
        self.runs.pop(stored_id, None)

    def forget(self, stored_id: str) -> None:
        """Read the run from its log when it is needed next."""
        if stored_id in self._files:
            self._let_go(stored_id)
            del self._files[stored_id]

    def trim(self) -> None:
        """Let go of what was not used for longest, until the rest is small enough."""
        while self._bytes_kept > CACHE_BYTES and len(self.runs) > 1:
            oldest = next(iter(self.runs))
            self._let_go(oldest)
            if not self._files[oldest].is_open:
                del self._files[oldest]

    @contextmanager
    def run_locked(self, stored_id: str, *, create: bool = False) -> Generator[int | None]:
        """Hold the lock of a run that was read up to its end; None if there is no log of it."""
        path = self.file_of(stored_id).log.path
        patience_ms = self.options.patience_ms
        with locked(path, create=create, patience_ms=patience_ms) as descriptor:
            self.catch_up(stored_id, descriptor)
            try:
                yield descriptor
            finally:
                if descriptor is not None and os.fstat(descriptor).st_size == 0:
                    remove_log(path)

    def accept(
        self,
        stored_id: str,
        descriptor: int,
        now: str,
        *operations: Operation,
        durable: bool = True,
    ) -> Any:
        """Apply operations that are legal, write them down, and return what the last one tells.

        The caller holds the run's lock. If this raises, nothing has happened: either an operation
        was refused before it changed anything, or the line could not be written. Only after
        FlushFailed nobody knows.
        """
        known = self.file_of(stored_id)
        data, was_open = self.runs.get(stored_id), known.is_open
        before, value = known.run, None
        try:
            for operation in operations:
                data, value = apply(data, operation, now)
        except BaseException:
            if data is not None and data.run is not before:
                self.forget(stored_id)
            raise
        if data is not None and data.run is before and isinstance(operations[0], Write):
            return value  # The end of a run, repeated: it is written down already.
        try:
            if is_open(data) and not was_open:
                self.index.open_run(stored_id)
            durable = durable and self.options.durable
            self.write_down(known.log, descriptor, entry_text(now, operations), durable=durable)
        except BaseException:
            self.forget(stored_id)
            raise
        self._keep(stored_id, data)
        if any(map(may_be_due, operations)):
            with suppress(OSError):
                os.utime(self.index.path)
        if data is None or (was_open and not known.is_open):
            # It is accepted already; a sweep makes up for what fails here.
            with suppress(OSError, StoreError):
                self.index.close_run(stored_id, known.run)
        return value

    @staticmethod
    def write_down(log: FileLog, descriptor: int, text: str, *, durable: bool) -> None:
        """Append a line; if `durable`, return once it is on the disk, and a new log's name too."""
        created = not log.name
        log.append(descriptor, [text])
        if durable:
            flush(descriptor)
            log.settle()
            if created:
                flush_folder(os.path.dirname(log.path))
                flush_folder(os.path.dirname(os.path.dirname(log.path)))

    def path_to(self, kind: str, name: str) -> str:
        """Return where the log that belongs to an id is, if there is one."""
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        return os.path.join(self.options.path, kind, digest, "log")


def _lock_of_holder(data: RunData) -> str | None:
    attempt = data.attempts.get(data.run.epoch)
    if attempt is None or attempt.holder != data.run.lease_holder_id:
        return None
    return attempt.liveness


def remove_log(path: str) -> None:
    """Delete a log with its folder. The caller holds its lock."""
    for name in (new_path(path), path):
        with suppress(FileNotFoundError):
            os.unlink(name)
    # Somebody may be about to make the log again.
    with suppress(OSError):
        os.rmdir(os.path.dirname(path))
