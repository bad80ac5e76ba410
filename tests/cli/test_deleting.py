"""`perdure delete` and `perdure gc`: what goes, what is refused, what is asked first."""

from __future__ import annotations

import io
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from perdure.core.changes import Suspend
from perdure.core.limits import FRAMES_KEPT_MS
from perdure.core.records import SessionKey
from perdure.store.opening import path_of
from perdure.store.protocol import RunStore
from perdure.testing.clock import START_MS, ManualClock
from perdure.testing.samples import completed, delivery, finish, hold, row
from tests.cli.desk import Desk


class Person(io.StringIO):
    """Somebody at a terminal, with an answer."""

    def isatty(self) -> bool:
        return True


async def end(store: RunStore) -> None:
    await finish(store, "run", row(1, "a"), completed(0, "kept"))


async def ids(store: RunStore) -> list[str]:
    return [run.run_id for run in await store.list_runs()]


def test_a_run_that_has_ended_is_deleted(each_desk: Desk) -> None:
    each_desk.work(end)
    told = each_desk.run("delete", "run", "--yes")
    assert (told.code, told.out) == (0, "run is deleted\n")
    assert each_desk.work(ids) == []
    assert each_desk.run("delete", "run", "--yes").code == 3


def test_a_run_that_is_worked_on_is_to_be_stopped_first(desk: Desk) -> None:
    async def begin(store: RunStore) -> None:
        await hold(store, "run")

    desk.work(begin)
    told = desk.run("delete", "run", "--yes")
    assert told.code == 1
    assert "perdure stop run" in told.out
    assert desk.work(ids) == ["run"]


@pytest.mark.parametrize(("answer", "left"), [("y\n", []), ("\n", ["run"]), ("no\n", ["run"])])
def test_somebody_who_is_there_is_asked(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, answer: str, left: list[str]
) -> None:
    desk.work(end)
    monkeypatch.setattr("sys.stdin", Person(answer))
    told = desk.run("delete", "run")
    assert told.code == (1 if left else 0)
    assert told.out.startswith("delete run (completed)")
    assert desk.work(ids) == left


def test_nobody_who_could_be_asked_deletes_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.work(end)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    told = desk.run("delete", "run")
    assert (told.code, told.out) == (2, "")
    assert "--yes" in told.err
    assert desk.work(ids) == ["run"]


def test_what_is_to_be_deleted_must_be_named(desk: Desk) -> None:
    desk.work(end)
    assert desk.run("delete", "--yes").code == 2


def test_frames_go_after_a_day_and_runs_when_they_are_told_to(each_desk: Desk) -> None:
    # The command goes by the machine's clock, which is later than that of the test.
    each_desk.work(end, clock=ManualClock(START_MS - FRAMES_KEPT_MS))

    async def wait(store: RunStore) -> None:
        await finish(store, "told", delivery(0))

    each_desk.work(wait, clock=ManualClock(START_MS - FRAMES_KEPT_MS))
    assert each_desk.json("gc", "--frames-after", "never") == [
        {"dryRun": False, "frames": 0, "runs": 0}
    ]
    assert each_desk.json("gc", "--dry-run") == [{"dryRun": True, "frames": 1, "runs": 0}]
    told = each_desk.run("gc")
    assert told.out == "deleted: the frames of 1 turn, and 0 runs\n"
    assert each_desk.json("gc") == [{"dryRun": False, "frames": 0, "runs": 0}]
    assert each_desk.json("gc", "--runs-after", "1d")[0]["runs"] == 1
    assert each_desk.work(ids) == ["told"]


def test_what_ended_lately_stays(each_desk: Desk) -> None:
    each_desk.work(end)
    assert each_desk.json("gc", "--runs-after", "1h") == [{"dryRun": False, "frames": 0, "runs": 0}]


@pytest.mark.parametrize("length", ["1", "-1d", "1 d", "1y", "", "1e3s", "٣d"])
def test_a_length_that_is_none_is_refused_by_name(desk: Desk, length: str) -> None:
    desk.work(end)
    told = desk.run("gc", f"--runs-after={length}")
    assert told.code == 2
    assert "--runs-after" in told.err


# Sessions and users.


async def three_sessions(store: RunStore) -> None:
    for session, owner in (("a", "ada"), ("b", "ada"), ("c", "bob")):
        for turn in range(2):
            key = SessionKey(session, turn, 0, owner)
            await finish(store, f"chat:{session}:{turn}", completed(0), delivery(0), session=key)


def test_a_session_is_deleted_as_a_whole(each_desk: Desk) -> None:
    each_desk.work(three_sessions)
    told = each_desk.run("delete", "--session", "a", "--yes")
    assert (told.code, told.out) == (0, "deleted: 1 session with 2 turns\n")
    assert each_desk.work(ids) == ["chat:b:0", "chat:b:1", "chat:c:0", "chat:c:1"]
    assert each_desk.run("delete", "--session", "a", "--yes").code == 3
    assert each_desk.run("delete", "--session", "b", "--tenant", "acme", "--yes").code == 3


def test_all_of_a_user_is_deleted(each_desk: Desk) -> None:
    each_desk.work(three_sessions)
    (told,) = each_desk.json("delete", "--user", "ada", "--yes")
    assert (told["done"], told["runs"]) == (True, 4)
    assert each_desk.work(ids) == ["chat:c:0", "chat:c:1"]
    assert each_desk.json("delete", "--user", "ada", "--yes")[0]["runs"] == 0


def test_a_session_in_flight_is_left_alone_unless_it_may_be_stopped(desk: Desk) -> None:
    async def fly(store: RunStore) -> None:
        await hold(store, "chat:a:0", session=SessionKey("a", 0, 0, "ada"))

    desk.work(fly)
    told = desk.run("delete", "--session", "a", "--yes")
    assert told.code == 1
    assert "--stop" in told.out
    assert desk.work(ids) == ["chat:a:0"]


@pytest.mark.parametrize(
    "arguments",
    [("run", "--session", "a"), ("--session", "a", "--user", "u"), ("run", "--stop"), ()],
)
def test_one_thing_is_deleted_at_a_time(desk: Desk, arguments: tuple[str, ...]) -> None:
    desk.work(three_sessions)
    told = desk.run("delete", "--yes", *arguments)
    assert (told.code, told.out) == (2, "")
    assert len(desk.work(ids)) == 6


def test_a_stop_does_not_wait_for_turns_that_nobody_works_on(each_desk: Desk) -> None:
    async def leave(store: RunStore) -> None:
        key = SessionKey("a", 0, 0, "ada")
        lease = await hold(store, "chat:a:0", session=key)
        await store.write(lease, Suspend("waiting", wake_key="never"))

    async def lose(store: RunStore) -> None:
        await hold(store, "chat:b:0", session=SessionKey("b", 0, 0, "ada"))

    each_desk.work(leave)
    # Its lease lapsed long ago by the clock of the command.
    each_desk.work(lose, clock=ManualClock(START_MS - FRAMES_KEPT_MS))
    told = each_desk.run("delete", "--user", "ada", "--stop", "--yes")
    assert (told.code, told.out) == (0, "deleted: 2 sessions with 2 turns\n")
    assert each_desk.work(ids) == []


@pytest.mark.parametrize("named", [("chat:a:0",), ("--session", "a"), ("--user", "ada")])
def test_a_scrub_leaves_no_fragment_in_the_file(desk: Desk, named: tuple[str, ...]) -> None:
    desk.work(three_sessions)
    told = desk.run("delete", *named, "--scrub", "--yes")
    assert told.code == 0
    path = path_of(desk.url)
    assert path is not None
    for name in (path, f"{path}-wal"):
        if Path(name).exists() and len(named) == 2:
            # The turn behind a single one still names it as its parent.
            assert b"chat:a:0" not in Path(name).read_bytes()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA freelist_count").fetchone() == (0,)
