"""A session that is busy: the next turn is refused, waits in line, or has the others make way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from perdure.core.frames import Frame, text
from perdure.errors import RunInputMismatchError, SessionBusyError, UsageError
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.handout import Turn
from perdure.turn.identity import ChatTurnIdentity
from tests.turn.stage import (
    COMPLETED,
    NEXT,
    STOPPED,
    TURN,
    Reader,
    Script,
    Stage,
    finish,
    is_in,
    until,
    within,
    words,
)

THIRD = TURN._replace(turn_index=2)


class Gate:
    """A producer that says its turn's number, and ends when it is let through."""

    def __init__(self) -> None:
        self.began: list[tuple[int, int]] = []
        self.histories: list[list[Any]] = []
        self.open = asyncio.Event()

    async def __call__(self, turn: Turn) -> AsyncIterator[Frame]:
        self.began.append((turn.identity.turn_index, turn.identity.revision))
        self.histories.append([message["content"] for message in turn.history])
        for frame in words(f"a{turn.identity.turn_index}")[:1]:
            yield frame
        await self.open.wait()
        for frame in words(f"a{turn.identity.turn_index}")[1:]:
            yield frame


async def followed(engine: ChatTurnEngine, turn: ChatTurnIdentity) -> Reader:
    return await Reader().read(engine, turn)


# Reject.


async def test_without_a_policy_a_busy_session_refuses_the_next_turn(stage: Stage) -> None:
    engine = await stage.engine(Gate())
    await engine.submit(TURN, "m0")
    with pytest.raises(SessionBusyError, match="session 's'"):
        await engine.submit(NEXT, "m1")
    assert await (await stage.store()).read_run("chat:s:1") is None


async def test_a_turn_that_is_queued_is_attached_to_whatever_the_policy(stage: Stage) -> None:
    engine = await stage.engine(Gate())
    await engine.submit(TURN, "m0")
    first = await engine.submit(NEXT, "m1", busy="queue")
    again = await engine.submit(NEXT, "m1")
    assert (first.created, again.created) == (True, False)
    assert first.run.state == again.run.state == "queued"
    with pytest.raises(RunInputMismatchError):
        await engine.submit(NEXT, "another", busy="queue")


async def test_nobody_overtakes_a_turn_that_is_queued(stage: Stage) -> None:
    gate = Gate()
    engine = await stage.engine(gate)
    await engine.submit(TURN, "m0")
    await engine.submit(NEXT, "m1", busy="queue")
    gate.open.set()
    await followed(engine, TURN)
    with pytest.raises(SessionBusyError):
        await engine.submit(THIRD, "m2")
    assert (await engine.submit(NEXT, "m1")).run.state == "running"


@pytest.mark.parametrize("wrong", ["wait", "", None])
async def test_a_policy_that_there_is_not_is_refused(stage: Stage, wrong: Any) -> None:
    if wrong is not None:
        with pytest.raises(UsageError, match="'queue' or 'replace'"):
            await (await stage.engine()).submit(TURN, "Hi", busy=wrong)
    with pytest.raises(UsageError, match="'queue' or 'replace'"):
        await stage.engine(busy=wrong)


# Queue.


async def test_queued_turns_begin_in_order_when_their_session_is_free(stage: Stage) -> None:
    gate = Gate()
    engine = await stage.engine(gate, busy="queue", recover=True)
    turns = [TURN._replace(turn_index=index) for index in range(4)]
    submitted = [await engine.submit(turn, f"m{turn.turn_index}") for turn in turns]
    assert [one.created for one in submitted] == [True] * 4
    assert [one.run.state for one in submitted] == ["running"] + ["queued"] * 3
    readers = [asyncio.ensure_future(followed(engine, turn)) for turn in turns]
    gate.open.set()
    texts = [(await within(reader)).text for reader in readers]
    assert texts == ["a0", "a1", "a2", "a3"]
    assert gate.began == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert gate.histories[3] == ["m0", "a0", "m1", "a1", "m2", "a2"]


async def test_a_queued_turn_begins_on_another_worker_when_its_own_is_gone(stage: Stage) -> None:
    worker = await stage.worker(Script([text("some"), asyncio.Event()]), busy="queue")
    await worker.engine.submit(TURN, "m0")
    await until(stage.frames)
    await worker.engine.submit(NEXT, "m1")
    await worker.kill()
    stage.lapse()
    gate = Gate()
    gate.open.set()
    other = await stage.engine(gate, recover=True)
    other.start()
    await until(lambda: is_in(stage, "completed", NEXT))
    assert gate.began == [(0, 0), (1, 0)]
    assert gate.histories[1] == ["m0", "a0"]
    assert (await stage.run(NEXT)).parent_run_id == "chat:s:0"


async def test_a_turn_in_line_stands_behind_the_newest_answer_when_it_begins(stage: Stage) -> None:
    gone = asyncio.Event()
    script = Script([gone, RuntimeError("no")], words("two"))
    engine = await stage.engine(script, busy="queue", recover=True)
    await engine.submit(TURN, "m0")
    await engine.submit(NEXT, "m1")
    gone.set()
    assert (await followed(engine, NEXT)).text == "two"
    # The turn before failed: it has no answer to stand behind.
    assert (await stage.run(NEXT)).parent_run_id is None


async def test_a_free_session_lets_a_turn_begin_at_once(stage: Stage) -> None:
    engine = await stage.engine(busy="queue")
    submitted = await engine.submit(TURN, "m0")
    assert (submitted.created, submitted.run.state) == (True, "running")
    assert (await followed(engine, TURN)).is_done


async def test_a_turn_in_line_is_stopped_without_being_begun(stage: Stage) -> None:
    gate = Gate()
    engine = await stage.engine(gate, busy="queue")
    await engine.submit(TURN, "m0")
    await engine.submit(NEXT, "m1")
    run = await within(engine.stop(NEXT))
    assert run.state == "stopped"
    assert (await followed(engine, NEXT)).kinds[-1] == STOPPED
    gate.open.set()
    await followed(engine, TURN)
    await engine.submit(THIRD, "m2")
    await followed(engine, THIRD)
    assert gate.began == [(0, 0), (2, 0)]


async def test_a_failed_turn_stands_in_line_to_run_again(stage: Stage) -> None:
    gate = asyncio.Event()
    script = Script([RuntimeError("no")], [gate, *words("one")], words("mended"))
    engine = await stage.engine(script, recover=True)
    await finish(engine, TURN, "m0")
    await engine.submit(NEXT, "m1")
    with pytest.raises(SessionBusyError):
        await engine.submit(TURN, "m0", retry=True)
    again = await engine.submit(TURN, "m0", retry=True, busy="queue")
    assert (again.created, again.run.state) == (False, "queued")
    gate.set()
    await until(lambda: is_in(stage, "completed", TURN))
    assert (await followed(engine, TURN)).text == "mended"


async def test_readers_of_a_turn_in_line_wait_for_it(stage: Stage) -> None:
    gate = Gate()
    engine = await stage.engine(gate, busy="queue", recover=True)
    await engine.submit(TURN, "m0")
    submitted = await engine.submit(NEXT, "m1")
    reader = Reader()
    following = asyncio.ensure_future(reader.follow(submitted.lines(wire="envelope")))
    await until(lambda: reader.kinds)
    assert reader.kinds == ["session.run.started"]
    gate.open.set()
    await within(following)
    assert (reader.text, reader.kinds[-1]) == ("a1", COMPLETED)


# Replace.


async def test_a_turn_that_replaces_another_begins_when_that_one_is_stopped(stage: Stage) -> None:
    script = Script([text("part"), asyncio.Event()], words("whole"))
    engine = await stage.engine(script)
    await engine.submit(TURN, "m0")
    await until(stage.frames)
    submitted = await within(engine.submit(NEXT, "m1", busy="replace"))
    assert (submitted.created, submitted.run.state) == (True, "running")
    assert (await followed(engine, NEXT)).text == "whole"
    assert (await stage.run()).state == "stopped"
    assert (await stage.answer())["finalText"] == "part"
    history = [message["content"] for message in script.turns[1].history]
    assert history == ["m0", "part"]
    assert (await followed(engine, TURN)).kinds[-1] == STOPPED


async def test_what_is_in_line_makes_way_too_without_being_begun(stage: Stage) -> None:
    gate = Gate()
    engine = await stage.engine(gate, recover=True)
    await engine.submit(TURN, "m0")
    await until(lambda: gate.began)
    await engine.submit(NEXT, "m1", busy="queue")
    submitted = await within(engine.submit(THIRD, "m2", busy="replace"))
    gate.open.set()
    assert (await followed(engine, THIRD)).text == "a2"
    assert submitted.created
    for turn in (TURN, NEXT):
        assert (await stage.run(turn)).state == "stopped"
    assert gate.began == [(0, 0), (2, 0)]


async def test_a_turn_is_replaced_on_another_worker(stage: Stage) -> None:
    gate = Gate()
    there, here = await stage.engine(gate), await stage.engine(gate, recover=True)
    await there.submit(TURN, "m0")
    await until(lambda: gate.began)
    submitted = await within(here.submit(NEXT, "m1", busy="replace"))
    # Its holder hears of the stop by the next write or beat, so the turn is in line until then.
    assert submitted.run.state in ("queued", "running")
    assert (await stage.run()).stop_requested_at is not None
    await within(there.stop(TURN))
    gate.open.set()
    assert (await followed(here, NEXT)).text == "a1"
    assert (await stage.run()).state == "stopped"


async def test_a_turn_whose_worker_died_is_replaced_at_once(stage: Stage) -> None:
    worker = await stage.worker(Script([text("part"), asyncio.Event()]))
    await worker.engine.submit(TURN, "m0")
    await until(stage.frames)
    await worker.kill()
    stage.lapse()
    engine = await stage.engine(Script(words("next")))
    submitted = await within(engine.submit(NEXT, "m1", busy="replace"))
    assert submitted.run.state == "running"
    assert (await followed(engine, NEXT)).text == "next"
    assert (await stage.answer())["finalText"] == "part"


@pytest.mark.parametrize("pauses", range(6))
async def test_a_turn_that_ends_while_it_is_replaced_stays_as_it_ended(
    stage: Stage, pauses: int
) -> None:
    gate = Gate()
    engine = await stage.engine(gate)
    await engine.submit(TURN, "m0")
    await until(lambda: gate.began)
    replacing = asyncio.ensure_future(engine.submit(NEXT, "m1", busy="replace"))
    for _ in range(pauses):
        await asyncio.sleep(0)
    gate.open.set()
    submitted = await within(replacing)
    assert submitted.run.state == "running"
    assert (await followed(engine, NEXT)).text == "a1"
    ended = ((await stage.run()).state, (await followed(engine, TURN)).kinds[-1])
    assert ended in (("completed", COMPLETED), ("stopped", STOPPED))


async def test_of_many_turns_that_replace_each_other_one_is_answered(stage: Stage) -> None:
    gate = Gate()
    engine = await stage.engine(gate, recover=True)
    turns = [TURN._replace(turn_index=index) for index in range(5)]
    submits = [engine.submit(turn, f"m{turn.turn_index}", busy="replace") for turn in turns]
    await within(asyncio.gather(*submits))
    gate.open.set()
    for turn in turns:
        await followed(engine, turn)
    states = [(await stage.run(turn)).state for turn in turns]
    assert states.count("completed") >= 1
    assert set(states) <= {"completed", "stopped"}


async def test_a_submit_that_replaces_is_idempotent(stage: Stage) -> None:
    gate = Gate()
    engine = await stage.engine(gate)
    await engine.submit(TURN, "m0")
    await until(lambda: gate.began)
    first = await within(engine.submit(NEXT, "m1", busy="replace"))
    again = await within(engine.submit(NEXT, "m1", busy="replace"))
    assert (first.created, again.created, again.run.state) == (True, False, "running")
    gate.open.set()
    assert (await followed(engine, NEXT)).text == "a1"
