"""Connections to a SQLite file: what is refused, how they are set up, what their errors mean."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from functools import partial
from typing import Final, Literal, TypeVar

from perdure.core.effects import jittered, monotonic_ms
from perdure.errors import (
    PerdureError,
    SchemaError,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    UsageError,
    ValueTooLargeError,
)
from perdure.store.mounts import MOUNTS, network_mount
from perdure.store.sql.database import Text, load_statements
from perdure.store.sql.sqlite_dialect import SQLITE

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)
logger = logging.getLogger("perdure.store")

Durability = Literal["full", "normal"]
"""Whether an acknowledged write survives a power cut, or only the end of the process."""

VERSION_MIN: Final = (3, 35, 0)
PATIENCE_MS: Final = 10_000
"""How long a write waits for the write lock of another process."""
WAL_BYTES_KEPT: Final = 32 * 1024 * 1024
"""A log that a reader, a large write or a slow copy let grow longer is cut to this when it begins
anew: more than it needs even with pages of SQLite's default size, so that none is cut in vain."""
PAGE_BYTES: Final = 2_048
"""A commit writes whole pages: half the default makes the common one, of four pages, cheaper."""
CHECKPOINT_PAGES: Final = 4_096
"""How long the log grows before a commit copies it into the file: a page is copied once, however
often it was written meanwhile."""
CACHE_KIB: Final = 8_192
READ_TIMEOUT_S: Final = 5.0
SCRUB_MS: Final = 2_000
"""So long an erasure waits for readers of old snapshots."""
STATEMENTS_CACHED: Final = 256

_PAUSE_MS: Final = 0.3
_PAUSE_MAX_MS: Final = 4.0
_never = threading.Event()


def sqlite_statements() -> dict[str, Text]:
    return load_statements(SQLITE)


def check_library() -> None:
    """Raise StoreUnavailableError if this Python's SQLite cannot do what we need."""
    if sqlite3.sqlite_version_info < VERSION_MIN:
        raise StoreUnavailableError(
            f"SQLite {sqlite3.sqlite_version} is too old: perdure needs "
            f"{'.'.join(map(str, VERSION_MIN))} or newer"
        )
    probe = sqlite3.connect(":memory:")
    try:
        probe.execute("SELECT json_extract('[1]', '$[0]')")
    except sqlite3.Error as error:
        raise StoreUnavailableError(
            "this Python's SQLite was built without its JSON functions, which perdure needs"
        ) from error
    finally:
        probe.close()


def check_path(path: str | os.PathLike[str], *, mounts: str = MOUNTS) -> str:
    """Return the absolute path of a database file, or raise UsageError."""
    name = os.fspath(path)
    if name in ("", ":memory:") or name.startswith("file:"):
        raise UsageError(
            f"{name!r} is not a file: give the path of a database file, or use `memory:` "
            "for a store that forgets everything"
        )
    if "\0" in name:
        raise UsageError(f"the path {name!r} holds a zero byte")
    full = os.path.realpath(name)
    if os.path.isdir(full):
        raise UsageError(f"{name!r} is a folder: give the path of a database file")
    folder = os.path.dirname(full)
    if not os.path.isdir(folder):
        raise UsageError(f"the folder {folder!r} of the database does not exist")
    kind = network_mount(folder, mounts)
    if kind is not None:
        raise UsageError(
            f"{name!r} is on a network mount ({kind}), where SQLite loses data: put the database "
            "on a local disk"
        )
    return full


def connect_writer(path: str, durability: Durability) -> sqlite3.Connection:
    """Return a connection that writes; it never waits for a lock by itself."""
    return _connect(
        path,
        # Counts for a new file only.
        f"page_size = {PAGE_BYTES}",
        "journal_mode = WAL",
        f"synchronous = {durability.upper()}",
        f"journal_size_limit = {WAL_BYTES_KEPT}",
        f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
        f"cache_size = -{CACHE_KIB}",
        # What is deleted is overwritten, also where SQLite was built to leave it.
        "secure_delete = ON",
    )


def connect_renewer(path: str) -> sqlite3.Connection:
    """Return a connection for writes that a power cut may undo: they are worth no flush.

    The next flush of a writer takes them along, and it is the writer that tidies up the log.
    """
    return _connect(path, "synchronous = NORMAL", "wal_autocheckpoint = 0")


def connect_reader(path: str) -> sqlite3.Connection:
    """Return a connection that can only read; writers never make it wait."""
    return _connect(path, "query_only = ON", "wal_autocheckpoint = 0", timeout_s=READ_TIMEOUT_S)


def scrub(path: str, *, whole: bool) -> None:
    """Copy the log into the file, and cut it to nothing: it holds old pages until then.

    Where somebody reads an old snapshot for too long it is left to a later commit. `whole`: write
    the file anew first, since unused parts of its pages hold what once stood there. Raises
    sqlite3.Error, StoreBusyError.
    """
    connection = _connect(path)
    try:
        if whole:
            patient(partial(connection.execute, "VACUUM"))
        patient(partial(_truncate, connection), patience_ms=SCRUB_MS)
    except StoreBusyError as error:
        logger.warning("what was deleted stays in the log of %r for now: %s", path, error)
    finally:
        connection.close()


def _truncate(connection: sqlite3.Connection) -> None:
    is_busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if is_busy:
        error = sqlite3.OperationalError("the log is in use")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        raise error


def _connect(path: str, *settings: str, timeout_s: float = 0.0) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path,
        timeout=timeout_s,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=STATEMENTS_CACHED,
    )
    try:
        for setting in settings:
            answer = patient(partial(_set, connection, setting))
            if setting == "journal_mode = WAL" and answer != "wal":
                raise StoreUnavailableError(
                    f"the file system of {path!r} cannot hold a SQLite database in WAL mode"
                )
    except BaseException:
        connection.close()
        raise
    return connection


def _set(connection: sqlite3.Connection, setting: str) -> object:
    row = connection.execute(f"PRAGMA {setting}").fetchone()
    return row[0] if row else None


def begin(cursor: sqlite3.Cursor, *, patience_ms: float) -> None:
    """Begin a transaction that holds the write lock; waits for it, with jitter.

    SQLite's own waiting starves all processes but one, so it is switched off.
    """
    try:
        cursor.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if primary_code(error) != sqlite3.SQLITE_BUSY:
            raise
        patient(lambda: cursor.execute("BEGIN IMMEDIATE"), patience_ms=patience_ms)


def patient(action: Callable[[], T], *, patience_ms: float = PATIENCE_MS) -> T:
    """Return what `action` returns, tried again while another process holds the lock.

    Raises StoreBusyError when that takes too long.
    """
    pause_ms, deadline_ms = _PAUSE_MS, 0.0
    while True:
        try:
            return action()
        except sqlite3.OperationalError as error:
            if primary_code(error) != sqlite3.SQLITE_BUSY:
                raise
            now_ms = monotonic_ms()
            deadline_ms = deadline_ms or now_ms + patience_ms
            if now_ms >= deadline_ms:
                raise StoreBusyError(
                    f"another process has held the database's write lock for {patience_ms:,.0f} ms"
                ) from error
        _never.wait(jittered(pause_ms, 0.9) / 1_000)
        pause_ms = min(pause_ms * 1.5, _PAUSE_MAX_MS)


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's code of `error` without its extension; -1 if it has none."""
    code = getattr(error, "sqlite_errorcode", None)
    return -1 if code is None else code & 0xFF


_CLASSES: Final[dict[int, tuple[type[StoreError], str]]] = {
    sqlite3.SQLITE_BUSY: (StoreBusyError, "the database is locked"),
    sqlite3.SQLITE_LOCKED: (StoreBusyError, "the database is locked"),
    sqlite3.SQLITE_FULL: (StoreFullError, "there is no room left for the database"),
    sqlite3.SQLITE_CORRUPT: (StoreCorruptError, "the database file is damaged"),
    sqlite3.SQLITE_NOTADB: (StoreCorruptError, "the file is not a SQLite database"),
    sqlite3.SQLITE_READONLY: (StoreUnavailableError, "the database cannot be written"),
    sqlite3.SQLITE_PERM: (StoreUnavailableError, "the database may not be accessed"),
    sqlite3.SQLITE_AUTH: (StoreUnavailableError, "the database may not be accessed"),
    sqlite3.SQLITE_CANTOPEN: (StoreUnavailableError, "the database cannot be opened"),
    sqlite3.SQLITE_IOERR: (StoreUnavailableError, "reading or writing the database failed"),
    sqlite3.SQLITE_PROTOCOL: (StoreUnavailableError, "locking the database failed"),
    sqlite3.SQLITE_NOMEM: (StoreUnavailableError, "there is no memory left for the database"),
}


def translated(error: E, path: str) -> E | PerdureError:
    """Return the error of this package that says what `error` means for the caller."""
    meaning = _meaning(error, path)
    if meaning is None:
        return error
    meaning.__cause__ = error
    return meaning


def _meaning(error: BaseException, path: str) -> PerdureError | None:
    if isinstance(error, UnicodeEncodeError):
        return UsageError(f"a text holds a lone surrogate: {error.object!r:.60}")
    if isinstance(error, UnicodeDecodeError):
        return StoreCorruptError(f"the database file is damaged: a text is not UTF-8 ({path!r})")
    if isinstance(error, OverflowError):
        return UsageError("a number has more than 64 bits")
    if not isinstance(error, sqlite3.Error):
        return None
    code = primary_code(error)
    if code == sqlite3.SQLITE_TOOBIG:
        return ValueTooLargeError(f"a value is too large for SQLite: {error}")
    kind, meaning = _CLASSES.get(code, (StoreError, "the database refused"))
    if str(error).startswith(("no such table", "no such column")):
        kind, meaning = SchemaError, "the database has lost a part of its schema"
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    return kind(f"{meaning}: {error} ({name}, {path!r})")
