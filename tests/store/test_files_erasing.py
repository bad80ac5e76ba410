"""Erasing a session of a FileStore by a process that is killed in the middle of it."""

from __future__ import annotations

import fcntl
import signal
from pathlib import Path

import pytest

from perdure.core.records import SessionKey
from perdure.store.files import FileStore
from perdure.store.filetombstones import Tombstones
from perdure.testing.samples import completed, finish, hold
from tests.store.file_folders import start

TURNS = 3


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    path = tmp_path / "runs"
    store = FileStore(path)
    for session, turns in (("s", TURNS), ("other", 1)):
        for turn in range(turns):
            key = SessionKey(session, turn, 0, "olga")
            await finish(store, f"{session}-{turn}", completed(0), session=key)
    await store.close()
    return path


def erase_and_die(folder: Path, survived: int) -> None:
    child = start("erase_and_die", folder, "s", survived)
    out, _ = child.communicate(timeout=30)
    assert (child.returncode, out) == (-signal.SIGKILL, "")


async def ids(store: FileStore) -> list[str]:
    return [run.run_id for run in await store.list_runs()]


@pytest.mark.parametrize("survived", range(TURNS + 1))
async def test_whoever_opens_the_folder_next_ends_an_erasure(folder: Path, survived: int) -> None:
    erase_and_die(folder, survived)
    store = FileStore(folder)
    assert await ids(store) == ["other-0"]
    assert list(await store.erasure().find_sessions("olga")) == ["other"]
    assert await store.erasure().remove_session("s") is None
    if survived == TURNS:  # Nothing was left to end: the index goes with the next erasure.
        await store.erasure().scrub()
    await store.close()
    assert list((folder / "erasing").iterdir()) == []
    assert len(list((folder / "runs").iterdir())) == 1
    # Behind the tombstone the log of the session is empty, and the session is no more.
    assert len([log for log in (folder / "sessions").glob("*/log") if log.stat().st_size]) == 1
    assert b"s-0" not in (folder / "index").read_bytes()


@pytest.mark.parametrize("survived", range(TURNS + 1))
async def test_a_turn_that_begins_afterwards_begins_a_new_session(
    folder: Path, survived: int
) -> None:
    store = FileStore(folder)
    assert len(await ids(store)) == TURNS + 1
    erase_and_die(folder, survived)
    await hold(store, "new", session=SessionKey("s", 7, 0, "olga"))
    assert sorted(await ids(store)) == ["new", "other-0"]
    new = await store.read_run("new")
    assert new is not None
    assert (new.turn_index, new.parent_run_id) == (7, None)
    await store.close()


async def test_a_refused_erasure_leaves_no_tombstone(folder: Path) -> None:
    store = FileStore(folder)
    assert await store.erasure().remove_session("s", owner_id="eve") is None
    assert await store.erasure().remove_session("s", owner_id="olga") == TURNS
    assert list((folder / "erasing").iterdir()) == []
    assert await ids(store) == ["other-0"]
    await store.close()


async def test_an_erasure_that_finds_no_room_for_its_tombstone_leaves_all_as_it_was(
    folder: Path,
) -> None:
    child = start("make_no_room_for_a_tombstone", folder, "s")
    out, _ = child.communicate(timeout=30)
    assert out.split() == ["full", f"{TURNS}", "0", f"{TURNS}"]
    store = FileStore(folder)
    assert await ids(store) == ["other-0"]
    await store.close()


async def test_nobody_comes_to_a_session_before_its_tombstone_is_gone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []

    def remove(tombstones: Tombstones, key: tuple[str, str]) -> None:
        (log,) = [path for path in (folder / "sessions").glob("*/log") if not path.stat().st_size]
        with pytest.raises(BlockingIOError), log.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.append(log.stat().st_ino)
        true_remove(tombstones, key)

    true_remove = Tombstones.remove
    monkeypatch.setattr(Tombstones, "remove", remove)
    store = FileStore(folder)
    assert await store.erasure().remove_session("s") == TURNS
    await store.close()
    assert len(held) == 1
    assert len(list((folder / "sessions").iterdir())) == 1
