"""The schema of a D1 database: made by command, taken over, and whole after any interruption."""

from __future__ import annotations

import asyncio

import pytest

from perdure.core.changes import EndRun
from perdure.errors import SchemaError
from perdure.store.sql.d1.driver import D1
from perdure.store.sql.d1.schema import migration_sql
from perdure.store.sql.d1.store import D1DurableRunStore
from perdure.store.sql.schema import (
    DURABLE_SCHEMA_SQL,
    DURABLE_SCHEMA_VERSION,
    own_migrations,
    split_statements,
)
from perdure.testing.samples import completed, manifest
from tests.store.d1_server import NOW, D1Server, Fault
from tests.store.sql.reference_database import HASH, LONG_AGO

pytestmark = pytest.mark.node
REFERENCE = split_statements(DURABLE_SCHEMA_SQL)
NAMES = [each.name for each in own_migrations()]
MADE = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE '_cf_%' ORDER BY name"


async def migrate(d1: D1Server) -> None:
    database = D1(d1.api(), migrate=True)
    try:
        await database.open()
    finally:
        await database.close()


async def test_a_database_that_lacks_something_is_refused_and_not_touched(d1: D1Server) -> None:
    d1.drop()
    store = D1DurableRunStore(d1.binding())
    with pytest.raises(SchemaError, match=r"101_runs.*perdure migrate"):
        await store.read_run("r")
    assert await store.get_schema_version() is None
    assert d1.run(MADE) == [[]]
    await migrate(d1)
    # A handle that was refused looks again.
    assert await store.read_run("r") is None
    assert await store.get_schema_version() == DURABLE_SCHEMA_VERSION
    await store.close()
    await d1.let_go()


async def test_two_that_migrate_at_once_make_it_once(d1: D1Server) -> None:
    d1.drop()
    await asyncio.gather(*(migrate(d1) for _ in range(3)))
    (rows,) = d1.run("SELECT name FROM perdure_schema ORDER BY number")
    assert [row["name"] for row in rows] == NAMES


@pytest.mark.parametrize("fault", ["after", "before", {"cut": 7}, {"cut": 25}, {"cut": -1}])
async def test_a_migration_whose_answer_is_lost_is_finished(d1: D1Server, fault: Fault) -> None:
    d1.drop()
    await migrate(d1)
    expected = d1.run(MADE)
    d1.drop()
    # Three looks at what is there, then the migration itself.
    d1.fail(None, None, None, fault)
    await migrate(d1)
    d1.fail()
    assert d1.run(MADE) == expected
    await migrate(d1)


async def test_a_database_of_the_typescript_library_is_taken_over(d1: D1Server) -> None:
    d1.drop()
    d1.run(*REFERENCE)
    d1.run(
        "INSERT INTO durable_runs (run_id, manifest_hash, project_id, status, created_at, "
        f"updated_at, lease_holder_id, lease_expires_at, step_count) VALUES ('lapsed', '{HASH}', "
        f"'lab', 'running', '{LONG_AGO}', '{LONG_AGO}', 'ts:1', '{LONG_AGO}', 1)",
        "INSERT INTO durable_steps (run_id, step_index, intent, kind, status, attempts, "
        "result_json, started_at, completed_at) VALUES ('lapsed', 0, 'step 0', 'logic', "
        f"'completed', 1, '[\"ü\"]', '{LONG_AGO}', '{LONG_AGO}')",
    )
    before = D1DurableRunStore(d1.binding())
    assert await before.get_schema_version() == 1
    with pytest.raises(SchemaError):
        await before.read_run("lapsed")
    await before.close()
    store = D1DurableRunStore(d1.binding(), migrate=True, code_version="v2")
    claim = await store.start_or_resume("lapsed", manifest(), worker_id="w")
    assert claim.lease is not None
    assert [step.result for step in claim.steps] == [["ü"]]
    await store.write(claim.lease, completed(1, 2), EndRun("completed"))
    # It still is a database of version 1 to the other library.
    assert await store.get_schema_version() == 1
    (rows,) = d1.run("SELECT status, lease_holder_id FROM durable_runs")
    assert rows == [{"status": "completed", "lease_holder_id": None}]
    await store.close()
    await d1.let_go()


async def test_a_newer_or_changed_database_is_left_alone(d1: D1Server) -> None:
    for change, match in (
        ("INSERT INTO perdure_schema VALUES (999, 'x', 'y', 'z')", "999"),
        ("UPDATE perdure_schema SET sha256 = 'other' WHERE number = 101", "101"),
        ("INSERT INTO durable_schema_info VALUES (3, 'then')", "version 3"),
    ):
        d1.drop()
        d1.run(*migration_sql(own_migrations(), NOW))
        d1.run(change)
        with pytest.raises(SchemaError, match=match):
            await migrate(d1)
    d1.drop()


async def test_a_database_that_lost_a_table_says_so(d1: D1Server) -> None:
    store = d1.store(d1.api(d1.clean()))
    await store.start_or_resume("r", manifest(), worker_id="w")
    d1.run("DROP TABLE perdure_frames")
    with pytest.raises(SchemaError, match="perdure_frames"):
        await store.read_frames("r")
    await store.close()
    d1.drop()
