"""The statements: how their text is made for a dialect, and what they cost on SQLite."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.core.effects import system_clock
from perdure.store.sql.database import Dialect, load_statements, package_text
from perdure.store.sql.sqlite_connection import connect_writer, sqlite_statements
from perdure.store.sql.sqlite_schema import prepare_schema

# The turns of one session are few, and their order is not that of an index; nor are processes many,
# or the groups of calls that are named.
SORTED_IN_MEMORY = {
    "find_session_runs",
    "find_session_unpriced",
    "list_session",
    "list_turn",
    "locks_of_handler",
    "sum_runs",
    "sum_sessions",
}
COUNTS_EVERYTHING = {"count_deliveries", "count_runs", "sum_usage"}
"""A survey, for people: what it counts it has to read."""


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = connect_writer(str(tmp_path / "runs.db"), "full")
    prepare_schema(connection, migrate=True, clock=system_clock)
    yield connection
    connection.close()


def plan(connection: sqlite3.Connection, sql: str) -> list[str]:
    count = max((int(number) for number in re.findall(r"\?(\d+)", sql)), default=0)
    rows = connection.execute(f"EXPLAIN QUERY PLAN {sql}", [None] * count)
    return [row[3] for row in rows]


@pytest.mark.parametrize("name", sorted(sqlite_statements()))
def test_every_statement_finds_its_rows_by_an_index(
    connection: sqlite3.Connection, name: str
) -> None:
    if name in COUNTS_EVERYTHING:
        return
    for line in plan(connection, sqlite_statements()[name].sql):
        # What is made on the way is no table: a parameter's rows, a hop to the next run.
        ways = ("json_each", "CONSTANT", "SCAN framed", "SCAN line")
        scans = line.startswith("SCAN") and not any(word in line for word in ways)
        assert not scans, line
        assert name in SORTED_IN_MEMORY or "TEMP B-TREE" not in line, line


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("list_foreign", "idx_perdure_runs_foreign"),
        ("open_session", "idx_perdure_runs_line"),
        ("due_queued", "idx_perdure_runs_line"),
        ("due_queued", "idx_perdure_runs_queue"),
        ("list_session", "idx_perdure_runs_turn"),
        ("list_turn", "idx_perdure_runs_turn"),
        ("create_run", "idx_perdure_runs_turn"),
        ("sum_usage", "idx_perdure_usage_moment"),
        ("sum_usage", "idx_perdure_usage_day"),
        ("sum_usage", "idx_perdure_runs_turn"),
        ("find_unpriced", "idx_perdure_usage_moment"),
    ],
)
def test_what_many_rows_share_is_found_by_the_index_of_the_few(
    connection: sqlite3.Connection, name: str, index: str
) -> None:
    lines = plan(connection, sqlite_statements()[name].sql)
    assert any(f"INDEX {index} " in line for line in lines), lines


def test_nothing_of_our_notation_is_left() -> None:
    for name, text in sqlite_statements().items():
        assert not re.search(r"[{}]|^--", text.sql), name


def test_the_time_is_the_parameter_behind_the_last() -> None:
    texts = sqlite_statements()
    # ?1 to ?4 are in what {fence_self} stands for, and nowhere else in this block.
    assert texts["release_run"].wants_now
    assert "updated_at = ?5" in texts["release_run"].sql
    assert texts["due_wakes"].wants_now
    assert "wake_at <= ?3" in texts["due_wakes"].sql
    assert not texts["read_steps"].wants_now


def test_a_dialect_writes_time_and_rows_in_its_own_way() -> None:
    dialect = Dialect(
        now=lambda number: f"now#{number}",
        later=lambda now, length: f"{now} plus {length}",
        rows=lambda source, columns: f"rows of {source} {list(columns)}",
    )
    texts = load_statements(dialect)
    assert "lease_expires_at = now#3 plus ?2" in texts["beat"].sql
    assert "rows of ?1 [('run_id', 'TEXT'), ('epoch', 'INTEGER')" in texts["beat"].sql


def test_every_block_has_a_name_of_its_own() -> None:
    names = re.findall(r"^-- (\w+) --$", package_text("statements.sql"), re.MULTILINE)
    assert len(names) == len(set(names)) == len(sqlite_statements())
