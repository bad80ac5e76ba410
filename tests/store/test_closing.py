"""What works with a handle is brought to rest before the handle closes."""

from __future__ import annotations

import asyncio

import pytest

from perdure.errors import StoreClosedError
from perdure.store import closing
from perdure.store.closing import before_close, bring_to_rest, check_open, keeping_open
from perdure.testing.lab import refused


class Worker:
    """Something that rests when it is told to go on."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()
        self.rests = 0

    async def rest(self) -> None:
        self.asked.set()
        await self.go_on.wait()
        self.rests += 1


async def settled() -> None:
    """Let every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_all_that_is_registered_is_asked_at_once_and_awaited() -> None:
    handle, workers = object(), [Worker(), Worker()]
    for worker in workers:
        before_close(handle, worker.rest)
    close = asyncio.create_task(bring_to_rest(handle))
    for worker in workers:
        await worker.asked.wait()
    assert not close.done()
    for worker in workers:
        worker.go_on.set()
    await close
    assert [worker.rests for worker in workers] == [1, 1]


async def test_what_was_taken_back_is_not_asked() -> None:
    handle, first, second = object(), Worker(), Worker()
    first.go_on.set()
    kept, forget = before_close(handle, first.rest), before_close(handle, first.rest)
    forget()
    forget()
    before_close(handle, second.rest)()
    await bring_to_rest(handle)
    assert (first.rests, second.rests) == (1, 0)
    kept()


async def test_what_begins_while_the_handle_closes_is_awaited_too() -> None:
    handle, late = object(), Worker()
    late.go_on.set()

    async def rest() -> None:
        before_close(handle, late.rest)

    before_close(handle, rest)
    await bring_to_rest(handle)
    assert late.rests == 1


async def test_a_claim_that_is_under_way_holds_up_the_close_until_its_work_has_rested() -> None:
    handle, worker, answer = object(), Worker(), asyncio.Event()
    worker.go_on.set()

    async def claim() -> None:
        with keeping_open(handle):
            await answer.wait()
        before_close(handle, worker.rest)

    claiming = asyncio.create_task(claim())
    await settled()
    close = asyncio.create_task(bring_to_rest(handle))
    await settled()
    assert not close.done()
    answer.set()
    await close
    await claiming
    assert worker.rests == 1


async def test_while_the_handle_closes_it_is_not_open_and_others_are() -> None:
    handle, worker = object(), Worker()
    before_close(handle, worker.rest)
    close = asyncio.create_task(bring_to_rest(handle))
    await worker.asked.wait()
    with refused(StoreClosedError):
        check_open(handle)
    check_open(object())
    worker.go_on.set()
    await close
    check_open(handle)


async def test_a_close_that_is_cancelled_is_finished_by_the_next() -> None:
    handle, worker = object(), Worker()
    before_close(handle, worker.rest)
    close = asyncio.create_task(bring_to_rest(handle))
    await worker.asked.wait()
    close.cancel()
    await asyncio.wait((close,))
    with refused(StoreClosedError):
        check_open(handle)
    again = asyncio.create_task(bring_to_rest(handle))
    await settled()
    assert not again.done()
    worker.go_on.set()
    await again
    assert worker.rests == 1


async def test_what_fails_is_logged_and_keeps_nothing_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handle, worker = object(), Worker()
    worker.go_on.set()

    async def broken() -> None:
        raise ValueError("it broke")

    before_close(handle, broken)
    before_close(handle, worker.rest)
    await bring_to_rest(handle)
    assert worker.rests == 1
    assert "it broke" in caplog.text


async def test_what_never_rests_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(closing, "REST_MS", 10)
    handle, worker = object(), Worker()
    before_close(handle, worker.rest)
    async with asyncio.timeout(10):
        await bring_to_rest(handle)
    assert worker.rests == 0
    assert "does not come to rest" in caplog.text
