"""The driver on Cloudflare's own D1: what callers are told, order, waiting, threads, the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from perdure.core.changes import EndRun
from perdure.core.effects import epoch_ms, system_clock
from perdure.core.records import Lease, RunRecord
from perdure.durable.lease import LeaseKeeper
from perdure.errors import (
    StoreBusyError,
    StoreClosedError,
    StoreFullError,
    StoreUnavailableError,
    UsageError,
    ValueTooLargeError,
)
from perdure.store.sql.d1.api import D1Api
from perdure.store.sql.d1.binding import D1Binding
from perdure.store.sql.d1.driver import D1, PAUSES_MS
from perdure.store.sql.database import Refused, Statement
from perdure.store.sql.store import SqlStore
from perdure.testing.samples import begun, completed, manifest
from tests.store.d1_server import D1Server

pytestmark = pytest.mark.node
TRIES = len(PAUSES_MS) + 1


@pytest.fixture(params=["binding", "http"])
async def binding(request: pytest.FixtureRequest, d1: D1Server) -> AsyncIterator[D1Binding]:
    database = d1.clean()
    yield d1.binding(database) if request.param == "binding" else d1.api(database)
    d1.fail()
    await d1.let_go()


@pytest.fixture
async def store(binding: D1Binding, d1: D1Server) -> AsyncIterator[SqlStore]:
    store = d1.store(binding)
    yield store
    await store.close()


async def claim(store: SqlStore, run_id: str = "r", worker_id: str = "w") -> Lease:
    claim = await store.start_or_resume(run_id, manifest(), worker_id=worker_id)
    assert claim.lease is not None
    return claim.lease


async def test_without_a_clock_the_time_is_the_databases(store: SqlStore) -> None:
    before = system_clock()
    await claim(store)
    run = await store.read_run("r")
    assert run is not None
    assert abs(epoch_ms(run.created_at) - before) < 5_000
    assert run.lease_expires_at is not None
    assert run.lease_expires_at > run.created_at


async def test_an_overloaded_database_is_asked_again_and_then_reported(
    store: SqlStore, d1: D1Server
) -> None:
    lease = await claim(store)
    busy = {"status": 429, "body": "D1 DB is overloaded. Requests queued for too long."}
    d1.fail(busy, busy)
    await store.write(lease, begun(0), completed(0, 1))
    d1.fail(*[busy] * TRIES)
    with pytest.raises(StoreBusyError, match="overloaded"):
        await store.write(lease, begun(1))
    assert len(await store.read_steps("r")) == 1


async def test_a_database_that_is_gone_is_reported_and_nothing_is_lost(
    store: SqlStore, d1: D1Server
) -> None:
    lease = await claim(store)
    d1.fail(*["before"] * TRIES)
    with pytest.raises(StoreUnavailableError, match="connection lost"):
        await store.write(lease, completed(0, 1))
    await store.write(lease, completed(0, 2))
    (step,) = await store.read_steps("r")
    assert step.result == 2


async def test_a_full_database_and_a_large_value_are_told_apart(
    store: SqlStore, d1: D1Server
) -> None:
    lease = await claim(store)
    d1.fail({"status": 400, "body": "D1_ERROR: Exceeded maximum DB size"})
    with pytest.raises(StoreFullError):
        await store.write(lease, completed(0, 1))
    with pytest.raises(ValueTooLargeError):
        await store.write(lease, completed(0, "x" * 3_000_000))
    await store.write(lease, completed(0, "x" * 1_000_000))


async def test_text_that_other_databases_dislike_survives(store: SqlStore) -> None:
    lease = await claim(store)
    awkward = "\0 \u2028 \ud800 \U0001f600 ' \" \\"
    await store.write(lease, completed(0, [awkward, 9_007_199_254_740_993, 5.0]))
    (step,) = await store.read_steps("r")
    assert step.result == [awkward, 9_007_199_254_740_993, 5.0]


async def test_lists_of_one_run_stay_in_order_and_a_cancelled_caller_withdraws_nothing(
    binding: D1Binding, d1: D1Server
) -> None:
    database = D1(binding)
    store = SqlStore(database)
    lease = await claim(store)
    held = (lease.run_id, lease.epoch, lease.token, lease.worker_id)
    saves = [database.run([Statement("save_handle", (*held, str(n)))]) for n in range(20)]
    saves[0].cancel()
    saves[-1].cancel()
    await asyncio.gather(*saves[1:-1])
    await store.close()
    (rows,) = d1.run("SELECT upstream_json FROM durable_runs")
    assert rows == [{"upstream_json": "19"}]


async def test_a_refusal_names_its_statement_and_undoes_the_others(binding: D1Binding) -> None:
    database = D1(binding)
    store = SqlStore(database)
    await claim(store)
    statements = [
        Statement("request_stop", ("r",)),
        Statement("read_run", ("r",), required=True),
        Statement("lock_run", ("nobody",), required=True),
    ]
    with pytest.raises(Refused) as caught:
        await database.run(statements)
    assert caught.value.index == 2
    assert not caught.value.repeated
    run = await store.read_run("r")
    assert run is not None
    assert run.stop_requested_at is None
    await store.close()


async def test_whoever_waits_notices_the_write_of_another_handle(
    store: SqlStore, binding: D1Binding, d1: D1Server
) -> None:
    lease = await claim(store)
    other = d1.store(d1.api())
    waiting = asyncio.create_task(other.wait_for_change("r", timeout_ms=30_000))
    await store.write(lease, EndRun("completed"))
    await asyncio.wait_for(waiting, 10)
    await other.close()


async def test_leases_are_renewed_from_a_thread(store: SqlStore) -> None:
    lease = await claim(store)
    renewer = store.open_renewer()
    held = await asyncio.to_thread(renewer.renew, [lease], 60_000)
    assert held == {lease: False}
    await store.write(lease, EndRun("completed"))
    assert await asyncio.to_thread(renewer.renew, [lease], 60_000) == {}
    await asyncio.to_thread(renewer.close)


async def test_the_heartbeat_keeps_a_lease_on_d1(store: SqlStore) -> None:
    lease = await claim(store)
    keeper = LeaseKeeper(store, beat_ms=20)
    held = keeper.hold(lease, 15_000, lambda: None)
    before = await store.read_run("r")
    assert before is not None
    async for run in looks(store):
        if (run.lease_expires_at or "") > (before.lease_expires_at or ""):
            break
    assert not held.lost
    keeper.let_go(held)


async def looks(store: SqlStore) -> AsyncIterator[RunRecord]:
    """Yield the run as it is, again and again."""
    for _ in range(1_000):
        run = await store.read_run("r")
        assert run is not None
        yield run
        await asyncio.sleep(0.01)
    raise AssertionError("it stays as it is")


def test_a_thread_is_told_that_the_loop_of_a_binding_is_gone(d1: D1Server) -> None:
    loop = asyncio.new_event_loop()
    database = D1(d1.binding(d1.clean()))
    loop.run_until_complete(database.open())
    connection = database.connect()
    loop.run_until_complete(d1.let_go())
    loop.close()
    with pytest.raises(StoreUnavailableError, match="closed"):
        connection.run([Statement("read_now", ())])


async def test_closing_finishes_what_was_accepted_and_refuses_the_rest(
    binding: D1Binding, d1: D1Server
) -> None:
    database = D1(binding)
    lease = await claim(SqlStore(database))
    held = (lease.run_id, lease.epoch, lease.token, lease.worker_id)
    last = database.run([Statement("save_handle", (*held, "1"))])
    await database.close()
    assert last.done()
    assert await last == [[]]
    await database.close()
    with pytest.raises(StoreClosedError):
        await database.open()
    with pytest.raises(StoreClosedError):
        database.run(())


async def test_a_handle_belongs_to_one_loop(store: SqlStore) -> None:
    await claim(store)

    async def use() -> None:
        with pytest.raises(UsageError, match="loop"):
            await store.read_run("r")

    await asyncio.to_thread(asyncio.run, use())


async def test_cutting_off_every_task_of_the_loop_is_reported(store: SqlStore) -> None:
    lease = await claim(store)
    write = asyncio.ensure_future(store.write(lease, completed(0, 1)))
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {asyncio.current_task(), write}:
        if "_serve" in str(task.get_coro()):
            task.cancel()
    with pytest.raises(StoreUnavailableError, match="cut off"):
        await write


def test_what_has_no_surface_of_a_binding_is_named() -> None:
    with pytest.raises(UsageError, match="'dict' is no D1 binding"):
        D1(cast("Any", {}))


async def test_a_wrong_token_is_named_and_not_shown(d1: D1Server) -> None:
    api = d1.api(d1.clean(), token="wrong-and-secret")
    store = d1.store(api)
    with pytest.raises(StoreUnavailableError, match="refused the token") as caught:
        await store.read_run("r")
    assert "wrong-and-secret" not in str(caught.value)
    await store.close()


async def test_an_unknown_database_is_named(d1: D1Server) -> None:
    store = d1.store(d1.api("nowhere"))
    with pytest.raises(StoreUnavailableError, match="nowhere"):
        await store.read_run("r")
    await store.close()


async def test_an_answer_that_is_no_json_counts_as_lost_and_is_asked_for_again(
    d1: D1Server,
) -> None:
    store = d1.store(d1.api(d1.clean()))
    lease = await claim(store)
    d1.fail({"status": 502, "body": "<html>Bad gateway</html>"})
    await store.write(lease, completed(0, 1))
    await store.close()


async def test_a_server_that_is_not_there_is_reported(d1: D1Server) -> None:
    api = D1Api("a", "b", "token", base_url="http://127.0.0.1:9")
    store = d1.store(api)
    with pytest.raises(StoreUnavailableError, match="ConnectError"):
        await store.read_run("r")
    await store.close()


@pytest.mark.parametrize(
    ("account", "database", "token", "base_url", "match"),
    [
        ("a/b", "d", "t", "https://x", "account"),
        ("a", "", "t", "https://x", "database"),
        ("a", "d", "", "https://x", "token"),
        ("a", "d", "t\nx", "https://x", "token"),
        ("a", "d", "t", "ftp://x", "address"),
    ],
)
def test_an_impossible_setting_is_refused_at_once(
    account: str, database: str, token: str, base_url: str, match: str
) -> None:
    with pytest.raises(UsageError, match=match):
        D1Api(account, database, token, base_url=base_url)


async def test_the_surface_of_a_binding_is_whole_over_http(d1: D1Server) -> None:
    api = d1.api(d1.clean())
    for binding in (api, d1.binding()):
        statement = cast("Any", binding).prepare("SELECT ? AS a, ? AS b").bind("x", None)
        assert await statement.first() == {"a": "x", "b": None}
        assert (await statement.all())["results"] == [{"a": "x", "b": None}]
        assert (await statement.run())["meta"]["changes"] == 0
        nothing = cast("Any", binding).prepare("SELECT 1 AS a WHERE false")
        assert await nothing.first() is None
    await api.aclose()
    await d1.let_go()
