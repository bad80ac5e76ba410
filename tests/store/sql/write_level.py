"""Writes the dump of the level that the package has: `python -m tests.store.sql.write_level`.

Run it with each release that has a new migration, and commit the file: from then on the tests open
it with the code of the day. Where PYTHONPATH names the `src` of an older checkout, it writes the
level of that one.
"""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import perdure
from perdure.store.sql.schema import own_migrations
from tests.store.sql.level import DIED

ROOT = Path(__file__).parents[3]
SOURCE = Path(perdure.__file__).parents[1]
DUMPS = Path(__file__).parent / "upgrades"
PIECE_CHARACTERS = 80
_ADDED_COLUMN = re.compile(r", (\w+ (?:TEXT|INTEGER|BIGINT|REAL|BLOB))")


def literal(value: object) -> str:
    """Return a value as SQL; a long text is put together from pieces, one a line."""
    if value is None or isinstance(value, int | float):
        return "NULL" if value is None else repr(value)
    if isinstance(value, str):  # Stored traces name the machine on which the dump is made.
        value = value.replace(f"{SOURCE}/", "src/").replace(f"{ROOT}/", "")
    if not isinstance(value, str) or not value.isascii():
        raise ValueError(f"the dump has no way to write {value!r}")
    lines = [" ||\n    ".join(_pieces(line)) for line in value.split("\n")]
    return " || char(10) ||\n    ".join(lines)


def _pieces(line: str) -> Iterator[str]:
    for start in range(0, max(len(line), 1), PIECE_CHARACTERS):
        piece = line[start : start + PIECE_CHARACTERS].replace("'", "''")
        yield f"'{piece}'"


def dump(path: Path) -> Iterator[str]:
    """Yield the statements that make the database at `path` anew."""
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute(
            "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL "
            "ORDER BY type DESC, name"
        ).fetchall()
        for kind, name, sql in found:
            yield _ADDED_COLUMN.sub(r",\n  \1", f"{sql};")
            if kind == "table":
                for row in connection.execute(f"SELECT * FROM {name} ORDER BY 1, 2"):
                    values = ",\n  ".join(map(literal, row))
                    yield f"INSERT INTO {name} VALUES (\n  {values});"


def write(target: Path) -> None:
    """Fill a database in a process that dies, and write what is left of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "level.db"
        filling = [sys.executable, "-m", "tests.store.sql.level", f"sqlite:{path}"]
        code = subprocess.run(filling, cwd=ROOT, check=False, timeout=300).returncode
        if code != DIED:
            raise SystemExit(f"filling the database ended with {code}")
        target.write_text("\n".join([*dump(path), ""]), "utf-8")


def main() -> None:
    """Write the dump of this level, once."""
    target = DUMPS / f"{own_migrations()[-1].number}.sql"
    if target.exists():
        raise SystemExit(f"{target} is there already, and a released level does not change")
    write(target)
    sys.stdout.write(f"{target}\n")


if __name__ == "__main__":
    main()
