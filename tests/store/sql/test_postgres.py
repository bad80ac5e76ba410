"""PostgreSQL: what a server, a pooler and a fleet do to a store that a file never does."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Sequence
from functools import partial

import pytest

from perdure.core.limits import LEASE_MS
from perdure.core.records import Claim
from perdure.errors import (
    LeaseLostError,
    SchemaError,
    StoreError,
    StoreUnavailableError,
    UsageError,
)
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.store.sql.leases import SqlRenewer
from perdure.store.sql.postgres import liveness
from perdure.store.sql.postgres.address import read_address
from perdure.store.sql.postgres.driver import LOCK_TIMEOUT_MS, Postgres
from perdure.store.sql.postgres.liveness import PostgresLiveness
from perdure.store.sql.postgres.texts import PostgresStatements
from perdure.store.sql.store import SqlStore
from perdure.testing.samples import HANDLER, completed, hold, manifest, row
from tests.store.postgres_server import PostgresServer, running_server
from tests.store.sql.outsider import end_connections, execute, locked

PATIENCE_S = 20.0
MANY = 60


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return f"{postgres.url}?schema={postgres.clean_schema()}"


@pytest.fixture
async def store(url: str) -> AsyncIterator[RunStore]:
    store = await open_store(url, migrate=True)
    yield store
    await store.close()


async def open_with_driver(url: str) -> tuple[RunStore, Postgres]:
    database = Postgres(url)
    return SqlStore(database), database


async def until_answered(store: RunStore, run_id: str = "run") -> None:
    """Wait until the store answers again."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await store.read_run(run_id)
            except StoreError:
                await asyncio.sleep(0.05)
            else:
                return


# The address.


def test_the_target_of_an_address_has_no_password() -> None:
    address = read_address("postgresql://ann:secret@db:6432/app?schema=chat&sslmode=require")
    assert address.schema == "chat"
    assert address.target == "postgresql://db:6432/app, schema chat"
    assert "sslmode=require" in address.conninfo
    assert "schema=" not in address.conninfo


@pytest.mark.parametrize(
    ("query", "told"), [("schema=a-b", "'a-b'"), ('schema="', "plain name"), ("pooled=2", "'2'")]
)
def test_an_address_that_cannot_be_meant_is_refused(query: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        read_address(f"postgresql://localhost/app?{query}")


async def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1/none"):
        await open_store("postgresql://ann:secret@127.0.0.1:1/none")


async def test_a_database_that_is_not_there_is_named(postgres: PostgresServer) -> None:
    with pytest.raises(StoreUnavailableError, match="nowhere"):
        await open_store(postgres.url.replace("/postgres", "/nowhere"))


# The schema.


async def test_a_schema_that_lacks_something_is_not_migrated_unasked(
    postgres: PostgresServer,
) -> None:
    url = f"{postgres.url}?schema=bare"
    with pytest.raises(SchemaError, match="perdure migrate"):
        await open_store(url)
    await (await open_store(url, migrate=True)).close()
    await (await open_store(url)).close()


async def test_many_migrators_at_once_migrate_once(postgres: PostgresServer) -> None:
    url = f"{postgres.url}?schema=crowded"
    stores = await asyncio.gather(*(open_store(url, migrate=True) for _ in range(4)))
    for store in stores:
        await store.close()


def test_every_table_is_named_in_full() -> None:
    for name, statement in PostgresStatements("lab", own_clock=False).all().items():
        bare = [
            word
            for word in statement.sql.replace("(", " ").split()
            if word.startswith(("durable_", "perdure_")) and "." not in word
        ]
        assert not bare, name


def test_every_table_that_is_made_of_a_parameter_has_a_name() -> None:
    """PostgreSQL 14 and 15 refuse one that has none; 16 takes it."""
    made = 0
    for name, statement in PostgresStatements("lab", own_clock=False).all().items():
        for rest in re.split(r"::json\)\)", statement.sql)[1:]:
            made += 1
            assert re.match(r" (AS )?(?!WHERE|ORDER|ON)\w+", rest), name
    assert made > 10


# A server that goes away.


async def test_a_restart_of_the_server_costs_no_acknowledged_write() -> None:
    with running_server() as server:
        store = await open_store(f"{server.url}?schema=lab", migrate=True)
        lease = await hold(store)
        await store.write(lease, completed(0, "kept"), row(1, "a"))
        server.stop(signal.SIGQUIT)
        with pytest.raises(StoreUnavailableError):
            await store.write(lease, completed(1, "lost"))
        with pytest.raises(StoreUnavailableError):
            await store.read_run("run")
        server.start()
        await until_answered(store)
        await store.write(lease, completed(1, "after"), row(2, "b"))
        assert [step.result for step in await store.read_steps("run")] == ["kept", "after"]
        assert len(await store.read_frames("run")) == 2
        await store.close()


async def test_a_broken_connection_costs_one_answer_and_no_handle(
    store: RunStore, url: str
) -> None:
    lease = await hold(store)
    await end_connections(url)
    for _ in range(3):
        try:
            await store.write(lease, completed(0, "whole"))
        except StoreUnavailableError:
            continue
        break
    [step] = await store.read_steps("run") or await store.read_steps("run")
    assert step.result == "whole"


async def test_a_cancel_of_all_that_a_handle_does_costs_no_handle(store: RunStore) -> None:
    lease = await hold(store)
    for task in asyncio.all_tasks():
        if task.get_name().startswith("perdure-"):
            task.cancel()
    await store.write(lease, completed(0, "whole"))
    assert (await store.read_steps("run"))[0].result == "whole"


# Many at once.


async def test_writes_of_many_runs_share_commits(store: RunStore, url: str) -> None:
    sharing, database = await open_with_driver(url)
    leases = [await hold(store, f"run-{number}") for number in range(MANY)]
    before = database.commits
    await asyncio.gather(*(sharing.write(lease, completed(0, "x")) for lease in leases))
    assert database.commits - before < MANY / 2
    for number in range(MANY):
        assert len(await store.read_steps(f"run-{number}")) == 1
    await sharing.close()


async def test_one_lost_lease_in_a_shared_commit_costs_the_others_nothing(
    store: RunStore, url: str
) -> None:
    leases = [await hold(store, f"run-{number}") for number in range(10)]
    lost = leases[3]._replace(token="another")
    answers = await asyncio.gather(
        *(store.write(lease, completed(0, "x")) for lease in [*leases[:3], lost, *leases[4:]]),
        return_exceptions=True,
    )
    failed = [answer for answer in answers if isinstance(answer, BaseException)]
    assert [type(error) for error in failed] == [LeaseLostError]
    assert await store.read_steps("run-3") == []


async def test_a_row_that_somebody_keeps_locked_costs_no_other_run_its_write(
    store: RunStore, url: str
) -> None:
    stuck, free = await hold(store, "stuck"), await hold(store, "free")
    async with locked(url, "stuck"):
        waiting = asyncio.ensure_future(store.write(stuck, completed(0, "late")))
        async with asyncio.timeout(PATIENCE_S):
            await store.write(free, completed(0, "done"))
        assert (await store.read_steps("free"))[0].result == "done"
    await waiting
    assert (await store.read_steps("stuck"))[0].result == "late"


async def deadline(store: RunStore, run_id: str) -> str:
    run = await store.read_run(run_id)
    assert run is not None
    assert run.lease_expires_at is not None
    return run.lease_expires_at


async def test_a_row_that_somebody_keeps_locked_costs_no_other_run_its_lease(
    store: RunStore, url: str
) -> None:
    _, database = await open_with_driver(url)
    leases = [await hold(store, f"run-{number}") for number in range(5)]
    gone = leases[4]._replace(token="another")
    asked = [*leases[:4], gone]
    before = await deadline(store, "run-0")
    renewer = SqlRenewer(database.connect())
    async with locked(url, "run-2"):
        answer = await asyncio.to_thread(renewer.renew, asked, 10 * LEASE_MS)
        assert dict(answer) == dict.fromkeys(leases[:4], False), "nobody can claim the locked one"
        assert await deadline(store, "run-0") > before
        assert await deadline(store, "run-2") < await deadline(store, "run-3")
    await asyncio.to_thread(renewer.renew, asked, 20 * LEASE_MS)
    assert await deadline(store, "run-2") > await deadline(store, "run-4")
    renewer.close()
    await database.close()


async def test_a_sweep_does_not_wait_for_a_row_that_somebody_keeps_locked(
    store: RunStore, url: str
) -> None:
    for number in range(5):
        await store.enqueue(f"run-{number}", manifest(), handler=HANDLER)
    sweep = partial(store.claim_due, [HANDLER], worker_id="bob", lease_ms=LEASE_MS, limit=9)
    async with locked(url, "run-2"), asyncio.timeout(LOCK_TIMEOUT_MS / 1_000):
        claims = await sweep()
    assert {claim.run.run_id for claim in claims} == {"run-0", "run-1", "run-3", "run-4"}
    assert [claim.run.run_id for claim in await sweep()] == ["run-2"]


async def test_writes_and_beats_of_two_handles_never_deadlock(
    postgres: PostgresServer, store: RunStore, url: str
) -> None:
    other, database = await open_with_driver(url)
    counted = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = await execute(url, counted)
    leases = [await hold(store, f"run-{number}") for number in range(30)]
    renewer = SqlRenewer(database.connect())

    async def write(handle: RunStore, number: int) -> None:
        for position in range(4):
            step = 2 * position + (handle is other)
            await handle.write(leases[number], completed(step, "x"))

    async def beat() -> None:
        while True:
            assert len(await asyncio.to_thread(renewer.renew, leases, LEASE_MS)) == len(leases)

    beating = asyncio.create_task(beat())
    # In opposite orders, so that groups that locked as they come would meet head-on.
    ahead = [write(store, number) for number in range(30)]
    back = [write(other, number) for number in reversed(range(30))]
    await asyncio.gather(*ahead, *back)
    beating.cancel()
    await asyncio.wait((beating,))
    for number in range(30):
        assert len(await store.read_steps(f"run-{number}")) == 8
    renewer.close()
    # A connection that ends has told what it counted.
    await other.close()
    await store.close()
    assert await execute(url, counted) == before


async def test_claims_of_two_handles_never_share_a_run(store: RunStore, url: str) -> None:
    for number in range(MANY):
        await store.enqueue(f"run-{number}", manifest(), handler=HANDLER)
    other = await open_store(url)
    claims: list[str] = []

    async def sweep(handle: RunStore, worker_id: str) -> None:
        while found := await handle.claim_due(
            [HANDLER], worker_id=worker_id, lease_ms=LEASE_MS, limit=7
        ):
            claims.extend(claim.run.run_id for claim in found)

    await asyncio.gather(sweep(store, "ann"), sweep(other, "bob"), sweep(other, "eve"))
    assert len(claims) == len(set(claims)) == MANY
    await other.close()


# Hints.


@pytest.mark.parametrize("pooled", ["", "&pooled=1"])
async def test_whoever_waits_hears_of_writes_elsewhere(
    store: RunStore, url: str, pooled: str
) -> None:
    lease = await hold(store)
    other = await open_store(f"{url}{pooled}")
    await other.read_run("run")
    heard = asyncio.create_task(follow(other))
    for number in range(1, 4):
        await store.write(lease, row(number, "a"))
    async with asyncio.timeout(PATIENCE_S):
        await heard
    await other.close()


async def follow(store: RunStore) -> None:
    while len(await store.read_frames("run")) < 3:
        await store.wait_for_change("run", timeout_ms=60_000)


async def test_behind_a_pooler_nothing_outlives_a_transaction(url: str) -> None:
    store = await open_store(f"{url}&pooled=1", migrate=True)
    lease = await hold(store)
    await store.write(lease, completed(0, "x"))
    counted = await execute(url, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
    assert counted == [(0,)]
    assert (await store.read_details("run")).attempts[0].liveness is None
    await store.close()


# Who died.


async def test_a_lease_is_taken_at_once_from_a_process_whose_connection_is_gone(
    store: RunStore, url: str
) -> None:
    dead, database = await open_with_driver(url)
    await hold(dead)
    assert isinstance(database.liveness, PostgresLiveness)
    await database.liveness.lose()
    claims = await until_claimed(store)
    assert claims[0].run.epoch == 2
    assert claims[0].run.strikes == 1
    await dead.close()


async def until_claimed(store: RunStore) -> Sequence[Claim]:
    """Return what a sweep claims as soon as the server has let go of the lock."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            claims = await store.claim_due([HANDLER], worker_id="bob", lease_ms=LEASE_MS, limit=1)
            if claims:
                return claims
            await asyncio.sleep(0.02)


async def test_after_a_start_of_the_server_the_living_get_time_to_come_back(
    store: RunStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "SETTLED_MS", 2**31 - 1)
    dead, database = await open_with_driver(url)
    await hold(dead)
    assert isinstance(database.liveness, PostgresLiveness)
    await database.liveness.lose()
    before_the_start = "UPDATE {}.perdure_liveness SET taken_at = '-infinity'"
    await execute(url, before_the_start)
    assert not await store.claim_due([HANDLER], worker_id="bob", lease_ms=LEASE_MS, limit=1)
    await dead.close()
