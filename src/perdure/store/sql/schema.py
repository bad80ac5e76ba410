"""The schema: the reference's version 1, our own migrations, and what a database needs of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple

from perdure.errors import SchemaError
from perdure.store.sql.database import package_text

DURABLE_SCHEMA_VERSION: Final = 1
DURABLE_SCHEMA_SQL: Final = package_text("migrations/001_reference.sql")
"""The reference's schema. Applying it is idempotent and records version 1 once."""

REFERENCE_VERSION_MAX: Final = 2
"""The newest version of the reference that leaves alone what we use."""


class Migration(NamedTuple):
    """One numbered file. Once it was released it is never changed."""

    number: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode("utf-8")).hexdigest()


_NAMES: Final = (
    "101_runs",
    "102_own_tables",
    "103_upkeep",
    "104_schedules",
    "105_sessions",
    "106_erasure",
    "107_ledger",
    "108_cache_writes",
)


def own_migrations() -> list[Migration]:
    """Return our migrations in the order in which they are applied."""
    return [
        Migration(int(name[:3]), name, package_text(f"migrations/{name}.sql")) for name in _NAMES
    ]


def missing_migrations(
    applied: Sequence[tuple[int, str]], reference_version: int | None
) -> list[Migration]:
    """Return what a database still needs.

    `applied` are the numbers and hashes of its trail, `reference_version` is the highest version
    that `durable_schema_info` records. Raises SchemaError for a database that a newer version
    made, and for one that was made by another text than ours.
    """
    if reference_version is not None and reference_version > REFERENCE_VERSION_MAX:
        raise SchemaError(
            f"the database has version {reference_version} of the reference's schema; "
            f"this version of perdure knows {REFERENCE_VERSION_MAX} at most"
        )
    known = own_migrations()
    hashes = {migration.number: migration.sha256 for migration in known}
    for number, sha256 in applied:
        if number not in hashes:
            raise SchemaError(
                f"the database was migrated by a newer version of perdure (migration {number})"
            )
        if hashes[number] != sha256:
            raise SchemaError(
                f"migration {number} of the database is not the one of this version of perdure: "
                "a released migration was changed"
            )
    numbers = {number for number, _ in applied}
    return [migration for migration in known if migration.number not in numbers]


def split_statements(sql: str) -> list[str]:
    """Return the statements of a migration, each of which ends with a `;` at a line's end."""
    statements: list[str] = []
    lines: list[str] = []
    for line in sql.splitlines():
        if line.startswith("--"):
            continue
        lines.append(line)
        if line.endswith(";"):
            statements.append("\n".join(lines).strip())
            lines = []
    return statements
