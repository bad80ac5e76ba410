"""Bringing a PostgreSQL schema to this version, under a lock that a second migrator waits for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import psycopg

from perdure.core.effects import Clock, iso_time
from perdure.errors import SchemaError
from perdure.store.sql.postgres.dialect import REFUSED, qualified
from perdure.store.sql.postgres.silence import answered
from perdure.store.sql.schema import (
    DURABLE_SCHEMA_SQL,
    Migration,
    missing_migrations,
    own_migrations,
    split_statements,
)

LOCK: Final = "perdure migrate"
"""What the advisory lock of a migration is named after."""

_REFUSE: Final = f"""
CREATE OR REPLACE FUNCTION "{{schema}}".perdure_refuse(place integer) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION USING ERRCODE = '{REFUSED}', MESSAGE = place::text;
END $$
"""
_LIVENESS: Final = """
CREATE TABLE IF NOT EXISTS "{schema}".perdure_liveness (
  name TEXT COLLATE "C" PRIMARY KEY,
  taken_at TIMESTAMPTZ NOT NULL
)
"""
_VERSION_1: Final = """
INSERT INTO durable_schema_info (version, applied_at)
VALUES (1, to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))
ON CONFLICT DO NOTHING
"""
# Not the information schema's, whose view takes a new connection longer than all else of an
# opening; nor to_regclass, which within one transaction may go on telling what was before a lock.
_TABLES: Final = """
SELECT c.relname FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname IN ('perdure_schema', 'durable_schema_info')
"""
_INTEGER: Final = re.compile(r"\bINTEGER\b")
_TEXT: Final = re.compile(r"\bTEXT\b")
_TABLE: Final = re.compile(r"^CREATE TABLE (?:IF NOT EXISTS )?(\w+)")
_CHECKED: Final = re.compile(
    r"^  (\w+) TEXT( NOT NULL(?: DEFAULT '\w+')?)\s+CHECK \(\1 IN (\([^)]+\))\)", re.MULTILINE
)


def migration_sql(schema: str, missing: list[Migration], now: str) -> Iterator[str]:
    """Yield the statements that apply `missing`, and what stands before them, in order."""
    yield f'CREATE SCHEMA IF NOT EXISTS "{schema}"'
    yield _REFUSE.format(schema=schema)
    yield _LIVENESS.format(schema=schema)
    is_new = bool(missing) and missing[0].number == own_migrations()[0].number
    for statement in split_statements(DURABLE_SCHEMA_SQL) if is_new else ():
        # This index would forbid the updates in place that every heartbeat is.
        if "idx_durable_runs_lease_expires" not in statement:
            yield from _translated(statement, schema)
    for migration in missing:
        for statement in split_statements(migration.sql):
            yield from _translated(statement, schema)
    if is_new:
        yield f'ALTER TABLE "{schema}".durable_runs SET (fillfactor = 60)'
    for migration in missing:
        values = ", ".join(f"'{part}'" for part in (migration.name, migration.sha256, now))
        yield (
            f'INSERT INTO "{schema}".perdure_schema (number, name, sha256, applied_at) '
            f"VALUES ({migration.number}, {values})"
        )


def _translated(statement: str, schema: str) -> Iterator[str]:
    """Yield the statement in PostgreSQL's words, behind what it stands on."""
    if (table := _TABLE.match(statement)) is not None:
        for column, _, values in _CHECKED.findall(statement):
            domain = (
                f'CREATE DOMAIN {table[1]}_{column} AS TEXT COLLATE "C" CHECK (VALUE IN {values})'
            )
            yield qualified(domain, schema)
        # The server reads the CHECK of a table anew for each statement that writes a row, that of a
        # domain once, and only where the column itself is written.
        statement = _CHECKED.sub(rf"  \1 {table[1]}_\1\2", statement)
    if statement.startswith("INSERT OR IGNORE INTO durable_schema_info"):
        statement = _VERSION_1.strip()
    elif statement.startswith(("CREATE TABLE", "ALTER TABLE")):
        # Ids and moments are compared byte by byte, whatever the database's language is.
        statement = _TEXT.sub('TEXT COLLATE "C"', statement)
        # Seqs and sums are exact up to what JSON's numbers hold, as in SQLite.
        statement = _INTEGER.sub("BIGINT", statement)
    yield qualified(statement.rstrip(";"), schema)


async def prepare_schema(
    connection: psycopg.AsyncConnection[tuple[object, ...]],
    schema: str,
    *,
    migrate: bool,
    clock: Clock,
) -> list[Migration]:
    """Check the schema and, with `migrate`, apply what is missing in one transaction.

    Returns what was applied. Raises SchemaError: for a schema of a newer version, for a released
    migration that was changed, and, without `migrate`, for one that lacks something.
    """
    async with answered(connection):
        missing = await _missing(connection, schema)
    if not missing:
        return []
    if not migrate:
        names = ", ".join(migration.name for migration in missing)
        raise SchemaError(
            f"the schema {schema!r} lacks the migrations {names}: run `perdure migrate`"
        )
    async with connection.transaction():
        await connection.execute(
            "SELECT pg_advisory_xact_lock(hashtext($1), hashtext($2))", (LOCK, schema)
        )
        # Another process may have been faster while this one waited for the lock.
        missing = await _missing(connection, schema)
        if missing:
            for statement in migration_sql(schema, missing, iso_time(clock())):
                await connection.execute(statement.encode())
    return missing


async def _missing(
    connection: psycopg.AsyncConnection[tuple[object, ...]], schema: str
) -> list[Migration]:
    found = await connection.execute(_TABLES, (schema,))
    tables = {str(name) for (name,) in await found.fetchall()}
    applied: list[tuple[int, str]] = []
    version: int | None = None
    if "perdure_schema" in tables:
        sql = f'SELECT number, sha256 FROM "{schema}".perdure_schema'
        found = await connection.execute(sql.encode())
        applied = [(int(str(number)), str(sha256)) for number, sha256 in await found.fetchall()]
    if "durable_schema_info" in tables:
        sql = f'SELECT max(version) FROM "{schema}".durable_schema_info'
        found = await connection.execute(sql.encode())
        row = await found.fetchone()
        version = None if row is None or row[0] is None else int(str(row[0]))
    return missing_migrations(applied, version)
