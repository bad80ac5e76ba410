"""A real PgBouncer in transaction mode, with fewer connections than there are callers."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

import perdure
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.testing.contract import STORE_CASES, check_run_store
from perdure.testing.lab import StoreLab
from tests.crash.test_contention import contend
from tests.store.postgres_server import SCHEMA, PostgresServer, free_port
from tests.store.sql.test_postgres_network import Load, check_nothing_is_lost
from tests.turn.stage import Reader, Script, finish, within, words

POOL = 3
PATIENCE_S = 30.0
PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/sbin")
SETTINGS = """
[databases]
* = host=127.0.0.1 port={server} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {pool}
max_client_conn = 500
ignore_startup_parameters = extra_float_digits
"""

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="NOT TESTED WITH A REAL POOLER: apt-get install pgbouncer"
)


class Pooler:
    """A PgBouncer before a server; `restart` cuts everybody off."""

    def __init__(self, folder: Path, server: PostgresServer) -> None:
        self.port = free_port()
        self._server = server
        self._settings = folder / "pgbouncer.ini"
        self._settings.write_text(SETTINGS.format(server=server.port, port=self.port, pool=POOL))
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, url: str) -> str:
        """Return the address of a store of the server, through the pooler."""
        through = url.replace(f":{self._server.port}/", f":{self.port}/")
        return f"{through}{'&' if '?' in through else '?'}pooled=1"

    def start(self) -> None:
        assert PROGRAM is not None
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        self._process = subprocess.Popen(
            [PROGRAM, *user, str(self._settings)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                psycopg.connect(self.url(self._server.url).partition("?")[0]).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, "the pooler does not answer"

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def pooler(postgres: PostgresServer) -> Iterator[Pooler]:
    with tempfile.TemporaryDirectory(prefix="perdure-pgbouncer-") as folder:
        # The settings are read by another user where this one is root.
        os.chmod(folder, 0o755)
        pooler = Pooler(Path(folder), postgres)
        try:
            pooler.start()
            yield pooler
        finally:
            pooler.stop()


async def test_the_pooler_is_one_and_in_transaction_mode(
    pooler: Pooler, postgres: PostgresServer
) -> None:
    address = pooler.url(postgres.url).partition("?")[0]
    held = [await psycopg.AsyncConnection.connect(address, autocommit=True) for _ in range(9)]
    pids = {
        (await (await each.execute("SELECT pg_backend_pid()")).fetchone() or (None,))[0]
        for each in held
    }
    assert 1 <= len(pids) <= POOL
    for each in held:
        await each.close()


async def test_runs_of_two_handles_are_whole_behind_a_pooler(
    pooler: Pooler, postgres: PostgresServer
) -> None:
    url = pooler.url(postgres.new_store())
    stores = [await open_store(url), await open_store(url)]
    loads = [Load(store, prefix=f"of-{place}-") for place, store in enumerate(stores)]
    working = [asyncio.ensure_future(load.run()) for load in loads]
    for load in loads:
        await within(load.has_done(10), PATIENCE_S)
        load.stop()
    await asyncio.gather(*working)
    for load in loads:
        assert not load.troubles
        await check_nothing_is_lost(url, load)
    for store in stores:
        await store.close()


async def test_a_turn_is_read_elsewhere_behind_a_pooler(
    pooler: Pooler, postgres: PostgresServer
) -> None:
    url = pooler.url(postgres.new_store())
    stores = [await open_store(url), await open_store(url)]
    turn = perdure.ChatTurnIdentity("", "s", "ann", 0)
    engine, elsewhere = (
        perdure.ChatTurnEngine(store, produce=Script(words("Hel", "lo")), recover=False)
        for store in stores
    )
    read = await finish(engine, turn)
    again = Reader()
    await again.follow(elsewhere.read(turn, wire="envelope"))
    assert read.text == again.text == "Hello"
    for each in (engine, elsewhere):
        await each.aclose()
    for store in stores:
        await store.close()


async def test_a_pooler_that_restarts_loses_nothing_acknowledged(
    pooler: Pooler, postgres: PostgresServer
) -> None:
    past = postgres.new_store()
    store = await open_store(pooler.url(past))
    load = Load(store)
    working = asyncio.ensure_future(load.run())
    for steps in (2, 4):
        await within(load.has_done(steps), PATIENCE_S)
        pooler.stop()
        await asyncio.sleep(0.1)
        await asyncio.to_thread(pooler.start)
    await within(load.has_done(6), PATIENCE_S)
    load.stop()
    await within(working, PATIENCE_S)
    assert set(load.troubles) <= {"StoreUnavailableError"}
    await check_nothing_is_lost(past, load)
    await store.close()


@pytest.mark.campaign
async def test_every_case_of_the_contract_passes_behind_a_pooler(
    pooler: Pooler, postgres: PostgresServer
) -> None:
    def new_lab() -> StoreLab:
        url = pooler.url(f"{postgres.url}?schema={postgres.clean_schema()}")

        async def open_handle(clock: ManualClock, code_version: str | None) -> RunStore:
            return await open_store(url, migrate=True, clock=clock, code_version=code_version)

        return StoreLab(open_handle)

    assert await check_run_store(new_lab) == len(STORE_CASES)
    with closing(psycopg.connect(postgres.url)) as connection:
        found = connection.execute(
            "SELECT count(*) FROM information_schema.tables WHERE table_schema = %s", (SCHEMA,)
        )
        assert (found.fetchone() or (0,))[0] > 0


@pytest.mark.campaign
async def test_the_calls_of_many_are_one_history_behind_a_pooler(
    pooler: Pooler,
    postgres: PostgresServer,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    url = pooler.url(postgres.new_store())
    happened = await contend(url, tmp_path, seconds=60, seed=0)
    record_property("happened", dict(happened))
    assert happened["takeovers"] >= 20, happened
