"""Revisions: a turn is answered once more, or with another message, behind the same parent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from perdure.core.frames import text
from perdure.errors import RunInputMismatchError, RunNotFoundError, SessionBusyError, UsageError
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.handout import Turn
from perdure.turn.history import lineage, newest_answered, read_session
from perdure.turn.identity import ChatTurnIdentity
from perdure.turn.revising import revisions_of
from tests.turn.stage import (
    NEXT,
    TURN,
    Reader,
    Script,
    Stage,
    events_of,
    finish,
    is_in,
    until,
    within,
    words,
)

THIRD = TURN._replace(turn_index=2)
STRANGER = TURN._replace(user_id="eve")


def again(turn: ChatTurnIdentity, revision: int = 1) -> ChatTurnIdentity:
    return turn._replace(revision=revision)


class Numbered:
    """A producer whose answers are numbered, and which keeps what it was handed."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []

    async def __call__(self, turn: Turn) -> Any:
        self.turns.append(turn)
        for frame in words(f"a{len(self.turns)}"):
            yield frame

    def history(self, number: int = -1) -> list[Any]:
        return [message["content"] for message in self.turns[number].history]


async def conversation(stage: Stage) -> Sequence[str]:
    runs = await read_session(await stage.store(), "s")
    return [run.run_id for run in lineage(runs, newest_answered(runs))]


async def three_turns(engine: ChatTurnEngine, stage: Stage) -> None:
    for turn in (TURN, NEXT, THIRD):
        await finish(engine, turn, f"m{turn.turn_index}")
        stage.clock.advance(1)


async def regenerated(
    engine: ChatTurnEngine, turn: ChatTurnIdentity, message: str | None = None, **more: Any
) -> ChatTurnIdentity:
    submitted = await within(engine.submit(turn, message, regenerate=True, **more))
    assert submitted.created
    await within(Reader().follow(submitted.lines(wire="envelope")))
    return submitted.identity


# By a number.


async def test_a_revision_is_a_run_of_its_own(stage: Stage) -> None:
    script = Script(words("one"), words("two"))
    engine = await stage.engine(script)
    await finish(engine, TURN, "Hi")
    submitted = await engine.submit(again(TURN), "Hi")
    assert (submitted.created, submitted.run.run_id) == (True, "chat:s:0~1")
    events = await events_of(submitted)
    assert events[0]["data"] == {"sessionId": "s", "tenantId": "", "turnIndex": 0, "revision": 1}
    assert script.turns[1].identity == again(TURN)
    assert (await Reader().read(engine, TURN)).text == "one"
    assert (await Reader().read(engine, again(TURN))).text == "two"
    repeated = await engine.submit(again(TURN), "Hi")
    assert not repeated.created
    events = await events_of(repeated, dialect="reference")
    assert events[0]["data"] == {"sessionId": "s", "tenantId": "", "turnIndex": 0}
    with pytest.raises(RunInputMismatchError):
        await engine.submit(again(TURN), "Hello")


async def test_a_revision_follows_the_others(stage: Stage) -> None:
    engine = await stage.engine()
    with pytest.raises(UsageError, match="the next one is 0"):
        await engine.submit(again(TURN), "Hi")
    await finish(engine, TURN)
    with pytest.raises(UsageError, match="the next one is 1"):
        await engine.submit(again(TURN, 2), "Hi")
    await finish(engine, again(TURN, 1))
    await finish(engine, again(TURN, 2))
    runs = await revisions_of(await stage.store(), TURN)
    assert [run.revision for run in runs] == [0, 1, 2]


async def test_an_edit_begins_a_line_that_the_conversation_follows(stage: Stage) -> None:
    numbered = Numbered()
    engine = await stage.engine(numbered)
    await three_turns(engine, stage)
    assert await conversation(stage) == ["chat:s:0", "chat:s:1", "chat:s:2"]
    await finish(engine, again(NEXT), "m1 edited")
    assert numbered.history() == ["m0", "a1"]
    assert await conversation(stage) == ["chat:s:0", "chat:s:1~1"]
    stage.clock.advance(1)
    await finish(engine, again(THIRD), "m2 anew")
    assert numbered.history() == ["m0", "a1", "m1 edited", "a4"]
    assert await conversation(stage) == ["chat:s:0", "chat:s:1~1", "chat:s:2~1"]


async def test_an_edit_that_failed_leaves_the_conversation_where_it_was(stage: Stage) -> None:
    script = Script(words("one"), words("two"), [RuntimeError("no")])
    engine = await stage.engine(script)
    await finish(engine, TURN, "m0")
    stage.clock.advance(1)
    await finish(engine, NEXT, "m1")
    stage.clock.advance(1)
    await finish(engine, again(TURN), "m0 edited")
    assert await conversation(stage) == ["chat:s:0", "chat:s:1"]


async def test_older_lines_stay_readable_and_can_be_gone_on_from(stage: Stage) -> None:
    numbered = Numbered()
    engine = await stage.engine(numbered)
    await three_turns(engine, stage)
    await finish(engine, again(NEXT), "m1 edited")
    stage.clock.advance(1)
    texts = [(await Reader().read(engine, turn)).text for turn in (TURN, NEXT, THIRD, again(NEXT))]
    assert texts == ["a1", "a2", "a3", "a4"]
    await finish(engine, TURN._replace(turn_index=3), "m3")
    assert numbered.history() == ["m0", "a1", "m1", "a2", "m2", "a3"]
    assert (await conversation(stage))[-1] == "chat:s:3"


# By `regenerate`.


async def test_a_turn_is_answered_once_more_with_its_message_and_model(stage: Stage) -> None:
    numbered = Numbered()
    engine = await stage.engine(numbered)
    await finish(engine, TURN, "m0", model="small")
    assert await regenerated(engine, TURN) == again(TURN, 1)
    assert await regenerated(engine, TURN, model="large") == again(TURN, 2)
    assert await regenerated(engine, TURN, "edited") == again(TURN, 3)
    asked = [(turn.user_message, turn.model) for turn in numbered.turns]
    assert asked == [("m0", "small"), ("m0", "small"), ("m0", "large"), ("edited", "large")]


async def test_it_has_the_history_that_the_turn_had(stage: Stage) -> None:
    numbered = Numbered()
    engine = await stage.engine(numbered)
    await three_turns(engine, stage)
    await regenerated(engine, TURN)
    stage.clock.advance(1)
    # The first answer is another one by now; the third turn still follows what it followed.
    await regenerated(engine, THIRD)
    assert numbered.history() == numbered.history(2) == ["m0", "a1", "m1", "a2"]
    assert await conversation(stage) == ["chat:s:0", "chat:s:1", "chat:s:2~1"]


async def test_a_turn_that_had_no_history_gets_none(stage: Stage) -> None:
    script = Script([RuntimeError("no")], words("one"), words("mended"), words("one again"))
    engine = await stage.engine(script)
    await finish(engine, TURN, "m0")
    await finish(engine, NEXT, "m1")
    await finish(engine, TURN, "m0", retry=True)
    await regenerated(engine, NEXT)
    assert list(script.turns[3].history) == []
    assert (await stage.run(again(NEXT))).parent_run_id is None


async def test_a_run_that_is_repeated_sees_the_history_it_began_with(stage: Stage) -> None:
    script = Script(
        words("one"), words("two"), [text("a"), RuntimeError("no")], words("other"), words("c")
    )
    engine = await stage.engine(script)
    await finish(engine, TURN, "m0")
    await finish(engine, NEXT, "m1")
    third = await within(engine.submit(NEXT, None, regenerate=True))
    await within(Reader().follow(third.lines(wire="envelope")))
    await regenerated(engine, TURN)
    await finish(engine, third.identity, "m1", retry=True)
    assert [m["content"] for m in script.turns[2].history] == ["m0", "one"]
    assert list(script.turns[4].history) == list(script.turns[2].history)


async def test_a_busy_session_decides_by_its_policy(stage: Stage) -> None:
    gate = asyncio.Event()
    script = Script([gate, *words("one")], words("two"))
    engine = await stage.engine(script, recover=True)
    await engine.submit(TURN, "m0")
    with pytest.raises(SessionBusyError):
        await engine.submit(TURN, None, regenerate=True)
    queued = await engine.submit(TURN, None, regenerate=True, busy="queue")
    assert (queued.run.run_id, queued.run.state) == ("chat:s:0~1", "queued")
    gate.set()
    await until(lambda: is_in(stage, "completed", again(TURN)))
    assert (await Reader().read(engine, again(TURN))).text == "two"


async def test_an_answer_that_is_replaced_by_another_one_is_stopped(stage: Stage) -> None:
    script = Script([text("half"), asyncio.Event()], words("whole"))
    engine = await stage.engine(script)
    await engine.submit(TURN, "m0")
    await until(stage.frames)
    assert await regenerated(engine, TURN, busy="replace") == again(TURN)
    assert (await stage.run()).state == "stopped"
    assert (await stage.answer(again(TURN)))["finalText"] == "whole"
    assert await conversation(stage) == ["chat:s:0~1"]


async def test_two_at_once_with_one_message_are_one(stage: Stage) -> None:
    numbered = Numbered()
    engine = await stage.engine(numbered)
    await finish(engine, TURN, "m0")
    submits = [engine.submit(TURN, None, regenerate=True, busy="queue") for _ in range(2)]
    first, second = await within(asyncio.gather(*submits))
    assert first.identity == second.identity == again(TURN)
    assert sorted((first.created, second.created)) == [False, True]


async def test_two_at_once_with_two_messages_are_two(stage: Stage) -> None:
    engine = await stage.engine(Numbered(), busy="queue", recover=True)
    await finish(engine, TURN, "m0")
    submits = [engine.submit(TURN, message, regenerate=True) for message in ("x", "y")]
    submitted = await within(asyncio.gather(*submits))
    assert sorted(one.identity.revision for one in submitted) == [1, 2]
    for one in submitted:
        assert (await within(Reader().follow(one.lines(wire="envelope")))).is_done


async def test_there_must_be_a_turn_of_the_callers(stage: Stage) -> None:
    engine = await stage.engine()
    with pytest.raises(RunNotFoundError):
        await engine.submit(TURN, "Hi", regenerate=True)
    await finish(engine, TURN, "Hi")
    for message in (None, "Hi"):
        with pytest.raises(RunNotFoundError):
            await engine.submit(STRANGER, message, regenerate=True)
    with pytest.raises(UsageError):
        await engine.submit(again(STRANGER, 7), "Hi")
    with pytest.raises(RunNotFoundError):
        await revisions_of(await stage.store(), STRANGER)
    with pytest.raises(UsageError, match="message"):
        await engine.submit(NEXT, None)
