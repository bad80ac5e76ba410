"""A row that somebody keeps locked: who waits for it, and who does not."""

from __future__ import annotations

import asyncio

import pytest

from perdure.core.limits import LEASE_MS
from perdure.errors import StoreBusyError, StoreUnavailableError
from perdure.store.protocol import RunStore
from perdure.store.sql.postgres import siding
from perdure.store.sql.postgres.driver import LOCK_TIMEOUT_MS, SHARED_LOCK_TIMEOUT_MS
from perdure.testing.samples import completed, hold
from tests.store.sql.outsider import execute, locked

FREE = 8
WRITES = 5
PATIENCE_S = 20.0


async def test_stuck_rows_hold_no_lane_and_no_lease_of_others(store: RunStore, url: str) -> None:
    stuck = [await hold(store, f"stuck-{number}") for number in range(2)]
    free = [await hold(store, f"free-{number}") for number in range(FREE)]
    async with locked(url, "stuck-0"), locked(url, "stuck-1"):
        late = [asyncio.ensure_future(store.write(lease, completed(0, "late"))) for lease in stuck]
        await asyncio.sleep(SHARED_LOCK_TIMEOUT_MS / 1_000)
        # Less than what the stuck ones are waited for once, for all of this together.
        async with asyncio.timeout(LOCK_TIMEOUT_MS / 1_000):
            for position in range(WRITES):
                await asyncio.gather(
                    *(store.write(lease, completed(position, "x")) for lease in free)
                )
            assert dict(await store.renew(free, LEASE_MS)) == dict.fromkeys(free, False)
        assert not any(write.done() for write in late)
    await asyncio.gather(*late)


async def test_writes_of_a_stuck_run_keep_their_order(store: RunStore, url: str) -> None:
    lease = await hold(store, "stuck")
    async with locked(url, "stuck"):
        first = asyncio.ensure_future(store.write(lease, completed(0, "first")))
        await asyncio.sleep(2 * SHARED_LOCK_TIMEOUT_MS / 1_000)
        second = asyncio.ensure_future(store.write(lease, completed(0, "second")))
        await asyncio.sleep(SHARED_LOCK_TIMEOUT_MS / 1_000)
        assert not second.done()
    assert (await first).steps[0].result == "first"
    assert (await second).steps[0].result == "first", "the first result is final"


async def test_whoever_has_waited_long_enough_is_told_that_the_store_is_busy(
    store: RunStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(siding, "_TRIES_MAX", 1)
    lease = await hold(store, "stuck")
    async with locked(url, "stuck"):
        with pytest.raises(StoreBusyError, match="kept the rows locked"):
            await store.write(lease, completed(0, "late"))
    await store.write(lease, completed(0, "whole"))
    assert (await store.read_steps("stuck"))[0].result == "whole"


async def test_a_cancel_of_all_that_a_handle_does_costs_nobody_in_line_his_write(
    store: RunStore, url: str
) -> None:
    lease, other = await hold(store, "stuck"), await hold(store, "other")
    async with locked(url, "stuck"), locked(url, "other"):
        writes = [
            asyncio.ensure_future(store.write(each, completed(0, "late")))
            for each in (lease, other)
        ]
        await asyncio.sleep(3 * SHARED_LOCK_TIMEOUT_MS / 1_000)
        for task in asyncio.all_tasks():
            if task.get_name().startswith("perdure-"):
                task.cancel()
        await asyncio.sleep(SHARED_LOCK_TIMEOUT_MS / 1_000)
    answers = await asyncio.gather(*writes, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, BaseException)]
    assert all(isinstance(error, StoreUnavailableError) for error in refused)
    for each in (lease, other):
        await store.write(each, completed(0, "late"))


async def test_a_connection_waits_beside_a_lane_only_while_somebody_is_stuck(
    store: RunStore, url: str
) -> None:
    lease = await hold(store, "stuck")
    await store.write(lease, completed(0, "x"))
    lanes = await processes(url, "true")
    async with locked(url, "stuck"):
        write = asyncio.ensure_future(store.write(lease, completed(1, "late")))
        beside = await until_waiting(url, lanes)
    await write
    await until_gone(url, beside)


async def until_waiting(url: str, known: set[object]) -> set[object]:
    """Return the processes that wait for a lock and are not known, once there are some."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if found := await processes(url, "wait_event_type = 'Lock'") - known:
                return found
            await asyncio.sleep(0.02)


async def until_gone(url: str, which: set[object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if not which & await processes(url, "true"):
                return
            await asyncio.sleep(0.02)


async def processes(url: str, what: str) -> set[object]:
    counted = f"SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND {what}"
    return {pid for (pid,) in await execute(url, counted)}
