"""Retention: what goes, what stays, and that nobody has to wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from perdure.core.limits import FRAMES_KEPT_MS
from perdure.core.records import SessionKey
from perdure.durable import retention
from perdure.durable.retention import Collected, collect_garbage, keep_collecting
from perdure.errors import StoreUnavailableError, UsageError
from perdure.store.memory import MemoryStore
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.testing.samples import completed, delivery, finish, hold, row

DAY_MS = FRAMES_KEPT_MS


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["file", "memory", "sqlite"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[RunStore]:
    kind = cast(str, request.param)
    url = "memory:" if kind == "memory" else f"{kind}:{tmp_path / 'runs'}"
    opened = await open_store(url, durability="normal", clock=clock)
    yield opened
    await opened.close()


async def ids(store: RunStore) -> list[str]:
    return sorted(run.run_id for run in await store.list_runs())


async def test_frames_go_after_a_day_and_the_answer_stays(
    store: RunStore, clock: ManualClock
) -> None:
    await finish(store, "turn", row(1, "a"), completed(0, {"finalText": "a"}))
    clock.advance(DAY_MS - 1)
    assert await collect_garbage(store) == Collected(0, 0)
    clock.advance(1)
    assert await collect_garbage(store) == Collected(1, 0)
    run = await store.read_run("turn")
    assert run is not None
    assert run.frames_expired_at == clock.iso()
    assert list(await store.read_frames("turn")) == []
    (step,) = await store.read_steps("turn")
    assert step.result == {"finalText": "a"}
    assert await collect_garbage(store) == Collected(0, 0)


async def test_runs_are_kept_unless_a_policy_says_otherwise(
    store: RunStore, clock: ManualClock
) -> None:
    await finish(store, "run", completed(0))
    clock.advance(400 * DAY_MS)
    assert await collect_garbage(store) == Collected(0, 0)
    assert await ids(store) == ["run"]
    assert await collect_garbage(store, runs_after_ms=400 * DAY_MS) == Collected(0, 1)
    assert await ids(store) == []


async def test_what_waits_and_what_lives_is_never_taken(
    store: RunStore, clock: ManualClock
) -> None:
    await finish(store, "told", delivery(0))
    await finish(store, "first", session=SessionKey("s", 0))
    await hold(store, "second", session=SessionKey("s", 1))
    clock.advance(400 * DAY_MS)
    assert await collect_garbage(store, runs_after_ms=0) == Collected(0, 0)
    assert await ids(store) == ["first", "second", "told"]


async def test_many_go_in_small_pieces_of_all_tenants(store: RunStore, clock: ManualClock) -> None:
    for number in range(7):
        await finish(store, f"run-{number}", row(1, "a"))
        await finish(store.for_tenant("acme"), f"run-{number}", row(1, "a"))
    clock.advance(DAY_MS)
    assert await collect_garbage(store, dry_run=True, batch=3) == Collected(14, 0)
    assert await collect_garbage(store, batch=3) == Collected(14, 0)
    assert await collect_garbage(store, runs_after_ms=0, dry_run=True, batch=3) == Collected(0, 14)
    assert await collect_garbage(store, runs_after_ms=0, batch=3) == Collected(0, 14)
    assert await ids(store) == await ids(store.for_tenant("acme")) == []


async def test_two_collect_at_once_and_each_thing_is_taken_once(
    store: RunStore, clock: ManualClock
) -> None:
    for number in range(9):
        await finish(store, f"run-{number}", row(1, "a"))
    clock.advance(DAY_MS)
    both = await asyncio.gather(
        collect_garbage(store, runs_after_ms=0, batch=2),
        collect_garbage(store, runs_after_ms=0, batch=2),
    )
    assert sum(collected.runs for collected in both) == 9
    assert await ids(store) == []


async def test_a_writer_gets_between_the_pieces(store: RunStore, clock: ManualClock) -> None:
    for number in range(40):
        await finish(store, f"run-{number:02}", row(1, "a"))
    clock.advance(DAY_MS)
    collecting = asyncio.create_task(collect_garbage(store, runs_after_ms=0, batch=1))
    lease = await hold(store, "live")
    for position in range(3):
        await store.write(lease, completed(position))
    assert not collecting.done()
    assert (await collecting).runs == 40
    assert await ids(store) == ["live"]


@pytest.mark.parametrize(
    "arguments", [{"frames_after_ms": -1}, {"runs_after_ms": -1}, {"batch": 0}], ids=str
)
async def test_a_length_that_is_none_is_refused_by_name(arguments: dict[str, int]) -> None:
    (name,) = arguments
    with pytest.raises(UsageError, match=name):
        await collect_garbage(MemoryStore(), **cast(Any, arguments))


async def test_a_store_that_fails_is_cleaned_up_later(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    done = asyncio.Event()

    async def collect(store: RunStore, **_: object) -> Collected:
        calls.append(store.tenant)
        if len(calls) == 1:
            raise StoreUnavailableError("the database is away")
        done.set()
        return Collected(1, 2)

    collecting: Callable[..., Awaitable[Collected]] = collect
    monkeypatch.setattr(retention, "collect_garbage", collecting)
    loop = asyncio.create_task(keep_collecting(MemoryStore(), begin_ms=1, every_ms=1))
    await asyncio.wait_for(done.wait(), 10)
    loop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loop
