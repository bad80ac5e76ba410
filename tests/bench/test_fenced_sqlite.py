"""The floor of our promise on SQLite keeps that promise: the same rows, and no lost lease."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import perdure
from bench.fenced_sqlite import FencedSqlite
from bench.sides import perdure_side

TABLES = ("durable_runs", "durable_steps", "perdure_attempts")


def _filled(path: Path, table: str) -> list[set[str]]:
    """Return, for each row, the columns that hold something."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute(f"SELECT * FROM {table}").fetchall()
    return [
        {name for name, value in zip(row.keys(), row, strict=True) if value is not None}
        for row in rows
    ]


async def test_it_fills_the_columns_that_a_durable_run_fills(tmp_path: Path) -> None:
    floor = FencedSqlite(str(tmp_path / "floor.db"), synchronous="full")
    await floor.run_steps("a", 3)
    await floor.close()
    store = await perdure.open_store(f"sqlite:{tmp_path / 'perdure.db'}")
    await perdure_side.run(store, "a", perdure_side.task_of(3))
    await store.close()
    for table in TABLES:
        filled = _filled(tmp_path / "floor.db", table)
        assert filled
        assert filled == _filled(tmp_path / "perdure.db", table)


async def test_it_writes_nothing_for_who_has_lost_the_lease(tmp_path: Path) -> None:
    path = tmp_path / "floor.db"
    floor = FencedSqlite(str(path), synchronous="full")
    await floor.run_steps("a", 1)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "CREATE TRIGGER lost AFTER INSERT ON durable_steps "
            "BEGIN UPDATE durable_runs SET epoch = 2 WHERE run_id = NEW.run_id; END"
        )
    with pytest.raises(RuntimeError, match="the lease of 'b' is lost"):
        await floor.run_steps("b", 3)
    assert await floor.replay("b") == [{"i": 0, "status": "ok"}]
    await floor.close()
