"""Waiting for a change: woken at once by own writes, never by those of other runs, none lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from perdure.core.changes import Release
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.testing.samples import HANDLER, completed, ended, hold, manifest, row

LONG_MS = 60_000
PATIENCE_S = 20


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[RunStore]:
    store = await open_store(f"sqlite:{tmp_path}/runs.db")
    yield store
    await store.close()


@pytest.fixture
async def other(tmp_path: Path, store: RunStore) -> AsyncIterator[RunStore]:
    other = await open_store(f"sqlite:{tmp_path}/runs.db")
    yield other
    await other.close()


async def waiting(store: RunStore, run_id: str | None) -> asyncio.Task[None]:
    """Return a wait that has begun and has seen all that changed before."""

    async def wait() -> None:
        await store.wait_for_change(run_id, timeout_ms=1)
        begun.set()
        await store.wait_for_change(run_id, timeout_ms=LONG_MS)

    begun = asyncio.Event()
    task = asyncio.create_task(wait())
    await begun.wait()
    await asyncio.sleep(0)
    return task


async def test_an_own_write_ends_the_wait_for_its_run_and_no_other(store: RunStore) -> None:
    lease, bystander = await hold(store, "run"), await hold(store, "bystander")
    ours, theirs = await waiting(store, "run"), await waiting(store, "theirs")
    for number in range(50):
        await store.write(bystander, completed(number))
    assert not ours.done()
    async with asyncio.timeout(PATIENCE_S):
        await store.write(lease, row(1, "x"))
        await ours
    assert not theirs.done()
    theirs.cancel()


async def test_every_own_change_ends_the_wait_for_its_run(store: RunStore) -> None:
    lease = await hold(store, "run")
    changes = (
        lambda: store.write(lease, completed(0)),
        lambda: store.emit_event("run", "go", 1),
        lambda: store.request_stop("run"),
        lambda: store.write(lease, Release()),
        lambda: hold(store, "run"),
    )
    for change in changes:
        wait = await waiting(store, "run")
        async with asyncio.timeout(PATIENCE_S):
            await change()
            await wait


async def test_who_looks_for_work_is_woken_by_what_may_be_due(store: RunStore) -> None:
    lease = await hold(store, "run")
    wait = await waiting(store, None)
    for number in range(20):
        await store.write(lease, completed(number))
    assert not wait.done()
    changes = (
        lambda: store.enqueue("queued", manifest(), handler=HANDLER),
        lambda: store.emit_event("run", "go", 1),
        lambda: store.request_stop("run"),
        lambda: store.write(lease, ended()),
    )
    for change in changes:
        async with asyncio.timeout(PATIENCE_S):
            await change()
            await wait
        wait = await waiting(store, None)
    wait.cancel()


async def test_a_change_between_two_waits_is_not_lost(store: RunStore) -> None:
    lease = await hold(store, "run")
    await store.wait_for_change("run", timeout_ms=1)
    await store.write(lease, completed(0))
    async with asyncio.timeout(PATIENCE_S):
        await store.wait_for_change("run", timeout_ms=LONG_MS)


async def test_a_change_of_another_handle_between_two_waits_is_not_lost(
    store: RunStore, other: RunStore
) -> None:
    lease = await hold(other, "run")
    await store.wait_for_change("run", timeout_ms=1)
    await other.write(lease, completed(0))
    async with asyncio.timeout(PATIENCE_S):
        await store.wait_for_change("run", timeout_ms=LONG_MS)


@pytest.mark.parametrize("run_id", ["run", None])
async def test_a_change_of_another_handle_ends_the_wait(
    store: RunStore, other: RunStore, run_id: str | None
) -> None:
    wait = await waiting(store, run_id)
    async with asyncio.timeout(PATIENCE_S):
        await hold(other, "run")
        await wait


async def test_a_wait_of_one_tenant_is_not_ended_by_the_same_id_of_another(
    store: RunStore,
) -> None:
    acme = store.for_tenant("acme")
    wait = await waiting(store, "run")
    lease = await hold(acme, "run")
    await acme.write(lease, completed(0))
    assert not wait.done()
    await hold(store, "run")
    async with asyncio.timeout(PATIENCE_S):
        await wait


async def test_many_waiters_of_one_run_are_all_woken(store: RunStore) -> None:
    lease = await hold(store, "run")
    waits = [await waiting(store, "run") for _ in range(100)]
    async with asyncio.timeout(PATIENCE_S):
        await store.write(lease, completed(0))
        await asyncio.gather(*waits)


async def test_a_cancelled_wait_leaves_the_others_alone(store: RunStore) -> None:
    lease = await hold(store, "run")
    first, second = await waiting(store, "run"), await waiting(store, "run")
    first.cancel()
    await asyncio.wait([first])
    async with asyncio.timeout(PATIENCE_S):
        await store.write(lease, completed(0))
        await second


async def test_thousands_of_changed_runs_are_forgotten_without_a_lost_wait(
    store: RunStore,
) -> None:
    lease = await hold(store, "run")
    await store.wait_for_change("run", timeout_ms=1)
    await store.write(lease, completed(0))
    await asyncio.gather(
        *(store.enqueue(f"q-{number}", manifest(), handler=HANDLER) for number in range(5_000))
    )
    async with asyncio.timeout(PATIENCE_S):
        await store.wait_for_change("run", timeout_ms=LONG_MS)


async def test_a_wait_that_is_cancelled_as_its_store_closes_is_cancelled(store: RunStore) -> None:
    ours, others = await waiting(store, "run"), await waiting(store, None)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    ours.cancel()
    others.cancel()
    async with asyncio.timeout(PATIENCE_S):
        await closing
        await asyncio.wait((ours, others))
    assert ours.cancelled()
    assert others.cancelled()
