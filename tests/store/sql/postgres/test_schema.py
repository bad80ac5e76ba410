"""The schema of PostgreSQL: which words its columns refuse, and at what price."""

from __future__ import annotations

import psycopg
import pytest

from perdure.store.protocol import RunStore
from perdure.testing.samples import hold
from tests.store.sql.outsider import execute


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE {}.durable_runs SET status = 'lost'",
        "INSERT INTO {}.durable_steps (run_id, step_index, intent, kind, status) "
        "VALUES ('run', 0, 'i', 'logic', 'lost')",
    ],
    ids=["run", "step"],
)
async def test_a_status_that_nobody_knows_is_refused_by_the_database(
    store: RunStore, url: str, change: str
) -> None:
    await hold(store)
    with pytest.raises(psycopg.errors.CheckViolation):
        await execute(url, change)


async def test_no_table_has_a_check_that_every_write_would_read_anew(
    store: RunStore, url: str
) -> None:
    await hold(store)
    found = await execute(
        url,
        "SELECT conname FROM pg_constraint "
        "WHERE contype = 'c' AND conrelid <> 0 AND connamespace = '{}'::regnamespace",
    )
    assert found == []
