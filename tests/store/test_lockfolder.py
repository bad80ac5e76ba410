"""Liveness locks: who counts as dead, who does not, and what is left behind."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.core.effects import new_token
from perdure.store.lockfolder import KEPT_MS, LockFolder
from tests.store.file_folders import drop_privilege, read_only
from tests.store.lock_children import start
from tests.store.sql.processes import next_line, output, start_together

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "live"


@pytest.fixture
def begin() -> Iterator[Start]:
    """Start processes, and see to it that none outlives the test."""
    children: list[subprocess.Popen[str]] = []

    def begin(
        name: str, *arguments: object, before: Callable[[], None] | None = None
    ) -> subprocess.Popen[str]:
        children.append(start(name, *arguments, before=before))
        return children[-1]

    yield begin
    for child in children:
        child.kill()
        child.communicate()


def kill(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait(60)


def taken(folder: Path) -> tuple[LockFolder, str]:
    locks = LockFolder(str(folder))
    name = locks.take()
    assert name is not None
    return locks, name


def test_the_lock_of_a_living_process_is_not_dead_and_that_of_a_killed_one_is(
    folder: Path, begin: Start
) -> None:
    child = begin("take", folder)
    name = next_line(child)
    locks = LockFolder(str(folder))
    assert locks.dead([name]) == frozenset()
    kill(child)
    assert locks.dead([name]) == {name}
    assert locks.dead([name]) == {name}, "to look changes nothing"


def test_a_process_that_ended_without_closing_is_dead_too(folder: Path, begin: Start) -> None:
    child = begin("take", folder)
    name = next_line(child)
    output(child)
    assert LockFolder(str(folder)).dead([name]) == {name}


def test_a_stopped_process_keeps_its_lock(folder: Path, begin: Start) -> None:
    child = begin("take", folder)
    name = next_line(child)
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    assert LockFolder(str(folder)).dead([name]) == frozenset()


def test_a_fork_and_a_program_that_live_on_do_not_keep_a_dead_process_alive(
    folder: Path, begin: Start
) -> None:
    child = begin("take_and_fork", folder)
    name = next_line(child)
    others = [int(pid) for pid in next_line(child).split()]
    try:
        locks = LockFolder(str(folder))
        assert (folder / name).exists(), "a fork does not end what its parent holds"
        assert locks.dead([name]) == frozenset()
        kill(child)
        for pid in others:
            os.kill(pid, 0)
        assert locks.dead([name]) == {name}
    finally:
        for pid in others:
            os.kill(pid, signal.SIGKILL)


def test_no_handle_takes_another_of_its_own_process_for_dead(folder: Path) -> None:
    first, first_name = taken(folder)
    second, second_name = taken(folder)
    assert first_name != second_name
    for locks in (first, second):
        assert locks.dead([first_name, second_name]) == frozenset()
    assert first.take() == first_name


def test_a_lock_that_was_let_go_says_nothing_and_leaves_nothing(folder: Path) -> None:
    first, first_name = taken(folder)
    second, second_name = taken(folder)
    first.release()
    first.release()
    assert os.listdir(folder) == [second_name]
    assert second.dead([first_name]) == frozenset()
    assert first.take() is None
    second.release()
    assert not folder.exists()


def test_a_handle_that_is_dropped_lets_go(folder: Path) -> None:
    name = taken(folder)[1]
    gc.collect()
    assert not folder.exists()
    assert LockFolder(str(folder)).dead([name]) == frozenset()


def test_a_lock_that_is_missing_says_nothing(folder: Path, begin: Start) -> None:
    child = begin("take", folder)
    name = next_line(child)
    (folder / name).unlink()
    assert LockFolder(str(folder)).dead([name]) == frozenset()


def test_a_name_that_is_none_of_ours_says_nothing(folder: Path, tmp_path: Path) -> None:
    locks, name = taken(folder)
    elsewhere = f"{'0' * 12}-{new_token()}"
    (folder / elsewhere).touch()
    (tmp_path / name).touch()
    readme = f"{name[:13]}readme"
    (folder / readme).touch()
    names = [elsewhere, f"../{name}", readme, "", "\0", f"{name}/", "é", new_token()]
    assert locks.dead(names) == frozenset()


def test_those_who_look_at_once_do_not_take_each_other_for_the_holder(
    folder: Path, begin: Start
) -> None:
    child = begin("take", folder)
    name = next_line(child)
    kill(child)
    with (folder / name).open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert LockFolder(str(folder)).dead([name]) == {name}


def test_who_closes_while_he_is_looked_at_is_not_dead(
    folder: Path, begin: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = begin("take_and_close", folder)
    name = next_line(child)
    lock = fcntl.flock

    def lock_too_late(file: int, kind: int) -> None:
        if child.poll() is None:
            output(child)
        lock(file, kind)

    monkeypatch.setattr(fcntl, "flock", lock_too_late)
    assert LockFolder(str(folder)).dead([name]) == frozenset()
    assert child.poll() == 0


def test_many_who_come_and_go_never_lose_their_locks(folder: Path, begin: Start) -> None:
    children = [begin("take_and_release", folder, 300) for _ in range(3)]
    start_together(children)
    for child in children:
        assert output(child) == ["done"]
    assert not folder.exists()


def test_what_the_dead_have_left_is_deleted_once_it_was_known_for_long(
    folder: Path, begin: Start
) -> None:
    children = [begin("take", folder) for _ in range(2)]
    dead, alive = map(next_line, children)
    kill(children[0])
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    first, _ = taken(folder)
    assert first.dead([dead, alive]) == {dead}, "it may be needed, however long its process lived"
    taken(folder)[0].release()
    assert (folder / dead).exists()
    long_ago = (folder / dead).stat().st_mtime - KEPT_MS / 1_000 - 1
    os.utime(folder / dead, (long_ago, long_ago))
    taken(folder)[0].release()
    assert not (folder / dead).exists()
    assert (folder / alive).exists()


def test_where_nothing_can_be_written_there_is_no_lock(folder: Path, tmp_path: Path) -> None:
    folder.write_text("a file in its place")
    assert LockFolder(str(folder)).take() is None
    nowhere = tmp_path / "missing" / "live"
    assert LockFolder(str(nowhere)).take() is None


def test_in_a_read_only_folder_there_is_no_lock(folder: Path, begin: Start) -> None:
    folder.mkdir()
    with read_only(folder):
        assert next_line(begin("take", folder, before=drop_privilege)) == "None"


def test_a_file_system_that_does_not_keep_locks_has_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grants_everything(_file: int, _kind: int) -> None:
        """As a file system does whose locks mean nothing."""

    monkeypatch.setattr(fcntl, "flock", grants_everything)
    assert LockFolder(str(folder)).take() is None
    assert not folder.exists()


def test_a_file_system_without_locks_has_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(_file: int, _kind: int) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(fcntl, "flock", refuses)
    locks = LockFolder(str(folder))
    assert locks.take() is None
    assert locks.is_settled
    assert not folder.exists()
