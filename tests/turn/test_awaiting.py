"""A turn waits for an event in flight, and an attempt after a crash waits on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from perdure.core.frames import Frame, text
from perdure.core.records import JsonValue
from perdure.durable.runner import emit_event
from perdure.errors import AwaitEventTimeoutError
from perdure.turn.handout import Turn
from perdure.turn.identity import run_id_of
from tests.turn.stage import STOPPED, TURN, Reader, Stage, finish, has_frames, until

RUN = run_id_of(TURN)


async def asking(turn: Turn) -> AsyncIterator[Frame]:
    yield text("May I? ")
    answer: JsonValue = await turn.await_event("answer", timeout_ms=None)
    yield text(f"You said {answer}.")


async def test_a_turn_waits_for_an_event_without_its_idle_timeout(stage: Stage) -> None:
    engine = await stage.engine(asking, idle_timeout_ms=50)
    await engine.submit(TURN, "Hi")
    await until(lambda: has_frames(stage, 1))
    store = await stage.store()
    await until(lambda: _has_begun(stage))
    await asyncio.sleep(0.2)
    await emit_event(store, RUN, "answer", "yes")
    reader = await Reader().read(engine)
    assert reader.text == "May I? You said yes."
    step = (await store.read_steps(RUN))[1]
    assert (step.intent, step.kind, step.result) == ("event:answer", "event", "yes")


async def test_an_event_that_came_before_is_there_at_once(stage: Stage) -> None:
    async def late(turn: Turn) -> AsyncIterator[Frame]:
        await emit_event(await stage.store(), RUN, "answer", "no")
        async for frame in asking(turn):
            yield frame

    assert (await finish(await stage.engine(late))).text == "May I? You said no."


async def test_a_time_out_is_final(stage: Stage) -> None:
    told: list[str] = []

    async def impatient(turn: Turn) -> AsyncIterator[Frame]:
        try:
            await turn.await_event("answer", timeout_ms=5)
        except AwaitEventTimeoutError as error:
            told.append(str(error))
        yield text("Nobody answers.")

    assert (await finish(await stage.engine(impatient))).text == "Nobody answers."
    assert told == ["no event 'answer' arrived within 5 ms"]


async def test_an_attempt_after_a_crash_waits_on(stage: Stage) -> None:
    worker = await stage.worker(asking)
    await worker.engine.submit(TURN, "Hi")
    await until(lambda: has_frames(stage, 1))
    await until(lambda: _has_begun(stage))
    await worker.kill()
    stage.lapse()
    engine = await stage.engine(asking)
    await engine.submit(TURN, "Hi")
    await emit_event(await stage.store(), RUN, "answer", "yes")
    reader = await Reader().read(engine)
    assert reader.text == "May I? You said yes."


async def test_a_turn_that_waits_can_be_stopped(stage: Stage) -> None:
    engine = await stage.engine(asking)
    await engine.submit(TURN, "Hi")
    await until(lambda: has_frames(stage, 1))
    await engine.stop(TURN)
    assert (await Reader().read(engine)).kinds[-1] == STOPPED


async def _has_begun(stage: Stage) -> bool:
    return len(await (await stage.store()).read_steps(RUN)) == 2
