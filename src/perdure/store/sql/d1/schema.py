"""Bringing a D1 database to the schema of this version, in one batch."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

from perdure.core.effects import Clock, iso_time
from perdure.errors import SchemaError, StoreError
from perdure.store.sql.schema import (
    DURABLE_SCHEMA_SQL,
    Migration,
    missing_migrations,
    split_statements,
)

Ask = Callable[[Sequence[str]], Awaitable[list[list[tuple[Any, ...]]]]]
"""Runs statements without parameters as one batch, and returns the rows of each."""

_TRAIL: Final = "SELECT number, sha256 FROM perdure_schema"
_VERSION: Final = "SELECT max(version) AS version FROM durable_schema_info"
# Tables and indexes by their names, columns behind that of their table.
_MADE: Final = (
    "SELECT name FROM sqlite_master UNION ALL SELECT t.name || '.' || c.name "
    "FROM sqlite_master t JOIN pragma_table_info(t.name) c "
    "WHERE t.type = 'table' AND (t.name LIKE 'durable_%' OR t.name LIKE 'perdure_%')"
)
_EFFECT: Final = re.compile(
    r"CREATE (?:TABLE|INDEX) (?!IF)(\w+)|ALTER TABLE (\w+) ADD COLUMN (\w+)"
)
_TABLES: Final = "SELECT name FROM sqlite_master WHERE type = 'table'"


def migration_sql(missing: Sequence[Migration], now: str) -> Iterator[str]:
    """Yield the statements that apply `missing`, and what stands before them, in order."""
    yield from split_statements(DURABLE_SCHEMA_SQL)
    for migration in missing:
        yield from split_statements(migration.sql)
    for migration in missing:
        values = ", ".join(f"'{part}'" for part in (migration.name, migration.sha256, now))
        yield (
            "INSERT INTO perdure_schema (number, name, sha256, applied_at) "
            f"VALUES ({migration.number}, {values});"
        )


async def prepare_schema(ask: Ask, *, migrate: bool, clock: Clock) -> Sequence[Migration]:
    """Check the schema and, with `migrate`, apply what is missing; return what was applied.

    Raises SchemaError: for a schema of a newer version, for a released migration that was
    changed, and, without `migrate`, for one that lacks something.
    """
    missing = await _missing(ask)
    if not missing:
        return ()
    if not migrate:
        names = ", ".join(migration.name for migration in missing)
        raise SchemaError(f"the database lacks the migrations {names}: run `perdure migrate`")
    now = iso_time(clock())
    try:
        await ask(list(migration_sql(missing, now)))
    except StoreError:
        # Another process was faster, or an earlier try was applied, perhaps in part.
        rest = await _missing(ask)
        if rest:
            (made,) = await ask([_MADE])
            there = {str(name) for (name,) in made}
            await ask([sql for sql in migration_sql(rest, now) if _effect_of(sql) not in there])
    return missing


def _effect_of(sql: str) -> str | None:
    """Return the name of what a statement makes; None if it may be run twice."""
    match = _EFFECT.match(sql)
    return ".".join(filter(None, match.groups())) if match else None


async def schema_version(ask: Ask) -> int | None:
    """Return the highest version of the reference's schema that was applied; None if none was."""
    (tables,) = await ask([_TABLES])
    if ("durable_schema_info",) not in tables:
        return None
    ((row,),) = await ask([_VERSION])
    return None if row[0] is None else int(row[0])


async def _missing(ask: Ask) -> list[Migration]:
    try:
        # What it takes in nearly all cases is one round trip.
        applied, versions = await ask([_TRAIL, _VERSION])
    except SchemaError:
        return missing_migrations(await _applied(ask), await schema_version(ask))
    return missing_migrations(_read(applied), versions[0][0])


async def _applied(ask: Ask) -> list[tuple[int, str]]:
    (tables,) = await ask([_TABLES])
    if ("perdure_schema",) not in tables:
        return []
    (applied,) = await ask([_TRAIL])
    return _read(applied)


def _read(rows: Sequence[tuple[Any, ...]]) -> list[tuple[int, str]]:
    return [(int(number), str(sha256)) for number, sha256 in rows]
