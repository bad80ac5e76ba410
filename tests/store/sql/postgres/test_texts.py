"""The hot write in one statement: it waits for the lock, and judges what it finds behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from perdure.core.changes import BeginStep, Change, CompleteStep
from perdure.errors import DivergenceError, LeaseLostError
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.testing.samples import completed, hold
from tests.store.postgres_server import SCHEMA
from tests.store.sql.outsider import execute

ROUNDS = 40
PATIENCE_S = 20.0
BEGIN = BeginStep(0, "intent-0")
NEW = completed(0, "ours")
KNOWN = NEW._replace(is_begun=True)
new_or_known = pytest.mark.parametrize("change", [NEW, KNOWN], ids=["new", "known"])


@asynccontextmanager
async def meanwhile(url: str, *statements: str) -> AsyncIterator[None]:
    """Do `statements` in a transaction that commits only once somebody waits for its lock."""
    connection = await psycopg.AsyncConnection.connect(url.partition("?")[0])
    async with connection:
        for sql in statements:
            await connection.execute(sql.format(SCHEMA).encode())
        yield
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if await execute(url, waiting) != [(0,)]:
                    break
                await asyncio.sleep(0.005)


def inserted(intent: str, status: str = "completed") -> str:
    return (
        "INSERT INTO {}.durable_steps (run_id, step_index, intent, kind, input_hash, status, "
        "attempts, result_json, started_at, completed_at, epoch) "
        f"VALUES ('run', 0, '{intent}', 'logic', '', '{status}', 1, '\"theirs\"', 'then', "
        "'then', 1)"
    )


LOCKED = "UPDATE {}.durable_runs SET updated_at = updated_at WHERE run_id = 'run'"
TAKEN = "UPDATE {}.durable_runs SET lease_holder_id = 'node' WHERE run_id = 'run'"


@pytest.mark.parametrize("change", [NEW, KNOWN, BEGIN], ids=["new", "known", "begin"])
async def test_a_lease_that_is_lost_while_a_write_waits_for_it_is_lost(
    store: RunStore, url: str, change: Change
) -> None:
    lease = await hold(store)
    async with meanwhile(url, TAKEN):
        writing = asyncio.ensure_future(store.write(lease, change))
    with pytest.raises(LeaseLostError):
        await writing
    assert await store.read_steps("run") == []


@new_or_known
async def test_a_result_that_is_stored_while_a_write_waits_stays(
    store: RunStore, url: str, change: CompleteStep
) -> None:
    lease = await hold(store)
    async with meanwhile(url, LOCKED, inserted(change.intent)):
        writing = asyncio.ensure_future(store.write(lease, change))
    assert (await writing).steps[0].result == "theirs"
    assert [step.result for step in await store.read_steps("run")] == ["theirs"]


@new_or_known
async def test_an_intent_that_differs_is_found_though_the_snapshot_is_older(
    store: RunStore, url: str, change: CompleteStep
) -> None:
    lease = await hold(store)
    before = await store.read_run("run")
    async with meanwhile(url, LOCKED, inserted("another intent")):
        writing = asyncio.ensure_future(store.write(lease, change))
    with pytest.raises(DivergenceError):
        await writing
    assert await store.read_run("run") == before, "nothing of the write happened"


@new_or_known
async def test_a_stop_that_is_asked_for_while_a_write_waits_is_heard(
    store: RunStore, url: str, change: CompleteStep
) -> None:
    lease = await hold(store)
    stop = "UPDATE {}.durable_runs SET stop_requested_at = '2026' WHERE run_id = 'run'"
    async with meanwhile(url, stop):
        writing = asyncio.ensure_future(store.write(lease, change))
    assert (await writing).stop_requested


async def test_two_handles_under_one_lease_agree_on_every_first_result(
    store: RunStore, url: str
) -> None:
    lease = await hold(store)
    other = await open_store(url)
    for position in range(ROUNDS):
        if position % 2:
            await store.write(lease, BEGIN._replace(position=position, intent=f"i{position}"))
        ours, theirs = await asyncio.gather(
            store.write(lease, completed(position, "ours")._replace(intent=f"i{position}")),
            other.write(lease, completed(position, "theirs")._replace(intent=f"i{position}")),
        )
        assert ours.steps[0].result == theirs.steps[0].result
    stored = await store.read_steps("run")
    assert len(stored) == ROUNDS
    assert {step.status for step in stored} == {"completed"}
    await other.close()
