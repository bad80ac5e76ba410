"""How PostgreSQL writes what databases write differently, and what its errors mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import psycopg
from psycopg import errors

from perdure.errors import (
    PerdureError,
    SchemaError,
    StoreBusyError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    UsageError,
)
from perdure.store.sql.database import Dialect

REFUSED: Final = "PD001"
"""The SQLSTATE of `perdure_refuse`: a required statement has found no row."""

_ISO: Final = """'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'"""
# The moment of the transaction: all statements of a list have the same.
_NOW: Final = f"to_char(now() AT TIME ZONE 'UTC', {_ISO})"
_CASTS: Final = {"TEXT": "{}", "INTEGER": "({})::bigint"}

_TABLE: Final = re.compile(r'(?<![\w."])((?:durable|perdure)_\w+)(?![\w.(])')
_SCHEMA_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


def postgres_dialect(*, own_clock: bool) -> Dialect:
    """Return the dialect of a handle that takes the time from the database or brings its own."""
    return Dialect(
        now=_bound_now if own_clock else _own_now,
        later=_later if own_clock else _later_than_now,
        rows=_rows,
        skip_locked="FOR NO KEY UPDATE SKIP LOCKED",
    )


def _bound_now(number: int) -> str:
    return f"?{number}"


def _own_now(_number: int) -> str:
    return _NOW


def _later(now: str, length: str) -> str:
    moment = f"({now})::timestamptz + ({length})::double precision * interval '1 millisecond'"
    return f"to_char(({moment}) AT TIME ZONE 'UTC', {_ISO})"


def _later_than_now(_now: str, length: str) -> str:
    moment = f"now() + ({length})::double precision * interval '1 millisecond'"
    return f"to_char(({moment}) AT TIME ZONE 'UTC', {_ISO})"


def _rows(source: str, columns: Sequence[tuple[str, str]]) -> str:
    picked = [
        f"{_CASTS[kind].format(f'value ->> {index}')} AS {name}"
        for index, (name, kind) in enumerate(columns)
    ]
    return f"(SELECT {', '.join(picked)} FROM json_array_elements({source}::json))"


def check_schema_name(name: str) -> str:
    """Return `name`, or raise UsageError if it is no plain name of a schema."""
    if not _SCHEMA_NAME.fullmatch(name):
        raise UsageError(f"the schema {name!r:.80} is not a plain name of letters, digits and _")
    return name


def qualified(sql: str, schema: str) -> str:
    """Return `sql` with its tables named in full, since a search path may be anybody's."""
    return _TABLE.sub(rf'"{schema}".\1', sql)


def refused_index(error: BaseException) -> int | None:
    """Return the place of the required statement that found no row; None for other errors."""
    if isinstance(error, psycopg.Error) and error.sqlstate == REFUSED:
        return int(error.diag.message_primary or 0)
    return None


def is_transient(error: BaseException) -> bool:
    """Return whether the same list may simply be run again: nothing of it has happened."""
    return isinstance(
        error,
        errors.SerializationFailure | errors.DeadlockDetected | errors.LockNotAvailable,
    )


def is_taken(error: BaseException) -> bool:
    """Return whether a row is there that was to be new; only shortcuts do not look first."""
    return isinstance(error, errors.UniqueViolation)


def is_lost(error: BaseException) -> bool:
    """Return whether the connection is gone, or is of no use any more."""
    if isinstance(error, errors.AdminShutdown | errors.CrashShutdown | errors.CannotConnectNow):
        return True
    return isinstance(error, psycopg.OperationalError) and error.sqlstate is None


_CLASSES: Final[Sequence[tuple[tuple[type[BaseException], ...], type[StoreError], str]]] = (
    (
        (errors.SerializationFailure, errors.DeadlockDetected, errors.LockNotAvailable),
        StoreBusyError,
        "other transactions kept the rows locked",
    ),
    ((errors.TooManyConnections,), StoreBusyError, "the server has no connection left"),
    ((errors.DiskFull, errors.OutOfMemory), StoreFullError, "the server has no room left"),
    (
        (
            errors.UndefinedTable,
            errors.UndefinedColumn,
            errors.InvalidSchemaName,
            errors.UndefinedFunction,
        ),
        SchemaError,
        "the database lacks a part of the schema: run `perdure migrate`",
    ),
    (
        (
            errors.InvalidPassword,
            errors.InvalidAuthorizationSpecification,
            errors.InsufficientPrivilege,
            errors.InvalidCatalogName,
        ),
        StoreUnavailableError,
        "the database may not be accessed",
    ),
)


def translated(error: Exception, target: str) -> Exception:
    """Return the error of this package that says what `error` means for the caller."""
    meaning = _meaning(error, target)
    if meaning is None:
        return error
    meaning.__cause__ = error
    return meaning


def _meaning(error: Exception, target: str) -> PerdureError | None:
    if isinstance(error, UnicodeEncodeError):
        return UsageError(f"a text holds a lone surrogate: {error.object!r:.60}")
    if isinstance(error, psycopg.DataError):
        return UsageError(f"a value cannot be stored: {_first_line(error)}")
    if not isinstance(error, psycopg.Error):
        return None
    for kinds, kind, meaning in _CLASSES:
        if isinstance(error, kinds):
            return kind(f"{meaning}: {_first_line(error)} ({target})")
    if isinstance(error, psycopg.OperationalError):
        return StoreUnavailableError(
            f"the database cannot be reached: {_first_line(error)} ({target})"
        )
    return StoreError(f"the database refused: {_first_line(error)} ({target})")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
