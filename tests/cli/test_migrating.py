"""`perdure migrate`, and that no other command migrates what it only looks at."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from perdure.store.opening import path_of
from perdure.store.sql.schema import DURABLE_SCHEMA_SQL, own_migrations
from tests.cli.desk import Desk


def path(desk: Desk) -> Path:
    found = path_of(desk.url)
    assert found is not None
    return Path(found)


@pytest.fixture
def older(desk: Desk) -> Desk:
    """A database as the first version of the package has made it."""
    connection = sqlite3.connect(path(desk))
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(DURABLE_SCHEMA_SQL)
    for migration in own_migrations()[:2]:
        connection.executescript(migration.sql)
    rows = [(each.number, each.name, each.sha256, "then") for each in own_migrations()[:2]]
    with connection:
        connection.executemany("INSERT INTO perdure_schema VALUES (?, ?, ?, ?)", rows)
    connection.close()
    return desk


def test_an_older_database_is_brought_up_to_date_once(older: Desk) -> None:
    (told,) = older.json("migrate")
    assert "103_upkeep" in told["applied"]
    assert older.json("migrate")[0]["applied"] == []
    assert older.json("ls") == []


@pytest.mark.parametrize(
    "arguments", [("ls",), ("show", "run"), ("retry", "run"), ("gc",), ("hooks", "ls")]
)
def test_no_other_command_migrates_it(older: Desk, arguments: tuple[str, ...]) -> None:
    before = path(older).read_bytes()
    told = older.run(*arguments)
    assert (told.code, told.out) == (2, "")
    assert f"perdure migrate --store {older.url}" in told.err
    assert "103_upkeep" in told.err
    assert path(older).read_bytes() == before


def test_a_newer_database_is_left_alone(desk: Desk) -> None:
    desk.work(lambda store: store.list_runs())
    connection = sqlite3.connect(path(desk))
    with connection:
        connection.execute("INSERT INTO perdure_schema VALUES (999, 'x', 'y', 'z')")
    connection.close()
    told = desk.run("migrate")
    assert told.code == 2
    assert "999" in told.err


def test_the_statements_are_printed_and_make_the_schema(desk: Desk, tmp_path: Path) -> None:
    told = desk.run("migrate", "--sql")
    assert told.code == 0
    assert list(tmp_path.iterdir()) == []
    connection = sqlite3.connect(":memory:")
    connection.executescript(told.out)
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    connection.close()
    assert {"durable_runs", "perdure_outbox", "idx_perdure_runs_ended"} <= tables
    names = [each["name"] for each in desk.json("migrate", "--sql")]
    assert names == ["001_reference", *(each.name for each in own_migrations())]


def test_the_statements_of_an_unknown_database_are_not_made_up(desk: Desk) -> None:
    told = desk.run("migrate", "--sql", "--store", "mongodb://x/y", store=False)
    assert (told.code, told.out) == (2, "")
    assert "mongodb" in told.err


def test_a_folder_of_files_has_no_schema(tmp_path: Path, desk: Desk) -> None:
    (tmp_path / "folder").mkdir()
    told = desk.run("migrate", "--store", f"file:{tmp_path / 'folder'}", store=False)
    assert told.code == 0
    assert "no schema" in told.out
    assert list((tmp_path / "folder").iterdir()) == []


def test_where_there_is_no_database_none_is_made(desk: Desk, tmp_path: Path) -> None:
    told = desk.run("migrate")
    assert told.code == 2
    assert list(tmp_path.iterdir()) == []
