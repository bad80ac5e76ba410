"""`perdure migrate`, and that no other command migrates what it only looks at."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import psycopg
import pytest

from perdure.store.opening import path_of
from perdure.store.sql.schema import DURABLE_SCHEMA_SQL, own_migrations, split_statements
from perdure.testing.samples import manifest
from tests.cli.desk import Desk
from tests.store.d1_server import ACCOUNT, TOKEN, D1Server
from tests.store.postgres_server import PostgresServer


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


# PostgreSQL, which is migrated by this command alone.


def with_schema(server: PostgresServer, schema: str) -> str:
    return f"{server.url}?schema={schema}"


def test_a_postgresql_schema_is_made_by_the_command(
    postgres: PostgresServer, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = Desk(with_schema(postgres, "by_command"), capsys)
    refused = desk.run("ls")
    assert refused.code == 2
    # What a shell would take apart is quoted.
    assert f"perdure migrate --store '{desk.url}'" in refused.err
    assert f"perdure migrate --store '{desk.url}'" in desk.run("doctor").out
    (told,) = desk.json("migrate")
    assert told["applied"] == [each.name for each in own_migrations()]
    assert desk.json("migrate")[0]["applied"] == []
    desk.work(lambda store: store.enqueue("run", manifest(), handler="h"))
    assert [run["id"] for run in desk.json("ls")] == ["run"]
    assert desk.run("doctor").code == 0


def test_the_printed_statements_make_a_postgresql_schema(
    postgres: PostgresServer, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = Desk(with_schema(postgres, "by_hand"), capsys)
    told = desk.run("migrate", "--sql")
    assert told.code == 0
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(told.out.encode())
    assert desk.json("migrate")[0]["applied"] == []
    assert desk.json("ls") == []


# Cloudflare D1, which is migrated by this command too, or by Cloudflare's own.


@pytest.fixture
def d1_desk(
    d1: D1Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Desk:
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", TOKEN)
    monkeypatch.setenv("CLOUDFLARE_API_BASE_URL", d1.base_url)
    return Desk(f"d1:{ACCOUNT}/{d1.drop('three')}", capsys)


@pytest.mark.node
def test_a_d1_database_is_made_by_the_command(d1_desk: Desk) -> None:
    refused = d1_desk.run("ls")
    assert refused.code == 2
    assert f"perdure migrate --store {d1_desk.url}" in refused.err
    (told,) = d1_desk.json("migrate")
    assert told["applied"] == [each.name for each in own_migrations()]
    assert d1_desk.json("migrate")[0]["applied"] == []
    d1_desk.work(lambda store: store.enqueue("run", manifest(), handler="h"))
    assert [run["id"] for run in d1_desk.json("ls")] == ["run"]
    assert d1_desk.run("doctor").code == 0


@pytest.mark.node
def test_the_printed_statements_make_a_d1_database(
    d1_desk: Desk, d1: D1Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without_token:
        without_token.delenv("CLOUDFLARE_API_TOKEN")
        told = d1_desk.run("migrate", "--sql")
    assert told.code == 0
    d1.run(*split_statements(told.out), database="three")
    assert d1_desk.json("migrate")[0]["applied"] == []


def test_a_d1_database_needs_a_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CLOUDFLARE_API_TOKEN", raising=False)
    told = Desk("d1:account/database", capsys).run("migrate")
    assert told.code == 2
    assert "set CLOUDFLARE_API_TOKEN" in told.err
