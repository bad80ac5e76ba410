"""Turns are opened once: submitted, attached to, replayed, refused, run again."""

from __future__ import annotations

import asyncio

import pytest

from perdure.core.frames import text, upstream_end
from perdure.errors import (
    RunInputMismatchError,
    RunNotFoundError,
    SessionBusyError,
    UsageError,
)
from tests.turn.stage import (
    COMPLETED,
    FAILED,
    NEXT,
    RESTARTED,
    TURN,
    Reader,
    Script,
    Stage,
    events_of,
    finish,
    until,
    within,
    words,
)

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
    assert all(reader.kinds[-1] == COMPLETED for reader in readers)


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


# Failing, and running again.


async def test_a_failed_turn_replays_its_failure_until_a_retry(stage: Stage) -> None:
    script = Script([text("Hel"), RuntimeError("no")], words("Hello"))
    engine = await stage.engine(script)
    first = await finish(engine)
    again = await finish(engine)
    assert first.kinds == again.kinds
    assert first.kinds[-2:] == ["error", FAILED]
    assert script.calls == 1
    retried = await finish(engine, retry=True)
    assert retried.kinds[-1] == COMPLETED
    assert retried.text == "Hello"
    assert "error" not in retried.kinds
    assert RESTARTED in retried.kinds
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
    assert reader.kinds.count("session.run.started") == 1


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
