"""What the errors of D1 mean: its services tell them apart by nothing but their text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from perdure.errors import (
    PerdureError,
    SchemaError,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    ValueTooLargeError,
)

TEXT_CHARS_MAX: Final = 300
"""So much of an error's text is repeated."""

_LOST: Final = (
    "connection lost",
    "caused object to be reset",
    "reset because its code was updated",
    "transient issue",
    "client disconnected",
    "operation exceeded timeout",
    "internal error",
)
_BUSY: Final = (
    "overloaded",
    "requests queued",
    "rate limit",
    "sqlite_busy",
    "database is locked",
)
_OTHERS: Final[tuple[tuple[type[PerdureError], str, tuple[str, ...]], ...]] = (
    (
        StoreFullError,
        "there is no room left in the database",
        ("maximum db size", "maximum database size", "sqlite_full", "disk is full"),
    ),
    (
        ValueTooLargeError,
        "a value is too large for D1",
        ("too big", "statement too long", "too large", "sqlite_toobig"),
    ),
    (
        SchemaError,
        "the database has lost a part of its schema",
        ("no such table", "no such column"),
    ),
    (
        StoreCorruptError,
        "the database is damaged",
        ("image is malformed", "sqlite_corrupt", "sqlite_notadb"),
    ),
    (StoreUnavailableError, "the database may not be accessed", ("sqlite_auth", "not authorized")),
)
_STATUSES: Final[Mapping[int, str]] = {
    401: "Cloudflare refused the token",
    403: "Cloudflare refused the token",
    404: "there is no such account or database",
}


class D1Failure(Exception):
    """A call of D1's HTTP API that failed: `status` 0 without an answer."""

    def __init__(self, text: str, *, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


def is_lost(error: BaseException) -> bool:
    """Return whether nobody can say if what was sent has happened."""
    if _says(error, _LOST):
        return True
    if isinstance(error, D1Failure):
        is_of_sqlite = _says(error, ("sqlite_",)) or _other(error) is not None
        return error.status == 0 or (error.status >= 500 and not is_of_sqlite)
    return isinstance(error, OSError)


def is_busy(error: BaseException) -> bool:
    """Return whether it has not happened, and the same call may succeed in a moment."""
    return (isinstance(error, D1Failure) and error.status == 429) or _says(error, _BUSY)


def translated(error: Exception, target: str) -> PerdureError:
    """Return the error of this package that says what `error` means for the caller."""
    if isinstance(error, PerdureError):
        return error
    kind, meaning = _meaning_of(error)
    text = " ".join(str(error).split()) or type(error).__name__
    told = kind(f"{meaning}: {text:.{TEXT_CHARS_MAX}} ({target})")
    told.__cause__ = error
    return told


def _meaning_of(error: Exception) -> tuple[type[PerdureError], str]:
    if is_busy(error):
        return StoreBusyError, "the database has too much to do"
    if is_lost(error):
        return StoreUnavailableError, "the connection to the database was lost"
    if isinstance(error, D1Failure) and error.status in _STATUSES:
        return StoreUnavailableError, _STATUSES[error.status]
    return _other(error) or (StoreError, "the database refused")


def _other(error: BaseException) -> tuple[type[PerdureError], str] | None:
    for kind, meaning, texts in _OTHERS:
        if _says(error, texts):
            return kind, meaning
    return None


def _says(error: BaseException, texts: tuple[str, ...]) -> bool:
    told = str(error).lower()
    return any(text in told for text in texts)
