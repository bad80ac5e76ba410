"""Turns that are stopped in line: whoever follows is told what was answered before."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.turn.engine import ChatTurnEngine
from perdure.turn.handout import Turn
from perdure.turn.identity import ChatTurnIdentity
from tests.turn.stage import NEXT, TURN, Reader, Stage, finish, is_in, until, within, words

THIRD = TURN._replace(turn_index=2)
FOURTH = TURN._replace(turn_index=3)


class Gate:
    """A producer that answers `a<turn>` once it is let through, and fails the turns `failing`."""

    def __init__(self) -> None:
        self.told: dict[tuple[int, int], list[Any]] = {}
        self.open = asyncio.Event()
        self.failing: set[tuple[int, int]] = set()

    async def __call__(self, turn: Turn) -> Any:
        place = (turn.identity.turn_index, turn.identity.revision)
        self.told[place] = [message["content"] for message in turn.history]
        await self.open.wait()
        if place in self.failing:
            raise RuntimeError("no")
        for frame in words(f"a{turn.identity.turn_index}"):
            yield frame


async def submitted_all(engine: ChatTurnEngine, *turns: ChatTurnIdentity) -> None:
    for turn in turns:
        await engine.submit(turn, f"m{turn.turn_index}", busy="queue")


async def answered(engine: ChatTurnEngine, turn: ChatTurnIdentity) -> None:
    assert (await within(Reader().read(engine, turn))).is_done


@pytest.mark.parametrize(
    ("stopped", "told"),
    [
        ([NEXT], ["m0", "a0", "m1", "m2", "a2"]),
        ([THIRD], ["m0", "a0", "m1", "a1", "m2"]),
        ([NEXT, THIRD], ["m0", "a0", "m1", "m2"]),
        ([THIRD, NEXT], ["m0", "a0", "m1", "m2"]),
    ],
    ids=["the middle", "the newest", "both in order", "both from behind"],
)
async def test_whoever_follows_is_told_every_answer_before_it(
    stage: Stage, stopped: list[ChatTurnIdentity], told: list[str]
) -> None:
    gate = Gate()
    engine = await stage.engine(gate, recover=True)
    await submitted_all(engine, TURN, NEXT, THIRD)
    await until(lambda: gate.told)
    for turn in stopped:
        assert (await within(engine.stop(turn))).state == "stopped"
    gate.open.set()
    for turn in (TURN, NEXT, THIRD):
        await answered(engine, turn)
    await submitted_all(engine, FOURTH)
    await answered(engine, FOURTH)
    assert gate.told[3, 0] == told
    assert not {(turn.turn_index, 0) for turn in stopped} & gate.told.keys()


async def test_who_replaces_a_line_is_told_what_the_one_in_flight_said(stage: Stage) -> None:
    gate = Gate()
    engine = await stage.engine(gate, recover=True)
    await finish_first(engine, gate)
    await submitted_all(engine, NEXT, THIRD)
    await until(lambda: (1, 0) in gate.told)
    await within(engine.submit(FOURTH, "m3", busy="replace"))
    gate.open.set()
    await answered(engine, FOURTH)
    assert gate.told[3, 0] == ["m0", "a0", "m1", "m2"]


async def test_a_turn_stopped_in_line_is_regenerated_behind_the_answer_it_waited_for(
    stage: Stage,
) -> None:
    gate = Gate()
    engine = await stage.engine(gate, recover=True)
    await submitted_all(engine, TURN, NEXT)
    await until(lambda: gate.told)
    await within(engine.stop(NEXT))
    gate.open.set()
    await answered(engine, TURN)
    submitted = await within(engine.submit(NEXT, None, regenerate=True))
    await within(Reader().follow(submitted.lines(wire="envelope")))
    assert gate.told[1, 1] == ["m0", "a0"]
    assert (await stage.run(NEXT._replace(revision=1))).state == "completed"


async def test_it_is_regenerated_while_that_one_is_still_in_flight(stage: Stage) -> None:
    gate = Gate()
    engine = await stage.engine(gate, recover=True)
    await submitted_all(engine, TURN, NEXT)
    await until(lambda: gate.told)
    await within(engine.stop(NEXT))
    again = await within(engine.submit(NEXT, None, regenerate=True, busy="queue"))
    assert again.run.state == "queued"
    gate.open.set()
    await answered(engine, again.identity)
    assert gate.told[1, 1] == ["m0", "a0"]


async def test_what_fails_in_flight_takes_no_earlier_answer_along(stage: Stage) -> None:
    gate = Gate()
    engine = await stage.engine(gate, recover=True)
    await finish_first(engine, gate)
    gate.failing.add((1, 0))
    await submitted_all(engine, NEXT, THIRD)
    await until(lambda: (1, 0) in gate.told)
    await within(engine.stop(THIRD))
    gate.open.set()
    await until(lambda: is_in(stage, "failed", NEXT))
    await submitted_all(engine, FOURTH)
    await answered(engine, FOURTH)
    assert gate.told[3, 0] == ["m0", "a0", "m2"]


async def test_a_revision_that_fails_in_flight_changes_nothing(stage: Stage) -> None:
    gate = Gate()
    engine = await stage.engine(gate, recover=True)
    await finish_first(engine, gate)
    gate.failing.add((0, 1))
    await within(engine.submit(TURN, None, regenerate=True))
    await until(lambda: (0, 1) in gate.told)
    await submitted_all(engine, NEXT)
    await within(engine.stop(NEXT))
    gate.open.set()
    await until(lambda: is_in(stage, "failed", TURN._replace(revision=1)))
    await submitted_all(engine, THIRD)
    await answered(engine, THIRD)
    assert gate.told[2, 0] == ["m0", "a0", "m1"]


@pytest.mark.parametrize(
    ("turns_max", "told"), [(1, ["m1"]), (2, ["a0", "m1"]), (None, ["a0", "m1"])]
)
async def test_a_history_with_a_bound_counts_the_answer_in_its_place(
    stage: Stage, turns_max: int | None, told: list[str]
) -> None:
    gate = Gate()
    engine = await stage.engine(gate, recover=True, history_turns_max=turns_max)
    await finish_first(engine, gate)
    gate.failing.add((0, 1))
    await within(engine.submit(TURN, None, regenerate=True))
    await until(lambda: (0, 1) in gate.told)
    await submitted_all(engine, NEXT)
    await within(engine.stop(NEXT))
    gate.open.set()
    await until(lambda: is_in(stage, "failed", TURN._replace(revision=1)))
    await submitted_all(engine, THIRD)
    await answered(engine, THIRD)
    assert gate.told[2, 0][-len(told) :] == told
    assert len(gate.told[2, 0]) == (1 if turns_max == 1 else 3)


async def finish_first(engine: ChatTurnEngine, gate: Gate) -> None:
    gate.open.set()
    await finish(engine, TURN, "m0")
    gate.open.clear()
