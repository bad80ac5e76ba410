"""Turns that wait hold no place of a worker, and only so many of them stay in memory."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from functools import partial

import pytest

from perdure.core.frames import Frame, text
from perdure.core.records import AgentTaskSpec, JsonValue, RunManifest
from perdure.durable.context import DurableContext
from perdure.durable.runner import emit_event
from perdure.durable.worker import Worker
from perdure.turn import sleeping
from perdure.turn.handout import Turn
from perdure.turn.identity import ChatTurnIdentity, run_id_of
from perdure.turn.registry import turns_at_work
from tests.turn.stage import COMPLETED, RESTARTED, Reader, Stage, is_in, until, within

TURNS = [ChatTurnIdentity("", f"s{number}", "ann", 0) for number in range(3)]
MANIFEST = RunManifest("test", AgentTaskSpec("other", "Do something else"))


async def asking(turn: Turn) -> AsyncIterator[Frame]:
    yield text("May I? ")
    answer: JsonValue = await turn.await_event("answer", timeout_ms=None)
    yield text(f"You said {answer}.")


async def answer(stage: Stage, turn: ChatTurnIdentity) -> None:
    await emit_event(await stage.store(), run_id_of(turn), "answer", "yes")


async def leave_waiting(stage: Stage, *turns: ChatTurnIdentity) -> None:
    """Leave turns behind that a process was killed in before they waited."""
    begun = asyncio.Event()

    async def stuck(turn: Turn) -> AsyncIterator[Frame]:
        begun.set()
        await asyncio.Event().wait()
        yield text("")

    worker = await stage.worker(stuck)
    for turn in turns:
        begun.clear()
        await worker.engine.submit(turn, "Hi")
        await within(begun.wait())
    await worker.kill()
    stage.lapse()


async def test_recovered_turns_that_wait_leave_their_worker_free_for_others(stage: Stage) -> None:
    await leave_waiting(stage, *TURNS)
    store = await stage.open()
    engine = await stage.engine(asking, store=store)

    async def other(_: DurableContext) -> str:
        return "done"

    worker = Worker(store, tasks={"other": other}, engines=[engine], concurrency_max=1)
    working = asyncio.ensure_future(worker.run())
    for turn in TURNS:
        await until(partial(is_in, stage, "waiting", turn))
    await worker.submit("other", run_id="other", manifest=MANIFEST)

    async def is_done() -> bool:
        run = await store.read_run("other")
        return run is not None and run.state == "completed"

    await until(is_done)
    assert turns_at_work(store.handle) == set()
    for turn in TURNS:
        await answer(stage, turn)
        reader = await Reader().read(engine, turn)
        assert (reader.text, reader.kinds[-1]) == ("May I? You said yes.", COMPLETED)
    await worker.drain(timeout_ms=0)
    await within(working)


async def test_of_too_many_that_wait_the_first_is_let_go_and_goes_on_all_the_same(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sleeping, "SLEEPERS_MAX", 2)
    handed_out: list[weakref.ref[object]] = []

    async def produce(turn: Turn) -> AsyncIterator[Frame]:
        handed_out.append(weakref.ref(turn))
        async for frame in asking(turn):
            yield frame

    engine = await stage.engine(produce, recover=True)
    readers: list[asyncio.Task[Reader]] = []
    for turn in TURNS:
        await engine.submit(turn, "Hi")
        readers.append(asyncio.ensure_future(Reader().read(engine, turn)))
        await until(partial(is_in, stage, "waiting", turn))

    def is_forgotten() -> bool:
        gc.collect()
        return handed_out[0]() is None

    await until(is_forgotten)
    assert all(one() is not None for one in handed_out[1:])
    for turn, reading in zip(TURNS, readers, strict=True):
        await answer(stage, turn)
        reader = await reading
        assert (reader.text, reader.kinds[-1]) == ("May I? You said yes.", COMPLETED)
        assert RESTARTED not in reader.kinds
        run = await stage.run(turn)
        assert (run.epoch, run.strikes) == (2, 0)
    # The first was replayed; the others went on where they were.
    assert len(handed_out) == 4


async def test_where_nobody_sweeps_every_turn_that_waits_is_kept(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sleeping, "SLEEPERS_MAX", 1)
    engine = await stage.engine(asking)
    for turn in TURNS:
        await engine.submit(turn, "Hi")
        await until(partial(is_in, stage, "waiting", turn))
    for turn in TURNS:
        await answer(stage, turn)
        assert (await Reader().read(engine, turn)).text == "May I? You said yes."
