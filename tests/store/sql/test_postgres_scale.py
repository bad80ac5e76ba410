"""Old runs cost PostgreSQL nothing, and what moves in a run moves in place."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import psycopg
import pytest

from perdure.core.limits import LEASE_MS
from perdure.store.opening import open_store
from perdure.store.sql.postgres.address import read_address
from perdure.testing.samples import completed, hold
from tests.store.postgres_server import PostgresServer
from tests.store.sql.scale import STATEMENTS, Looked, fill, look

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
        (row,) = connection.execute(sql.encode(), (address.schema,)).fetchall()
    updated, in_place = row
    assert updated >= 2 * STEPS * len(leases)
    return float(in_place / updated)
