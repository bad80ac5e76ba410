"""Opening turns once, stopping them wherever they run, and giving them back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from perdure.core.changes import Suspend
from perdure.core.frames import text, upstream_end
from perdure.core.records import RunRecord
from perdure.errors import (
    RunInputMismatchError,
    RunNotFoundError,
    SessionBusyError,
    StoreUnavailableError,
    UsageError,
)
from perdure.turn import owning, producing
from perdure.turn.handout import Turn
from perdure.turn.hooks import ChatTurnHooks
from perdure.turn.identity import ChatTurnIdentity, chat_manifest, run_id_of
from tests.turn.stage import (
    NEXT,
    TURN,
    Reader,
    Script,
    Stage,
    events_of,
    finish,
    kinds_of,
    until,
    within,
    words,
)

SESSIONS = "session.run."


# Submitting.


async def test_a_turn_is_accepted_durably_and_answered(stage: Stage) -> None:
    script = Script()
    engine = await stage.engine(script)
    submitted = await engine.submit(TURN, "Hi", model="m")
    assert submitted.created
    assert (submitted.run.run_id, submitted.run.state) == ("chat:s:0", "running")
    assert (await stage.run()).handler == "chat"
    reader = await Reader().follow(submitted.lines(wire="envelope"))
    assert reader.text == "Hello there"
    assert (await stage.run()).state == "completed"
    (turn,) = script.turns
    assert (turn.user_message, turn.model, turn.attempt) == ("Hi", "m", 1)
    assert turn.identity == TURN
    assert not turn.history


async def test_the_same_turn_is_replayed_without_asking_the_model(stage: Stage) -> None:
    script = Script()
    engine = await stage.engine(script)
    first = await finish(engine)
    before = await stage.run()
    submitted = await engine.submit(TURN, "Hi")
    assert not submitted.created
    again = await Reader().follow(submitted.lines(wire="envelope"))
    assert again.text == first.text
    assert script.calls == 1
    assert await stage.run() == before, "a replay writes nothing"


@pytest.mark.parametrize("handles", [1, 2])
async def test_of_many_submits_at_once_one_asks_the_model(stage: Stage, handles: int) -> None:
    script = Script(words("one", " answer"))
    engines = [await stage.engine(script) for _ in range(handles)]
    submits = [engines[i % handles].submit(TURN, "Hi") for i in range(10)]
    submitted = await within(asyncio.gather(*submits))
    readers = await within(
        asyncio.gather(*(Reader().follow(one.lines(wire="envelope")) for one in submitted))
    )
    assert [one.created for one in submitted].count(True) == 1
    assert script.calls == 1
    assert {reader.text for reader in readers} == {"one answer"}
    assert all(reader.kinds[-1] == f"{SESSIONS}completed" for reader in readers)


@pytest.mark.parametrize("state", ["live", "finished"])
@pytest.mark.parametrize("changed", [{"user_message": "Bye"}, {"model": "other"}])
async def test_another_message_or_model_is_a_conflict(
    stage: Stage, state: str, changed: dict[str, str]
) -> None:
    gate = asyncio.Event()
    engine = await stage.engine(Script([text("a"), gate, upstream_end("stop")]))
    submitted = await engine.submit(TURN, "Hi")
    if state == "finished":
        gate.set()
        await events_of(submitted)
    message = {"user_message": "Hi", **changed}
    with pytest.raises(RunInputMismatchError, match="turn 0 of session 's'"):
        await engine.submit(TURN, message["user_message"], model=message.get("model"))


async def test_a_session_has_one_turn_at_a_time(stage: Stage) -> None:
    gate = asyncio.Event()
    engine = await stage.engine(Script([gate, *words("done")]))
    submitted = await engine.submit(TURN, "Hi")
    with pytest.raises(SessionBusyError):
        await engine.submit(NEXT, "And?")
    gate.set()
    await events_of(submitted)
    assert (await engine.submit(NEXT, "And?")).created


async def test_two_submits_of_a_turn_whose_session_is_busy_are_told_the_same(
    stage: Stage,
) -> None:
    gate = asyncio.Event()
    engine = await stage.engine(Script([gate, *words("done")]))
    await engine.submit(TURN, "Hi")
    told = await asyncio.gather(
        *(engine.submit(NEXT, "And?") for _ in range(3)), return_exceptions=True
    )
    assert [type(one) for one in told] == [SessionBusyError] * 3
    gate.set()


@pytest.mark.parametrize("state", ["live", "finished"])
@pytest.mark.parametrize("message", ["Hi", "Another"])
async def test_a_session_of_somebody_else_looks_as_if_it_were_not_there(
    stage: Stage, state: str, message: str
) -> None:
    gate = asyncio.Event()
    engine = await stage.engine(Script([gate, *words("secret")]))
    submitted = await engine.submit(TURN, "Hi")
    if state == "finished":
        gate.set()
        await events_of(submitted)
    stranger = TURN._replace(user_id="bob")
    with pytest.raises(RunNotFoundError):
        await engine.submit(stranger, message)
    with pytest.raises(RunNotFoundError):
        await Reader().read(engine, stranger)
    with pytest.raises(RunNotFoundError):
        await engine.open(stranger)
    with pytest.raises(RunNotFoundError):
        await engine.stop(stranger)
    assert (await stage.run()).stop_requested_at is None
    gate.set()


async def test_tenants_do_not_see_each_other(stage: Stage) -> None:
    script = Script(words("acme's"), words("own"))
    engine = await stage.engine(script)
    acme = TURN._replace(tenant_id="acme")
    assert (await finish(engine, acme)).text == "acme's"
    for call in (engine.open(TURN), engine.stop(TURN), Reader().read(engine, TURN)):
        with pytest.raises(RunNotFoundError):
            await call
    assert (await finish(engine, TURN)).text == "own"
    assert (await finish(engine, acme)).text == "acme's"
    assert script.calls == 2


async def test_bad_input_is_refused_before_anything_is_recorded(stage: Stage) -> None:
    engine = await stage.engine()
    with pytest.raises(UsageError):
        await engine.submit(TURN._replace(turn_index=-1), "Hi")
    with pytest.raises(UsageError):
        await engine.submit(TURN, 7)  # type: ignore[arg-type] # from outside
    assert await (await stage.store()).read_run("chat:s:0") is None


async def test_a_caller_that_leaves_while_it_submits_loses_no_turn(stage: Stage) -> None:
    script = Script()
    engine = await stage.engine(script)
    submitting = asyncio.ensure_future(engine.submit(TURN, "Hi"))
    await asyncio.sleep(0)
    submitting.cancel()
    await asyncio.wait([submitting])
    assert submitting.cancelled()
    await until(lambda: script.calls)
    assert (await Reader().read(engine)).text == "Hello there"


async def test_a_turn_that_lives_in_another_process_is_attached_to(stage: Stage) -> None:
    gate = asyncio.Event()
    script = Script([text("Hel"), gate, text("lo"), upstream_end("stop")])
    here, there = await stage.engine(script), await stage.engine(script)
    await here.submit(TURN, "Hi")
    attached = await there.submit(TURN, "Hi")
    assert not attached.created
    reading = asyncio.ensure_future(Reader().follow(attached.lines(wire="envelope")))
    await asyncio.sleep(0)
    gate.set()
    assert (await within(reading)).text == "Hello"
    assert script.calls == 1


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
    assert kinds_of(events)[-1] == f"{SESSIONS}stopped"
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
    assert kinds_of(events)[-1] == f"{SESSIONS}stopped"


async def test_another_process_stops_a_turn_that_is_silent(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producing, "LOOK_MS", 20)
    _, submitted = await started(stage)
    there = await stage.engine()
    await within(there.stop(TURN))
    events = await within(events_of(submitted))
    assert kinds_of(events) == [f"{SESSIONS}started", f"{SESSIONS}stopped"]


async def test_a_turn_whose_holder_is_dead_is_ended_by_who_stops_it(stage: Stage) -> None:
    worker = await stage.worker(Script([text("Hel"), text("lo"), asyncio.Event()]))
    await worker.engine.submit(TURN, "Hi")
    await until(lambda: _count(stage, 2))
    await worker.kill()
    stage.lapse()
    script = Script()
    run = await within((await stage.engine(script)).stop(TURN))
    assert run.state == "stopped"
    assert (await stage.answer())["finalText"] == "Hello"
    assert script.calls == 0


async def _count(stage: Stage, count: int) -> bool:
    return len(await stage.frames()) >= count


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
    assert kinds_of(events)[-1] == f"{SESSIONS}stopped"


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
    assert (reader.text, reader.kinds[-1]) == ("Hel", f"{SESSIONS}stopped")


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
    await until(lambda: _is(stage, "stopped"))


async def _is(stage: Stage, state: str, turn: ChatTurnIdentity = TURN) -> bool:
    return (await stage.run(turn)).state == state


# Failing, and running again.


async def test_a_failed_turn_replays_its_failure_until_a_retry(stage: Stage) -> None:
    script = Script([text("Hel"), RuntimeError("no")], words("Hello"))
    engine = await stage.engine(script)
    first = await finish(engine)
    again = await finish(engine)
    assert first.kinds == again.kinds
    assert first.kinds[-2:] == ["error", f"{SESSIONS}failed"]
    assert script.calls == 1
    retried = await finish(engine, retry=True)
    assert retried.kinds[-1] == f"{SESSIONS}completed"
    assert retried.text == "Hello"
    assert "error" not in retried.kinds
    assert f"{SESSIONS}restarted" in retried.kinds
    assert script.calls == 2
    frames = await stage.frames()
    assert [f.kind for f in frames[:3]] == ["text", "failed", "restarted"]
    assert frames[2].data["reason"] == "retry"


async def test_a_reader_that_saw_the_failure_is_told_of_the_retry(stage: Stage) -> None:
    script = Script([text("Hel"), RuntimeError("no")], words("Hello"))
    engine = await stage.engine(script)
    reader = await finish(engine)
    assert reader.text == "Hel"
    await engine.submit(TURN, "Hi", retry=True)
    await reader.read(engine)
    assert reader.text == "Hello"
    assert reader.kinds.count(f"{SESSIONS}started") == 1


async def test_a_retry_of_a_turn_that_was_answered_asks_nobody(stage: Stage) -> None:
    script = Script()
    engine = await stage.engine(script)
    await finish(engine)
    retried = await finish(engine, retry=True)
    assert retried.text == "Hello there"
    assert script.calls == 1


async def test_other_turns_of_the_session_may_run_after_a_failure(stage: Stage) -> None:
    engine = await stage.engine(Script([RuntimeError("no")], words("fine")))
    await finish(engine)
    assert (await finish(engine, NEXT, "And?")).text == "fine"


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
    assert kinds_of(await within(reading))[-1] == f"{SESSIONS}completed"


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
    await until(lambda: _count(stage, 3))
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
    await until(lambda: _is(stage, "completed"))
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
    assert (reader.text, reader.kinds[-1]) == ("whole", f"{SESSIONS}stopped")


async def test_a_run_that_failed_is_left_alone_by_recovery(stage: Stage) -> None:
    script = Script([RuntimeError("no")])
    engine = await stage.engine(script, recover=True)
    await finish(engine)
    other = await stage.engine(script, recover=True)
    other.start()
    await finish(other, TURN._replace(session_id="t"))
    assert script.calls == 2
    assert await _is(stage, "failed")
