"""Lists on one SQLite connection: a full disk, groups that fail, and the store's time."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from perdure.core.effects import iso_time
from perdure.errors import SchemaError, StoreFullError, StoreUnavailableError
from perdure.store.sql.database import Refused, Statement
from perdure.store.sql.sqlite_connection import connect_writer, sqlite_statements
from perdure.store.sql.sqlite_dialect import SQLITE
from perdure.store.sql.sqlite_lists import Answer, Job, ListRunner
from perdure.store.sql.sqlite_schema import prepare_schema
from perdure.testing.clock import ManualClock


class Bench:
    """A runner on a connection that the test may limit."""

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.connection = connect_writer(str(path), "full")
        prepare_schema(self.connection, migrate=True, clock=self.clock)
        self.runner = ListRunner(
            self.connection, sqlite_statements(), path=str(path), clock=self.clock, writes=True
        )

    def leave_room(self, pages: int) -> None:
        (used,) = self.connection.execute("PRAGMA page_count").fetchone()
        self.connection.execute(f"PRAGMA max_page_count = {used + pages}")

    def sessions(self) -> set[str]:
        rows = self.connection.execute("SELECT session_id FROM perdure_sessions")
        return {session_id for (session_id,) in rows}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "runs.db")
    yield bench
    bench.runner.close()


def known(session_id: str, owner_id: str | None = None) -> list[Statement]:
    return [Statement("lock_session", ("", session_id, owner_id), required=True)]


def group(runner: ListRunner, lists: Sequence[Sequence[Statement]]) -> list[Answer]:
    """Run the lists as one group, and return the answers in the order of the lists."""
    loop = asyncio.new_event_loop()
    jobs = [Job(statements, loop.create_future()) for statements in lists]
    answers = {answer.future: answer for answer in runner.run_group(jobs)}
    loop.close()
    assert len(answers) == len(jobs)
    return [answers[job.future] for job in jobs]


def test_a_full_disk_fails_what_does_not_fit_and_nothing_else(bench: Bench) -> None:
    bench.runner.run(known("first"))
    bench.leave_room(2)
    large = "x" * 100_000
    lists = [known("small"), known("large", large), known("other")]
    answers = group(bench.runner, lists)
    assert [type(answer.error) for answer in answers] == [type(None), StoreFullError, type(None)]
    assert bench.sessions() == {"first", "small", "other"}
    bench.leave_room(1_000)
    bench.runner.run(known("large", large))
    assert bench.sessions() == {"first", "small", "other", "large"}
    assert bench.connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_list_is_undone_whole_when_the_disk_is_full(bench: Bench) -> None:
    bench.leave_room(2)
    statements = [*known("small"), *known("large", "x" * 100_000)]
    with pytest.raises(StoreFullError, match="no room"):
        bench.runner.run(statements)
    assert bench.sessions() == set()
    assert not bench.connection.in_transaction


def test_a_group_without_a_fault_is_one_commit(bench: Bench) -> None:
    before = bench.runner.commits
    answers = group(bench.runner, [known(f"s-{number}") for number in range(50)])
    assert [answer.rows for answer in answers] == [[[(None,)]]] * 50
    assert bench.runner.commits == before + 1


def test_every_refused_list_of_a_group_is_judged_alone(bench: Bench) -> None:
    bench.runner.run(known("ours", "ann"))
    refused = [*known("undone"), *known("ours", "bob")]
    lists = [known("a"), refused, known("b"), refused, known("c")]
    answers = group(bench.runner, lists)
    kinds = [type(answer.error) for answer in answers]
    assert kinds == [type(None), Refused, type(None), Refused, type(None)]
    assert bench.sessions() == {"ours", "a", "b", "c"}


def test_a_broken_constraint_is_the_fault_of_its_list_alone(bench: Bench) -> None:
    broken = [Statement("lock_session", ("", None, None), required=True)]
    answers = group(bench.runner, [known("a"), broken, known("b")])
    assert [answer.error is None for answer in answers] == [True, False, True]
    assert bench.sessions() == {"a", "b"}


def test_a_group_shares_one_moment_of_the_clock(bench: Bench) -> None:
    group(bench.runner, [known(f"s-{number}") for number in range(5)])
    bench.clock.advance(1_234)
    bench.runner.run(known("later"))
    rows = bench.connection.execute(
        "SELECT DISTINCT created_at FROM perdure_sessions ORDER BY created_at"
    ).fetchall()
    start_ms = bench.clock.now_ms - 1_234
    assert rows == [(iso_time(start_ms),), (iso_time(start_ms + 1_234),)]


@pytest.mark.parametrize(
    "length_ms", [0, 1, 999, 1_001, 15_000, 59_999, 86_400_000, 31_622_400_000]
)
@pytest.mark.parametrize("now_ms", [0, 951_782_399_999, 1_769_850_307_042, 4_102_444_799_001])
def test_a_moment_to_come_is_exact_to_the_millisecond(
    bench: Bench, now_ms: int, length_ms: int
) -> None:
    later = SQLITE.later("?1", "?2")
    (moment,) = bench.connection.execute(
        f"SELECT {later}", (iso_time(now_ms), length_ms)
    ).fetchone()
    assert moment == iso_time(now_ms + length_ms)


def test_a_connection_that_broke_runs_nothing_more(bench: Bench) -> None:
    bench.runner.dead = "the disk is gone"
    answers = group(bench.runner, [known("a"), known("b")])
    assert [type(answer.error) for answer in answers] == [StoreUnavailableError] * 2
    with pytest.raises(StoreUnavailableError, match="the disk is gone"):
        bench.runner.run(known("c"))
    assert bench.sessions() == set()


def test_a_write_of_another_connection_shows_and_an_own_one_does_not(
    tmp_path: Path, bench: Bench
) -> None:
    assert not bench.runner.changed_elsewhere()
    bench.runner.run(known("own"))
    assert not bench.runner.changed_elsewhere()
    other = sqlite3.connect(tmp_path / "runs.db", isolation_level=None)
    other.execute("DELETE FROM perdure_sessions")
    other.close()
    assert bench.runner.changed_elsewhere()
    assert not bench.runner.changed_elsewhere()


def test_what_is_compiled_is_not_run_and_locks_nothing(bench: Bench, tmp_path: Path) -> None:
    bench.runner.run(known("kept"))
    bench.runner.compile(("lock_session", "delete_steps", "take_run"))
    assert bench.sessions() == {"kept"}
    assert not bench.connection.in_transaction
    beside = connect_writer(str(tmp_path / "runs.db"), "full")
    beside.execute("BEGIN IMMEDIATE")
    beside.execute("ROLLBACK")
    beside.close()
    bench.runner.run(known("later"))
    assert bench.sessions() == {"kept", "later"}


def test_what_cannot_be_compiled_is_met_by_whoever_asks_for_it(bench: Bench) -> None:
    bench.connection.execute("ALTER TABLE perdure_sessions RENAME TO hidden")
    bench.runner.compile(("lock_session",))
    with pytest.raises(SchemaError, match="perdure_sessions"):
        bench.runner.run(known("first"))
    bench.connection.execute("ALTER TABLE hidden RENAME TO perdure_sessions")
    bench.runner.run(known("first"))
    assert bench.sessions() == {"first"}
