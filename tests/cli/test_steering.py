"""`perdure stop` and `perdure retry`: what they ask for, and what they say of the answer."""

from __future__ import annotations

import asyncio

import pytest

from perdure.core.changes import Suspend
from perdure.core.limits import LEASE_MS
from perdure.core.records import SessionKey
from perdure.encryption import EnvelopeSealer, LocalKeys
from perdure.store.protected import protect
from perdure.store.protocol import RunStore
from perdure.testing.samples import HANDLER, completed, ended, finish, hold, manifest
from tests.cli.commands import PATIENCE_S, Ended, perdure
from tests.cli.desk import Desk


async def state_of(store: RunStore) -> str:
    run = await store.read_run("run")
    assert run is not None
    return run.state


# Stop.


def test_a_stop_is_recorded_for_whoever_works_on_the_run(each_desk: Desk) -> None:
    async def begin(store: RunStore) -> None:
        await hold(store, "run")

    each_desk.work(begin)
    told = each_desk.run("stop", "run", "--wait", "0s")
    assert told.code == 0
    assert told.out.startswith("the stop of run is recorded; it is running as yet")

    async def look(store: RunStore) -> bool:
        run = await store.read_run("run")
        return run is not None and run.stop_requested_at is not None

    assert each_desk.work(look)


def test_a_stop_waits_for_the_end(desk: Desk) -> None:
    async def work(store: RunStore) -> Ended:
        lease = await hold(store, "run")
        stopping = asyncio.get_running_loop().run_in_executor(
            None, perdure, "stop", "run", "--store", desk.url, "--wait", "30s"
        )
        while not (await store.renew([lease], LEASE_MS))[lease]:
            await store.wait_for_change("run", timeout_ms=50)
        await store.write(lease, ended("stopped"))
        return await asyncio.wait_for(stopping, PATIENCE_S)

    told = desk.work(work)
    assert (told.code, told.out) == (0, "run is stopped\n")


@pytest.mark.parametrize("state", ["completed", "stopped", "failed"])
def test_what_is_over_is_said_to_be_so(desk: Desk, state: str) -> None:
    async def end(store: RunStore) -> None:
        await finish(store, "run", state=state)

    desk.work(end)
    told = desk.run("stop", "run")
    assert (told.code, told.out) == (0, f"run is {state} already\n")


def test_a_parked_run_has_nobody_to_be_stopped(desk: Desk) -> None:
    desk.work(park)
    told = desk.run("stop", "run")
    assert told.code == 1
    assert "retry" in told.out


async def park(store: RunStore) -> None:
    lease = await hold(store, "run", session=SessionKey("s", 0, 0, "ada"))
    await store.write(lease, completed(0), Suspend("parked", reason="strikes"))


# Retry.


def test_a_parked_run_is_queued_again_and_that_nobody_takes_it_is_told(each_desk: Desk) -> None:
    each_desk.work(park)
    told = each_desk.run("retry", "run", "--wait", "50ms")
    assert told.code == 0
    assert "no worker has taken it yet" in told.out
    assert HANDLER in told.out
    assert each_desk.work(state_of) == "queued"

    async def go_on(store: RunStore) -> int:
        (claim,) = await store.claim_due([HANDLER], worker_id="w", lease_ms=LEASE_MS, limit=1)
        return len(claim.steps)

    assert each_desk.work(go_on) == 1


def test_that_a_worker_takes_it_is_told(desk: Desk) -> None:
    async def work(store: RunStore) -> Ended:
        await finish(store, "run", state="failed")
        retrying = asyncio.get_running_loop().run_in_executor(
            None, perdure, "retry", "run", "--store", desk.url, "--wait", "30s"
        )
        while not await store.claim_due([HANDLER], worker_id="w", lease_ms=LEASE_MS, limit=1):
            await store.wait_for_change(None, timeout_ms=50)
        return await asyncio.wait_for(retrying, PATIENCE_S)

    told = desk.work(work)
    assert (told.code, told.out) == (0, "run is running, in attempt 2\n")


def test_only_what_failed_or_was_parked_is_retried(desk: Desk) -> None:
    async def end(store: RunStore) -> None:
        await finish(store, "run")

    desk.work(end)
    told = desk.run("retry", "run")
    assert (told.code, desk.work(state_of)) == (1, "completed")
    assert "is completed" in told.out


def test_a_run_without_a_handler_is_refused_with_the_way_out(desk: Desk) -> None:
    async def end(store: RunStore) -> None:
        await store.write(await hold(store, "run", handler=None), ended("failed"))

    desk.work(end)
    told = desk.run("retry", "run")
    assert told.code == 2
    assert "retry=True" in told.err


def test_a_run_whose_values_are_sealed_is_queued_as_it_is(desk: Desk) -> None:
    sealer = EnvelopeSealer(LocalKeys({"now": bytes(range(32))}, current="now"))

    async def seal(store: RunStore) -> None:
        await finish(protect(store, sealer=sealer), "run", state="failed")

    async def read(store: RunStore) -> object:
        run = await protect(store, sealer=sealer).read_run("run")
        return None if run is None else (run.state, run.manifest)

    desk.work(seal)
    assert desk.run("retry", "run", "--wait", "0s").code == 0
    assert desk.work(read) == ("queued", manifest())


def test_programs_are_told_whether_it_was_done(desk: Desk) -> None:
    desk.work(park)
    (told,) = desk.json("retry", "run", "--wait", "0s")
    assert (told["id"], told["state"], told["done"]) == ("run", "queued", True)
