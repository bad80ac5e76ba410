"""`perdure migrate`: the schema of a database, brought up to date or printed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Final

from perdure.cli.arguments import without_password
from perdure.cli.opening import check_is_there, opened, ran
from perdure.cli.output import print_json
from perdure.core.effects import iso_time, system_clock
from perdure.errors import SchemaError, UsageError
from perdure.store.opening import path_of
from perdure.store.sql.schema import DURABLE_SCHEMA_SQL, own_migrations

NO_SCHEMA: Final = "a store of files has no schema: what it is made of needs no migration"


def migrate(options: argparse.Namespace) -> int:
    """Bring the schema up to date, or print it; return the exit code."""
    if options.sql:
        return _print_sql(options)
    return ran(_migrate, options)


async def _migrate(options: argparse.Namespace) -> int:
    url: str = options.store
    check_is_there(url)
    if url.startswith("file:"):
        return _tell(options, (), NO_SCHEMA)
    place = path_of(url) or without_password(url)
    missing = await _missing(options)
    if missing:
        async with opened(options, migrate=True):
            told = f"{place} is up to date: applied {', '.join(missing)}"
    else:
        told = f"{place} was up to date already"
    return _tell(options, missing, told)


async def _missing(options: argparse.Namespace) -> Sequence[str]:
    """Return the names of the migrations that the database lacks."""
    try:
        async with opened(options, migrate=False):
            return ()
    except SchemaError as error:
        found = [each.name for each in own_migrations() if each.name in str(error)]
        if not found:
            raise  # A newer version made it, or somebody changed it.
        return found


def _tell(options: argparse.Namespace, applied: Sequence[str], told: str) -> int:
    if options.json:
        print_json({"applied": list(applied), "note": told})
    else:
        print(told)
    return 0


def _print_sql(options: argparse.Namespace) -> int:
    if options.store.startswith("file:"):
        return _tell(options, (), NO_SCHEMA)
    for name, sql in _schema_of(options.store):
        if options.json:
            print_json({"name": name, "sql": sql})
        else:
            print(f"-- {name}\n{sql.strip()}\n")
    return 0


def _schema_of(url: str) -> Iterator[tuple[str, str]]:
    """Yield the steps that make the schema of a database of this kind, by name."""
    scheme = url.partition(":")[0]
    if scheme in ("postgresql", "postgres"):
        yield from _postgres_schema_of(url)
    elif scheme == "d1":
        yield from _d1_schema()
    elif scheme == "sqlite":
        yield "001_reference", DURABLE_SCHEMA_SQL
        for migration in own_migrations():
            yield migration.name, migration.sql
    else:
        raise UsageError(f"the schema of a store at {scheme!r:.40} is not known")


def _postgres_schema_of(url: str) -> Iterator[tuple[str, str]]:
    from perdure.store.sql.postgres.address import read_address
    from perdure.store.sql.postgres.schema import migration_sql

    schema = read_address(url).schema
    statements = migration_sql(schema, own_migrations(), iso_time(system_clock()))
    yield f"schema {schema}", "\n".join(f"{each.strip().rstrip(';')};" for each in statements)


def _d1_schema() -> Iterator[tuple[str, str]]:
    """Yield one step with the record of what was applied, for whoever applies it elsewhere."""
    from perdure.store.sql.d1.schema import migration_sql

    yield "schema", "\n".join(migration_sql(own_migrations(), iso_time(system_clock())))
