"""Old runs cost PostgreSQL nothing, and what moves in a run moves in place."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import psycopg
import pytest

from perdure.core.limits import LEASE_MS
from perdure.store.opening import open_store
from perdure.store.sql.postgres.address import read_address
from perdure.testing.samples import completed, finish, hold, row
from tests.store.postgres_server import PostgresServer
from tests.store.sql.scale import STATEMENTS, Looked, fill, look, ways_to_runs

FEW, MANY = 2_000, 40_000
ROOM = 40
"""Pages by which a statement may grow: an index gets deeper, rows lie further apart."""
STEPS = 60


def looked_at(server: PostgresServer, runs: int) -> Mapping[str, Looked]:
    address = read_address(server.new_store())
    with psycopg.connect(address.conninfo, autocommit=True) as connection:
        fill(connection, address.schema, runs)
        return {name: look(connection, address.schema, name) for name in STATEMENTS}


@pytest.mark.timeout(120)
def test_claims_lists_sweeps_and_deliveries_stay_as_cheap_as_they_are(
    postgres: PostgresServer,
) -> None:
    few, many = looked_at(postgres, FEW), looked_at(postgres, MANY)
    for name, then in many.items():
        assert then.read_whole == [], name
        # Twenty times as many runs.
        assert then.pages <= 2 * few[name].pages + ROOM, (name, few[name], then)


def test_a_run_is_found_by_its_key_however_few_are_not_over(postgres: PostgresServer) -> None:
    address = read_address(postgres.new_store())
    with psycopg.connect(address.conninfo, autocommit=True) as connection:
        fill(connection, address.schema, FEW, analyzes=False)
        over = f"UPDATE {address.schema}.durable_runs SET status = 'completed'"
        connection.execute(f"{over} WHERE run_id <> 'run-30'".encode())
        connection.execute(b"VACUUM (ANALYZE)")
        found = ways_to_runs(connection, address.schema)
    assert {name for name, _ in found} >= {"fence", "fenced_insert_step", "take_run", "end_run"}
    others = {(name, index) for name, index in found if index != "durable_runs_pkey"}
    # What a TypeScript worker has left is seldom more than a few.
    assert others <= {("put_turn", "idx_perdure_runs_foreign")}


async def test_a_handle_that_was_opened_while_all_was_empty_reads_no_table_as_a_whole(
    postgres: PostgresServer,
) -> None:
    url = postgres.new_store()
    address = read_address(url)
    with psycopg.connect(address.conninfo, autocommit=True) as connection:
        # From now on the server knows of the tables that nothing is in them.
        connection.execute(b"VACUUM (ANALYZE)")
        store = await open_store(url)
        for number in range(10):
            await finish(store, f"first-{number}", row(1, "x"), completed(0))
        fill(connection, address.schema, MANY, analyzes=False)
        before = rows_read_as_a_whole(connection, address.schema)
        for number in range(10):
            await finish(store, f"second-{number}", row(1, "x"), completed(0))
        await store.close()  # A connection that ends has told what it counted.
        assert rows_read_as_a_whole(connection, address.schema) - before < MANY


def rows_read_as_a_whole(connection: psycopg.Connection[Any], schema: str) -> int:
    """Return how many rows were read by who went through a whole table."""
    sql = "SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE schemaname = %s"
    ((count,),) = connection.execute(sql.encode(), (schema,)).fetchall()
    return int(count)


async def test_writes_and_renewals_move_the_row_of_a_run_in_place(
    postgres: PostgresServer,
) -> None:
    # While anybody's snapshot of the database is open, the server's own analyzer's too, no old
    # version can make room for a new one: then it is looked at again.
    shares = [await share_in_place(postgres)]
    while shares[-1] <= 0.9 and len(shares) < 3:
        shares.append(await share_in_place(postgres))
    assert shares[-1] > 0.9, shares


async def share_in_place(postgres: PostgresServer) -> float:
    """Write and renew in a new store, and return which share of updates was made in place."""
    url = postgres.new_store()
    address = read_address(url)
    store = await open_store(url)
    leases = [await hold(store, f"run-{number}") for number in range(20)]
    for position in range(STEPS):
        await asyncio.gather(*(store.write(lease, completed(position, "x")) for lease in leases))
        await store.renew(leases, LEASE_MS)
    await store.close()  # A connection that ends has told what it counted.
    sql = (
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables "
        "WHERE schemaname = %s AND relname = 'durable_runs'"
    )
    with psycopg.connect(address.conninfo, autocommit=True) as connection:
        ((updated, in_place),) = connection.execute(sql.encode(), (address.schema,)).fetchall()
    assert updated >= 2 * STEPS * len(leases)
    return float(in_place / updated)
