"""Turns that are given back are gone on with, and recovery finds what nobody works on."""

from __future__ import annotations

import asyncio

import pytest

from perdure.core.frames import text, upstream_end
from perdure.errors import (
    StoreUnavailableError,
)
from perdure.turn import owning
from perdure.turn.hooks import ChatTurnHooks
from tests.turn.stage import (
    COMPLETED,
    NEXT,
    STOPPED,
    TURN,
    Reader,
    Script,
    Stage,
    events_of,
    finish,
    has_frames,
    is_in,
    kinds_of,
    until,
    within,
    words,
)

# Giving back.


async def test_a_closed_engine_lets_its_turns_finish(stage: Stage) -> None:
    gate = asyncio.Event()
    engine = await stage.engine(Script([text("a"), gate, text("b"), upstream_end("stop")]))
    submitted = await engine.submit(TURN, "Hi")
    reading = asyncio.ensure_future(events_of(submitted))
    closing = asyncio.ensure_future(engine.aclose())
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailableError, match="closed"):
        await engine.submit(NEXT, "And?")
    gate.set()
    await within(closing)
    assert (await stage.run()).state == "completed"
    assert kinds_of(await within(reading))[-1] == COMPLETED


async def test_what_does_not_finish_is_given_back_and_another_goes_on(stage: Stage) -> None:
    script = Script([text("lost"), asyncio.Event()], words("whole"))
    here = await stage.engine(script)
    reader = Reader()
    submitted = await here.submit(TURN, "Hi")
    reading = asyncio.ensure_future(reader.follow(submitted.lines(wire="envelope")))
    await until(lambda: reader.text)
    await within(here.aclose(drain_ms=0))
    with pytest.raises(StoreUnavailableError):
        await within(reading)
    run = await stage.run()
    assert (run.state, run.lease_holder_id, run.strikes) == ("running", None, 0)
    assert [attempt.ended for attempt in (await stage.details()).attempts] == ["drained"]
    there = await stage.engine(script, recover=True)
    await reader.read(there)
    assert reader.text == "whole"
    assert (await stage.run()).strikes == 0


async def test_a_turn_that_is_being_opened_is_given_back_too(stage: Stage) -> None:
    script = Script([text("a"), asyncio.Event()])
    engine = await stage.engine(script)
    submitting = asyncio.ensure_future(engine.submit(TURN, "Hi"))
    await asyncio.sleep(0)
    await within(engine.aclose(drain_ms=0))
    await within(submitting)
    run = await stage.run()
    assert (run.state, run.lease_holder_id) == ("running", None)


async def test_an_engine_may_be_closed_twice(stage: Stage) -> None:
    engine = await stage.engine(recover=True)
    await finish(engine)
    await within(engine.aclose())
    await within(engine.aclose())


async def test_a_store_that_is_closed_first_brings_its_turns_to_rest(stage: Stage) -> None:
    store = await stage.open()
    engine = await stage.engine(Script([text("a"), asyncio.Event()]), store=store, recover=True)
    await engine.submit(TURN, "Hi")
    await until(stage.frames)
    await within(store.close())
    assert (await stage.run()).lease_holder_id is None
    with pytest.raises(StoreUnavailableError):
        await engine.submit(NEXT, "And?")


async def test_a_turn_that_does_not_come_to_rest_does_not_hold_up_the_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(owning, "GIVE_BACK_MS", 50)
    engine = await stage.engine(
        hooks=ChatTurnHooks(transform_final_text=lambda _text: asyncio.Event().wait())
    )
    await engine.submit(TURN, "Hi")
    await until(lambda: has_frames(stage, 3))
    await within(engine.aclose(drain_ms=0))
    assert "does not come to rest" in caplog.text


# Recovery.


async def test_a_worker_picks_up_what_nobody_works_on(stage: Stage) -> None:
    worker = await stage.worker(Script([text("lost"), asyncio.Event()]))
    await worker.engine.submit(TURN, "Hi")
    await until(stage.frames)
    await worker.kill()
    stage.lapse()
    script = Script(words("whole"))
    engine = await stage.engine(script, recover=True)
    engine.start()
    await until(lambda: is_in(stage, "completed"))
    assert script.turns[0].attempt == 2
    assert (await stage.answer())["finalText"] == "whole"
    endings = [attempt.ended for attempt in (await stage.details()).attempts]
    assert endings == ["lost", "completed"]


async def test_a_reader_here_follows_a_turn_that_recovery_took_over(stage: Stage) -> None:
    script = Script([text("lost"), asyncio.Event()], [text("whole"), asyncio.Event()])
    worker = await stage.worker(script)
    await worker.engine.submit(TURN, "Hi")
    await until(stage.frames)
    await worker.kill()
    stage.lapse()
    engine = await stage.engine(script, recover=True)
    reader = Reader()
    reading = asyncio.ensure_future(reader.read(engine))
    await until(lambda: reader.text == "whole")
    await within(engine.stop(TURN))
    await within(reading)
    assert (reader.text, reader.kinds[-1]) == ("whole", STOPPED)


async def test_a_run_that_failed_is_left_alone_by_recovery(stage: Stage) -> None:
    script = Script([RuntimeError("no")])
    engine = await stage.engine(script, recover=True)
    await finish(engine)
    other = await stage.engine(script, recover=True)
    other.start()
    await finish(other, TURN._replace(session_id="t"))
    assert script.calls == 2
    assert await is_in(stage, "failed")
