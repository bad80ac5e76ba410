"""Stopping turns wherever they run, with what there is of their answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from perdure.core.changes import Suspend
from perdure.core.frames import text
from perdure.core.records import RunRecord
from perdure.errors import (
    RunNotFoundError,
)
from perdure.turn import producing
from perdure.turn.handout import Turn
from perdure.turn.identity import chat_manifest, run_id_of
from tests.durable.doors import Doors
from tests.turn.stage import (
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
)

# Stopping.


async def started(stage: Stage, *before: Any, **options: Any) -> tuple[Any, Any]:
    """Begin a turn that yields what stands before, and then waits for ever."""
    engine = await stage.engine(Script([*before, asyncio.Event()]), **options)
    submitted = await engine.submit(TURN, "Hi")
    if before:
        await until(stage.frames)
    return engine, submitted


@pytest.mark.parametrize("deltas", [[], ["Hel", "lo"]])
async def test_a_stopped_turn_keeps_what_there_is_of_it(stage: Stage, deltas: list[str]) -> None:
    engine, submitted = await started(stage, *map(text, deltas))
    run = await within(engine.stop(TURN))
    assert (run.state, run.status) == ("stopped", "completed")
    events = await events_of(submitted)
    assert kinds_of(events)[-1] == STOPPED
    answer = await stage.answer()
    assert answer["finalText"] == "".join(deltas)
    assert answer["stopped"] is True
    assert [part["d"] for part in answer["parts"]] == (["Hello"] if deltas else [])


async def test_a_turn_that_is_over_is_not_stopped_any_more(stage: Stage) -> None:
    engine = await stage.engine()
    await finish(engine)
    before = await stage.run()
    assert (await within(engine.stop(TURN))).state == "completed"
    assert await stage.run() == before


async def test_a_stop_may_be_repeated(stage: Stage) -> None:
    engine, _ = await started(stage, text("a"))
    first, second = await within(asyncio.gather(engine.stop(TURN), engine.stop(TURN)))
    assert first.state == second.state == "stopped"
    assert (await engine.stop(TURN)).state == "stopped"


async def test_a_turn_that_is_not_there_is_not_stopped(stage: Stage) -> None:
    engine = await stage.engine()
    with pytest.raises(RunNotFoundError):
        await engine.stop(TURN)


async def test_another_process_stops_a_turn_that_writes(stage: Stage) -> None:
    async def endless(_turn: Turn) -> AsyncIterator[Any]:
        while True:
            yield text("x")
            await asyncio.sleep(0.005)

    here, there = await stage.engine(endless), await stage.engine()
    submitted = await here.submit(TURN, "Hi")
    await until(stage.frames)
    run = await within(there.stop(TURN))
    assert run.stop_requested_at is not None
    events = await within(events_of(submitted))
    assert kinds_of(events)[-1] == STOPPED


async def test_another_process_stops_a_turn_that_is_silent(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producing, "LOOK_MS", 20)
    _, submitted = await started(stage)
    there = await stage.engine()
    await within(there.stop(TURN))
    # The next heartbeat would tell too, but that is seconds away.
    events = await within(events_of(submitted), 2)
    assert kinds_of(events) == ["session.run.started", STOPPED]


async def test_a_turn_whose_holder_is_dead_is_ended_by_who_stops_it(stage: Stage) -> None:
    worker = await stage.worker(Script([text("Hel"), text("lo"), asyncio.Event()]))
    await worker.engine.submit(TURN, "Hi")
    await until(lambda: has_frames(stage, 2))
    await worker.kill()
    stage.lapse()
    script = Script()
    run = await within((await stage.engine(script)).stop(TURN))
    assert run.state == "stopped"
    assert (await stage.answer())["finalText"] == "Hello"
    assert script.calls == 0


async def test_a_stop_whose_caller_leaves_while_it_claims_leaves_no_lease(stage: Stage) -> None:
    worker = await stage.worker(Script([text("Hel"), asyncio.Event()]))
    await worker.engine.submit(TURN, "Hi")
    await until(stage.frames)
    await worker.kill()
    stage.lapse()
    doors = Doors()
    engine = await stage.engine(store=doors.before(await stage.open()))
    stopping = asyncio.create_task(engine.stop(TURN))
    await within(doors.granted.wait())
    stopping.cancel()
    await within(asyncio.wait((stopping,)))
    assert stopping.cancelled()
    run = await stage.run()
    assert (run.state, run.lease_holder_id, run.stop_requested_at is None) == (
        "running",
        None,
        False,
    )
    assert (await within(engine.stop(TURN))).state == "stopped"


async def test_a_turn_whose_holder_may_be_alive_is_only_marked(stage: Stage) -> None:
    worker = await stage.worker(Script([text("Hel"), asyncio.Event()]))
    await worker.engine.submit(TURN, "Hi")
    await until(stage.frames)
    await worker.kill()
    engine = await stage.engine()
    run = await within(engine.stop(TURN))
    assert (run.state, run.stop_requested_at is not None) == ("running", True)
    stage.lapse()
    again = await engine.submit(TURN, "Hi")
    events = await events_of(again)
    assert kinds_of(events)[-1] == STOPPED


async def parked(stage: Stage) -> RunRecord:
    """Leave a turn behind that was given up."""
    manifest = chat_manifest(TURN, "Hi", project_id="perdure", domain="chat", model=None)
    store = await stage.store()
    engine = await stage.engine(Script([text("Hel"), RuntimeError("no")]))
    await finish(engine)
    claim = await store.start_or_resume(run_id_of(TURN), manifest, worker_id="x", retry=True)
    assert claim.lease is not None
    await store.write(claim.lease, Suspend("parked", reason="attempts_exhausted"))
    return await stage.run()


async def test_a_parked_turn_is_stopped_with_what_there_is_of_it(stage: Stage) -> None:
    await parked(stage)
    script = Script()
    engine = await stage.engine(script)
    run = await within(engine.stop(TURN))
    assert run.state == "stopped"
    assert script.calls == 0
    assert (await stage.answer())["finalText"] == "Hel"
    kinds = [frame.kind for frame in await stage.frames()]
    assert kinds == ["text", "failed", "restarted", "text", "stopped"]
    reader = await Reader().read(engine)
    assert (reader.text, reader.kinds[-1]) == ("Hel", STOPPED)


async def test_a_turn_of_another_engine_is_left_to_who_has_its_hooks(stage: Stage) -> None:
    worker = await stage.worker(Script([text("a"), asyncio.Event()]), name="theirs")
    await worker.engine.submit(TURN, "Hi")
    await until(stage.frames)
    await worker.kill()
    stage.lapse()
    run = await within((await stage.engine(name="ours")).stop(TURN))
    assert (run.state, run.stop_requested_at is not None) == ("running", True)
    theirs = await stage.engine(name="theirs", recover=True)
    theirs.start()
    await until(lambda: is_in(stage, "stopped"))
