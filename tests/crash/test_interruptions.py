"""Whoever is cancelled or closed, and whenever: no lease is left that nobody works under."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest

from perdure.core.frames import text, upstream_end
from perdure.durable.context import DurableContext
from perdure.durable.runner import run_durable
from perdure.durable.worker import Worker
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.protocol import RunStore
from perdure.testing.crashing import Process, crashing
from perdure.testing.samples import manifest
from perdure.turn import reading
from perdure.turn.durable import run_durable_turn
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.handout import Turn
from perdure.turn.hooks import ChatTurnHooks
from perdure.turn.identity import ChatTurnIdentity
from perdure.turn.reference import ReferenceChatTurnEngine

T = TypeVar("T")
Work = Callable[[RunStore], Coroutine[Any, Any, object]]

TURN = ChatTurnIdentity("", "s", "ann", 0)
TICKS_MAX = 1_000
PATIENCE_S = 10.0
AT_REST = {"completed", "sleeping", "queued"}


class Slow(Process):
    """A process whose store takes its time, before it does what it is told and after that."""

    async def read(self, call: Callable[[], Awaitable[T]]) -> T:
        await asyncio.sleep(0)
        return await super().read(call)

    async def write(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        await asyncio.sleep(0)
        answer = await super().write(name, call)
        await asyncio.sleep(0)
        return answer


# What is interrupted.


async def task(context: DurableContext) -> object:
    async def slowly() -> int:
        await asyncio.sleep(0)
        return 2

    await context.step("plain", lambda: 1)
    await context.step("model", slowly, kind="llm")
    await asyncio.gather(context.step("beside", slowly), context.now())
    return await context.parallel(("one", slowly), ("two", slowly))


async def words() -> AsyncIterator[Any]:
    for _ in range(3):
        yield {"type": "message.part.updated", "data": {"delta": "word"}}
        await asyncio.sleep(0)


async def answer(turn: Turn) -> AsyncIterator[Any]:
    yield text("word")
    await turn.step("tool", lambda: 3)
    yield upstream_end("stop")


class Hooks(ChatTurnHooks):
    def produce(self) -> Any:
        return words()

    async def persist_assistant_message(self, turn: Any) -> None:
        await asyncio.sleep(0)


async def a_run(store: RunStore) -> None:
    await run_durable(store, run_id="run", manifest=manifest(), task=task)


async def a_produced_turn(store: RunStore) -> None:
    turn = run_durable_turn(store, run_id="run", manifest=manifest(), produce=words)
    async for _ in turn.stream:
        pass


async def a_call_of_run_turn(store: RunStore) -> None:
    body = ReferenceChatTurnEngine().run_turn(
        store=store, identity=TURN, user_message="Hi", project_id="p", hooks=Hooks()
    )
    async for _ in body.body:
        pass


async def a_turn_of_an_engine(store: RunStore) -> None:
    engine = ChatTurnEngine(store, produce=answer)
    try:
        submitted = await engine.submit(TURN, "Hi")
        async for _ in submitted.lines():
            pass
    finally:
        await engine.aclose(drain_ms=0)


async def a_worker_that_is_cancelled(store: RunStore) -> None:
    await _worker(store, lambda worker, running: running.cancel())


async def a_worker_that_is_drained(store: RunStore) -> None:
    await _worker(store, lambda worker, running: worker.drain(timeout_ms=0))


async def _worker(
    store: RunStore, end: Callable[[Worker, asyncio.Task[None]], Awaitable[None] | bool]
) -> None:
    await store.enqueue("run", manifest(), handler="task")
    worker = Worker(store, tasks={"task": task})
    running = asyncio.create_task(worker.run())
    try:
        run = await store.read_run("run")
        while run is not None and run.state != "completed":
            await asyncio.sleep(0)
            run = await store.read_run("run")
    finally:
        ending = end(worker, running)
        if isinstance(ending, Awaitable):
            await ending
        await asyncio.wait((running,))


# How it is interrupted.


async def cancelled(work: asyncio.Task[object], store: RunStore) -> None:
    work.cancel()


async def cancelled_twice(work: asyncio.Task[object], store: RunStore) -> None:
    work.cancel()
    await asyncio.sleep(0)
    work.cancel()


async def closed(work: asyncio.Task[object], store: RunStore) -> None:
    await store.close()


async def cancelled_while_it_closes(work: asyncio.Task[object], store: RunStore) -> None:
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    work.cancel()
    await closing


async def closed_though_the_close_was_cancelled(
    work: asyncio.Task[object], store: RunStore
) -> None:
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait((closing,))
    await store.close()


async def is_over_before(tick: int, work: Work, interrupt: Any, *, slow: bool) -> bool:
    """Interrupt the work at this tick of the loop, and see what is left behind."""
    data = MemoryData()
    store: RunStore = MemoryStore(data)
    if slow:
        store = crashing(store, Slow())
    before = asyncio.all_tasks()
    working: asyncio.Task[object] = asyncio.create_task(work(store))
    for _ in range(tick):
        await asyncio.sleep(0)
    is_over = working.done()
    async with asyncio.timeout(PATIENCE_S):
        await interrupt(working, store)
        await asyncio.wait((working,))
        while others := asyncio.all_tasks() - before:
            await asyncio.wait(others)
    for run in await MemoryStore(data).list_runs():
        left = (run.state, run.lease_holder_id, run.strikes)
        assert run.state in AT_REST or left == ("running", None, 0), f"tick {tick}: {left}"
    await store.close()
    return is_over


@pytest.mark.parametrize("slow", [False, True], ids=["at-once", "slow"])
@pytest.mark.parametrize(
    "interrupt",
    [
        cancelled,
        cancelled_twice,
        closed,
        cancelled_while_it_closes,
        closed_though_the_close_was_cancelled,
    ],
)
@pytest.mark.parametrize(
    "work",
    [
        a_run,
        a_produced_turn,
        a_call_of_run_turn,
        a_turn_of_an_engine,
        a_worker_that_is_cancelled,
        a_worker_that_is_drained,
    ],
)
async def test_no_lease_is_left_that_nobody_works_under(
    work: Work, interrupt: Any, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "POLL_MS", 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for tick in range(TICKS_MAX):
            if await is_over_before(tick, work, interrupt, slow=slow):
                break
        else:
            raise AssertionError("the work never ends by itself")
        gc.collect()
    assert tick > 10
