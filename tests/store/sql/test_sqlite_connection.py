"""What SQLite files are refused, how connections are set up, and who waits for a lock."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from perdure.errors import (
    SchemaError,
    StoreBusyError,
    StoreError,
    StoreUnavailableError,
    UsageError,
    ValueTooLargeError,
)
from perdure.store.sql.sqlite_connection import (
    PAGE_BYTES,
    WAL_BYTES_KEPT,
    Durability,
    check_library,
    check_path,
    connect_reader,
    connect_renewer,
    connect_writer,
    patient,
    translated,
)


@pytest.mark.parametrize("name", ["", ":memory:", "file:runs.db", "file::memory:?cache=shared"])
def test_what_is_not_a_file_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="not a file"):
        check_path(name)


def test_a_folder_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        check_path(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        check_path(tmp_path / "missing" / "runs.db")
    with pytest.raises(UsageError, match="zero byte"):
        check_path(f"{tmp_path}/a\0b")


def test_a_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_path("runs.db") == str(tmp_path.resolve() / "runs.db")


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "fuse.sshfs", "vboxsf"]
)
def test_a_network_mount_is_refused(tmp_path: Path, kind: str) -> None:
    shared = tmp_path / "our share"
    shared.mkdir()
    mounts = tmp_path / "mounts"
    point = str(shared.resolve()).replace(" ", "\\040")
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {point} {kind} rw 0 0\n")
    with pytest.raises(UsageError, match=f"network mount \\({kind}\\)"):
        check_path(shared / "runs.db", mounts=str(mounts))
    assert check_path(tmp_path / "runs.db", mounts=str(mounts))
    (shared / "deep").mkdir()
    with pytest.raises(UsageError, match="network mount"):
        check_path(shared / "deep" / "runs.db", mounts=str(mounts))


def test_the_last_mount_on_a_point_counts(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    point = tmp_path.resolve()
    mounts.write_text(f"server:/x {point} nfs rw 0 0\n/dev/sdb {point} ext4 rw 0 0\n")
    assert check_path(tmp_path / "runs.db", mounts=str(mounts))
    assert check_path(tmp_path / "runs.db", mounts=str(tmp_path / "no such list"))


def test_an_old_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_library()
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(StoreUnavailableError, match="too old"):
        check_library()


def setting(connection: sqlite3.Connection, name: str) -> object:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return value


@pytest.mark.parametrize(("durability", "level"), [("full", 2), ("normal", 1)])
def test_the_durability_is_the_flush_of_every_commit(
    tmp_path: Path, durability: Durability, level: int
) -> None:
    connection = connect_writer(str(tmp_path / "runs.db"), durability)
    assert setting(connection, "synchronous") == level
    assert setting(connection, "journal_mode") == "wal"
    assert setting(connection, "page_size") == PAGE_BYTES
    assert setting(connection, "busy_timeout") == 0
    connection.close()


def test_only_the_writer_copies_the_log_into_the_file(tmp_path: Path) -> None:
    path = str(tmp_path / "runs.db")
    writer = connect_writer(path, "full")
    renewer, reader = connect_renewer(path), connect_reader(path)
    assert setting(writer, "wal_autocheckpoint") != 0
    assert setting(renewer, "wal_autocheckpoint") == setting(reader, "wal_autocheckpoint") == 0
    assert setting(reader, "query_only") == 1
    for connection in (reader, renewer, writer):
        connection.close()


def test_a_log_that_a_reader_let_grow_is_cut_when_the_reader_has_left(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    log = path.with_name("runs.db-wal")
    writer, reader = connect_writer(str(path), "normal"), connect_reader(str(path))
    writer.execute("CREATE TABLE bulk (content BLOB)")
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM bulk").fetchall()
    for _ in range(4):
        writer.execute("INSERT INTO bulk VALUES (zeroblob(?))", (WAL_BYTES_KEPT // 3,))
    assert log.stat().st_size > WAL_BYTES_KEPT
    reader.execute("COMMIT")
    for _ in range(2):  # The first copies the log into the file, the second begins it anew.
        writer.execute("INSERT INTO bulk VALUES (NULL)")
    assert log.stat().st_size <= WAL_BYTES_KEPT
    reader.close()
    writer.close()


def test_patience_ends_with_a_busy_store(tmp_path: Path) -> None:
    holder, waiter = (connect_writer(str(tmp_path / "runs.db"), "full") for _ in range(2))
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusyError, match="30 ms"):
        patient(lambda: waiter.execute("BEGIN IMMEDIATE"), patience_ms=30)
    tries: list[int] = []

    def begin() -> None:
        tries.append(1)
        if len(tries) == 3:
            holder.execute("COMMIT")
        waiter.execute("BEGIN IMMEDIATE")

    patient(begin, patience_ms=20_000)
    assert len(tries) >= 3
    waiter.close()
    holder.close()


def test_only_a_lock_is_waited_for(tmp_path: Path) -> None:
    connection = connect_writer(str(tmp_path / "runs.db"), "full")
    with pytest.raises(sqlite3.OperationalError, match="syntax"):
        patient(lambda: connection.execute("BEGIN NOTHING"))
    connection.close()


def test_errors_say_what_they_mean_for_the_caller(tmp_path: Path) -> None:
    connection = connect_writer(str(tmp_path / "runs.db"), "full")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000)
    expected = {
        "SELECT * FROM nowhere": SchemaError,
        "SELECT missing FROM sqlite_master": SchemaError,
        "SELECT json('{')": StoreError,
        "SELECT zeroblob(10001)": ValueTooLargeError,
    }
    for sql, kind in expected.items():
        with pytest.raises(sqlite3.Error) as caught:
            connection.execute(sql).fetchall()
        meaning = translated(caught.value, "runs.db")
        assert type(meaning) is kind, sql
        assert meaning.__cause__ is caught.value
    error = KeyError("ours")
    assert translated(error, "runs.db") is error
    connection.close()
