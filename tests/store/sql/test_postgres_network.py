"""A network that breaks between worker and PostgreSQL costs answers, but nothing acknowledged."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

import perdure
from perdure.core.frames import Frame, text, upstream_end
from perdure.errors import StoreError, StoreUnavailableError
from perdure.store.opening import open_store
from perdure.store.protocol import ThreadRenewal
from perdure.store.sql.postgres import silence
from perdure.testing.samples import completed, hold, row
from tests.store.postgres_server import PostgresServer, running_server
from tests.store.sql.fault_proxy import FAULTS, Fault, FaultProxy
from tests.store.sql.outsider import execute
from tests.turn.stage import Reader, within

RUNS = 6
LEASE_MS = 120_000
ANSWER_S = 20.0
"""No call may take longer, however the network behaves."""
PATIENCE_S = 40.0
PAUSE_S = 0.01
STEPS_MIN = 3
"""Steps of each run that must be recorded once the faults are over."""
TURN = perdure.ChatTurnIdentity("", "s", "ann", 0)
TOKENS = [f"word{number} " for number in range(60)]


class Load:
    """Writers that note what was acknowledged, until they are told to stop."""

    def __init__(self, store: perdure.RunStore, *, prefix: str = "") -> None:
        self._store = store
        self._prefix = prefix
        self._stopped = False
        self.acknowledged: dict[str, list[str]] = {}
        self.troubles: Counter[str] = Counter()

    async def run(self) -> None:
        await asyncio.gather(*(self._work(f"{self._prefix}run-{number}") for number in range(RUNS)))

    def stop(self) -> None:
        self._stopped = True

    async def has_done(self, steps: int) -> None:
        """Return once each run has so many steps."""
        while True:
            if (
                len(self.acknowledged) == RUNS
                and min(map(len, self.acknowledged.values())) >= steps
            ):
                return
            await asyncio.sleep(PAUSE_S)

    async def _work(self, run_id: str) -> None:
        lease = await self._insist(partial(self._claim, run_id))
        done = self.acknowledged[run_id] = []
        while not self._stopped:
            at = len(done)
            step = completed(at, f"{run_id}/{at}")
            written = await self._insist(partial(self._store.write, lease, step))
            assert written.steps[0].result == f"{run_id}/{at}"
            done.append(f"{run_id}/{at}")
            await self._insist(partial(self._store.renew, [lease], LEASE_MS))
            await asyncio.sleep(PAUSE_S)

    async def _claim(self, run_id: str) -> Any:
        claim = await self._store.start_or_resume(
            run_id,
            perdure.RunManifest("lab", perdure.AgentTaskSpec("t", "Load")),
            worker_id="ann",
            lease_ms=LEASE_MS,
            token=f"{run_id:0<32}",
        )
        return claim.lease

    async def _insist(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Call until it is answered; each failure must come soon."""
        while True:
            try:
                async with asyncio.timeout(ANSWER_S):
                    return await call()
            except StoreError as error:
                self.troubles[type(error).__name__] += 1
                await asyncio.sleep(PAUSE_S)


async def check_nothing_is_lost(url: str, load: Load) -> None:
    store = await open_store(url)
    for run_id, done in load.acknowledged.items():
        steps = await store.read_steps(run_id)
        results = [step.result for step in steps]
        assert results[: len(done)] == done, run_id
        assert len(results) - len(done) <= 1, "more was written than was asked for"
    await store.close()


@asynccontextmanager
async def proxied(server: PostgresServer) -> AsyncIterator[tuple[FaultProxy, str, str]]:
    """Yield a proxy before the server, and the address of a new store through it and past it."""
    url = server.new_store()
    async with FaultProxy(server.port) as proxy:
        yield proxy, url.replace(f":{server.port}/", f":{proxy.port}/"), url


async def load_under(server: PostgresServer, harm: Callable[[FaultProxy], Awaitable[None]]) -> Load:
    async with proxied(server) as (proxy, through, past):
        store = await open_store(through)
        load = Load(store)
        working = asyncio.ensure_future(load.run())
        await harm(proxy)
        await within(load.has_done(STEPS_MIN), PATIENCE_S)
        load.stop()
        await within(working, PATIENCE_S)
        await within(store.close(), ANSWER_S)
        await check_nothing_is_lost(past, load)
    return load


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_of_the_network_loses_nothing_acknowledged(
    postgres: PostgresServer, fault: Fault
) -> None:
    async def harm(proxy: FaultProxy) -> None:
        for _ in range(3):
            await asyncio.sleep(0.15)
            async with proxy.fault(fault):
                await asyncio.sleep(0.25)

    load = await load_under(postgres, harm)
    # A connection that is cut while nothing is under way is opened anew, which costs nobody.
    assert set(load.troubles) <= {"StoreUnavailableError"}
    assert load.troubles if fault in ("half", "refuse") else True
    assert not load.troubles if fault in ("delay", "hang") else True, "what is slow is no failure"


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(3))
async def test_faults_at_random_lose_nothing_acknowledged_in_two_minutes(
    postgres: PostgresServer, seed: int, record_property: Callable[[str, object], None]
) -> None:
    dice = random.Random(seed)
    had: Counter[str] = Counter()

    async def harm(proxy: FaultProxy) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            await asyncio.sleep(dice.uniform(0, 1))
            fault = dice.choice(FAULTS)
            had[fault] += 1
            async with proxy.fault(fault):
                await asyncio.sleep(dice.uniform(0.05, 2))

    load = await load_under(postgres, harm)
    record_property("faults", dict(had))
    record_property("troubles", dict(load.troubles))
    record_property("acknowledged", sum(map(len, load.acknowledged.values())))


# The server itself goes away and comes back.


async def restart_under_load(
    seconds: float, *, seed: int, every_s: tuple[float, float]
) -> tuple[int, Load]:
    dice, restarts = random.Random(seed), 0
    with running_server() as server:
        url = server.new_store()
        store = await open_store(url)
        load = Load(store)
        working = asyncio.ensure_future(load.run())
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            await asyncio.sleep(dice.uniform(*every_s))
            server.stop(dice.choice([signal.SIGQUIT, signal.SIGINT]))
            await asyncio.sleep(dice.uniform(0, 1))
            await asyncio.to_thread(server.start)
            restarts += 1
        await within(load.has_done(STEPS_MIN), PATIENCE_S)
        load.stop()
        await within(working, PATIENCE_S)
        await store.close()
        await check_nothing_is_lost(url, load)
    return restarts, load


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(2))
async def test_a_server_that_restarts_every_few_seconds_loses_nothing_acknowledged(
    seed: int, record_property: Callable[[str, object], None]
) -> None:
    restarts, load = await restart_under_load(120, seed=seed, every_s=(1, 5))
    record_property("restarts", restarts)
    record_property("troubles", dict(load.troubles))
    record_property("acknowledged", sum(map(len, load.acknowledged.values())))


# A turn whose worker loses its database.


async def produce(_turn: perdure.Turn) -> AsyncIterator[Frame]:
    for token in TOKENS:
        yield text(token)
        await asyncio.sleep(0.01)
    yield upstream_end("stop")


@pytest.mark.parametrize("fault", ["reset", "refuse"])
async def test_a_turn_that_loses_its_database_is_finished_and_read_to_its_end(
    postgres: PostgresServer, fault: Fault
) -> None:
    async with proxied(postgres) as (proxy, through, past):
        store, reading_store = await open_store(through), await open_store(past)
        engine = perdure.ChatTurnEngine(store, produce=produce, lease_ms=3_000)
        elsewhere = perdure.ChatTurnEngine(reading_store, produce=produce, recover=False)
        await engine.submit(TURN, "Hi")
        reader = Reader()
        await reader.read(elsewhere, lines_max=6)
        async with proxy.fault(fault):
            await asyncio.sleep(0.2)
        while not reader.is_done:
            await reader.follow(elsewhere.read(TURN, after=reader.cursor, wire="envelope"))
        run = await reading_store.read_run("chat:s:0")
        assert run is not None
        assert run.state == "completed"
        assert reader.text == "".join(TOKENS)
        await elsewhere.aclose()
        await engine.aclose()
        await store.close()
        await reading_store.close()


async def test_a_network_that_says_nothing_does_not_hold_a_handle_for_ever(
    postgres: PostgresServer,
) -> None:
    async with proxied(postgres) as (proxy, through, past):
        store = await open_store(through)
        lease = await hold(store, lease_ms=LEASE_MS)
        async with proxy.fault("hang"):
            writing = asyncio.ensure_future(store.write(lease, completed(0), row(1, "a")))
            await asyncio.sleep(0.1)
            proxy.break_all(by_reset=True)
            with pytest.raises(StoreUnavailableError):
                await within(writing)
        await store.write(lease, completed(0))
        await store.close()
        fresh = await open_store(past)
        assert len(await fresh.read_steps("run")) == 1
        await fresh.close()


# A network that goes silent, and closes nothing.

SHORT_MS = 600
SOON_S = 5.0


@pytest.fixture
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "ANSWER_MS", SHORT_MS)
    monkeypatch.setitem(silence.__dict__["_NETWORK"], "connect_timeout", 2)


@pytest.mark.usefixtures("short_silence")
async def test_calls_into_a_silent_network_are_refused_and_the_store_goes_on_behind_it(
    postgres: PostgresServer,
) -> None:
    async with proxied(postgres) as (proxy, through, _past):
        store = await open_store(through)
        leases = [await hold(store, f"run-{number}", lease_ms=LEASE_MS) for number in range(4)]
        await store.read_run("run-0")
        async with proxy.fault("hang"):
            calls = [
                *(store.read_run("run-0") for _ in range(3)),
                *(store.write(lease, completed(0, "x")) for lease in leases),
            ]
            working = [asyncio.ensure_future(call) for call in calls]
            await asyncio.sleep(0)
            # Behind what was sent: nobody waits for two silences.
            working.append(asyncio.ensure_future(store.read_run("run-1")))
            answers = await within(asyncio.gather(*working, return_exceptions=True), SOON_S)
            assert {type(answer) for answer in answers} == {StoreUnavailableError}
            with pytest.raises(StoreUnavailableError):
                await within(store.read_run("run-0"), SOON_S)
        for lease in leases:
            assert (await store.write(lease, completed(0, "x"))).steps[0].result == "x"
        await within(store.close(), SOON_S)


@pytest.mark.usefixtures("short_silence")
async def test_a_silent_network_does_not_hold_up_the_close_of_a_store(
    postgres: PostgresServer,
) -> None:
    async with proxied(postgres) as (proxy, through, _past):
        store = await open_store(through)
        lease = await hold(store, lease_ms=LEASE_MS)
        async with proxy.fault("hang"):
            writing = asyncio.ensure_future(store.write(lease, completed(0)))
            await asyncio.sleep(0)
            await within(store.close(), ANSWER_S)
            with pytest.raises(StoreUnavailableError):
                await writing


@pytest.mark.usefixtures("short_silence")
async def test_a_silent_network_does_not_hold_the_thread_that_renews_leases(
    postgres: PostgresServer,
) -> None:
    async with proxied(postgres) as (proxy, through, _past):
        store = await open_store(through)
        lease = await hold(store, lease_ms=LEASE_MS)
        assert isinstance(store, ThreadRenewal)
        renewer = store.open_renewer()

        async def renew() -> Mapping[perdure.Lease, bool]:
            return await asyncio.to_thread(renewer.renew, [lease], LEASE_MS)

        assert await renew() == {lease: False}
        async with proxy.fault("hang"):
            with pytest.raises(StoreUnavailableError):
                await within(renew(), SOON_S)
        assert await within(renew(), SOON_S) == {lease: False}
        renewer.close()
        await store.close()


@pytest.mark.usefixtures("short_silence")
async def test_what_takes_long_is_no_silence(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "LENGTHY", frozenset({"read_run"}))
    async with proxied(postgres) as (proxy, through, _past):
        store = await open_store(through)
        await hold(store, lease_ms=LEASE_MS)
        await store.read_run("run")
        async with proxy.fault("hang"):
            reading = asyncio.ensure_future(store.read_run("run"))
            await asyncio.sleep(2 * SHORT_MS / 1_000)
            assert not reading.done()
        assert await within(reading, SOON_S) is not None
        await store.close()


async def test_a_store_that_was_closed_leaves_no_connection_behind(
    postgres: PostgresServer,
) -> None:
    url = postgres.new_store()
    marked = f"{url}{'&' if '?' in url else '?'}application_name=perdure-closing"
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'perdure-closing'"
    for number in range(5):
        store = await open_store(marked)
        await hold(store, f"run-{number}", lease_ms=LEASE_MS)
        await store.read_run(f"run-{number}")
        await store.wait_for_change(None, timeout_ms=1)
        assert await execute(url, count) != [(0,)]
        await store.close()
    for _ in range(round(SOON_S / PAUSE_S)):
        # A backend takes a moment to notice.
        if await execute(url, count) == [(0,)]:
            return
        await asyncio.sleep(PAUSE_S)
    pytest.fail("a connection was left behind")
