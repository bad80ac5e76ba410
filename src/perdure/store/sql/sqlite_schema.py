"""Bringing a SQLite file to the schema of this version, also when two processes open it at once."""

from __future__ import annotations

import re
import sqlite3
from typing import Final

from perdure.core.effects import Clock, iso_time
from perdure.errors import SchemaError
from perdure.store.sql.schema import (
    DURABLE_SCHEMA_SQL,
    Migration,
    missing_migrations,
    split_statements,
)
from perdure.store.sql.sqlite_connection import PATIENCE_MS, begin, patient

_WORDS: Final = re.compile(r"CHECK \((\w+) IN \(([^)]+)\)\)")


def prepare_schema(
    connection: sqlite3.Connection, *, migrate: bool, clock: Clock
) -> list[Migration]:
    """Check the schema, and apply what is missing in one transaction; return what was applied.

    A database that lacks nothing is only read. Raises SchemaError: for a database of a newer
    version, for a released migration that was changed, and, without `migrate`, for one that
    lacks something.
    """
    # Another process may just be making the file, or repairing it.
    missing = patient(lambda: _missing(connection))
    if not missing:
        return []
    if not migrate:
        names = ", ".join(migration.name for migration in missing)
        raise SchemaError(f"the database lacks the migrations {names}")
    begin(connection.cursor(), patience_ms=PATIENCE_MS)
    try:
        # Another process may have been faster while this one waited for the lock.
        missing = _missing(connection)
        if missing:
            _apply(connection, missing, iso_time(clock()))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return missing


def _missing(connection: sqlite3.Connection) -> list[Migration]:
    tables = {
        name
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    }
    applied: list[tuple[int, str]] = []
    version: int | None = None
    if "perdure_schema" in tables:
        applied = connection.execute("SELECT number, sha256 FROM perdure_schema").fetchall()
    if "durable_schema_info" in tables:
        (version,) = connection.execute("SELECT max(version) FROM durable_schema_info").fetchone()
    return missing_migrations(applied, version)


def _apply(connection: sqlite3.Connection, missing: list[Migration], now: str) -> None:
    for statement in split_statements(DURABLE_SCHEMA_SQL):
        connection.execute(word_by_word(statement))
    for migration in missing:
        for statement in split_statements(migration.sql):
            try:
                connection.execute(word_by_word(statement))
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
                    raise
                raise SchemaError(f"{migration.name} cannot be applied: {error}") from error
    connection.executemany(
        "INSERT INTO perdure_schema (number, name, sha256, applied_at) VALUES (?, ?, ?, ?)",
        [(migration.number, migration.name, migration.sha256, now) for migration in missing],
    )


def word_by_word(statement: str) -> str:
    """Return the statement with the words of its CHECKs compared one after the other.

    Of a list of more than two SQLite makes a table, anew for each statement that writes a row.
    """
    return _WORDS.sub(_compared, statement)


def _compared(check: re.Match[str]) -> str:
    column, words = check.groups()
    return f"CHECK ({' OR '.join(f'{column} = {word.strip()}' for word in words.split(','))})"
