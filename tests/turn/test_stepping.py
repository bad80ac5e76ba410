"""Steps inside a turn: done once, and kept with the frames before them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from perdure.core.frames import text
from perdure.turn.handout import Turn
from perdure.turn.recovery import InterruptedTurn
from tests.turn.agents import Model, Tool, agent, crash_when, joined, steps_of, was_shown
from tests.turn.stage import (
    COMPLETED,
    FAILED,
    RESTARTED,
    TURN,
    Stage,
    events_of,
    finish,
    until,
    within,
)


async def test_an_agent_is_recorded_step_by_step_with_its_frames(stage: Stage) -> None:
    ask, tool, answer = Model("Let", " me"), Tool(), Model(" see:", " found")
    reader = await finish(await stage.engine(agent(ask, tool, answer)))
    assert reader.text == "Let me see: found"
    steps = await steps_of(stage)
    assert [(s.step_index, s.kind, s.effect) for s in steps.values()] == [
        (0, "llm", None),
        (1, "llm", "idempotent"),
        (2, "tool", "at_most_once"),
        (3, "llm", "idempotent"),
    ]
    assert steps["ask"].result == "Let me"
    assert steps["search"].result == "found"
    frames = await stage.frames()
    assert [step.frames_to for step in steps.values()] == [len(frames), 3, 4, 8]
    assert frames[-1].kind == "completed"
    rows = (await stage.details()).usage
    assert [(row.call, row.state, row.step_index, row.tokens_out) for row in rows] == [
        (0, "settled", 0, 0),
        (1, "settled", 1, 2),
        (2, "settled", 3, 2),
    ]


async def test_what_is_recorded_is_kept_and_not_done_again(stage: Stage) -> None:
    ask, tool, answer = Model("Let", " me"), Tool(), Model(" see", " lost", hangs_at=1)
    produce = agent(ask, tool, answer)
    reader = await crash_when(stage, produce, lambda: was_shown(stage, " see"))
    answer.deltas = (" find", " it")
    engine = await stage.engine(produce)
    await engine.submit(TURN, "Hi")
    await reader.read(engine)
    assert reader.text == "Let me find it" == (await stage.answer())["finalText"]
    assert (ask.calls, tool.calls, answer.calls) == (1, 1, 2)
    assert reader.kinds.count(RESTARTED) == 1
    kinds = [part["k"] for part in (await stage.answer())["parts"]]
    assert kinds == ["text", "tool_call", "tool_result", "text"]
    assert answer.keys[0] == answer.keys[1] != ask.keys[0]
    states = [(r.epoch, r.call, r.state) for r in (await stage.details()).usage]
    assert states == [
        (1, 0, "unknown"),
        (1, 1, "settled"),
        (1, 2, "unknown"),
        (2, 0, "settled"),
        (2, 1, "settled"),
    ]


async def test_a_crash_between_two_steps_shows_readers_nothing(stage: Stage) -> None:
    ask, tool, answer = Model("Let", " me"), Tool(), Model(" see", hangs_at=0)
    produce = agent(ask, tool, answer)

    async def answering() -> bool:
        return "answer" in await steps_of(stage)

    await crash_when(stage, produce, answering)
    reader = await finish(await stage.engine(produce))
    # The result of the tool was shown, and no step behind it was complete.
    assert reader.text == "Let me see"
    assert (ask.calls, tool.calls, answer.calls) == (1, 1, 2)


async def test_two_takeovers_keep_what_both_attempts_recorded(stage: Stage) -> None:
    ask, tool, answer = Model("Let", " me", hangs_at=None), Tool(hangs=True), Model(" see")
    produce = agent(ask, tool, answer, effect="idempotent")
    reader = await crash_when(stage, produce, lambda: tool.calls == 1)
    answer.hangs_at = 0
    worker = await stage.worker(produce)
    await worker.engine.submit(TURN, "Hi")
    await until(lambda: answer.calls == 1)
    await worker.kill()
    stage.lapse()
    engine = await stage.engine(produce)
    await engine.submit(TURN, "Hi")
    await reader.read(engine)
    assert reader.text == "Let me see" == (await stage.answer())["finalText"]
    assert (ask.calls, tool.calls, answer.calls) == (1, 2, 2)
    parts = [part["k"] for part in (await stage.answer())["parts"]]
    assert parts == ["text", "tool_call", "tool_result", "text"]


# Tools.


async def test_an_interrupted_tool_is_not_called_again(stage: Stage) -> None:
    ask, tool, answer = Model("Let me"), Tool(hangs=True), Model(" see")
    produce = agent(ask, tool, answer)
    await crash_when(stage, produce, lambda: tool.calls)
    engine = await stage.engine(produce)
    events = await events_of(await engine.submit(TURN, "Hi"))
    assert events[-2]["data"]["code"] == "unfinished_tool_call"
    assert tool.calls == 1
    step = (await steps_of(stage))["search"]
    assert step.status == "failed"
    assert step.error is not None
    assert step.error.code == "unfinished_tool_call"


async def test_one_retry_by_hand_is_enough_to_call_it_again(stage: Stage) -> None:
    ask, tool, answer = Model("Let me"), Tool(hangs=True), Model(" see")
    produce = agent(ask, tool, answer)
    await crash_when(stage, produce, lambda: tool.calls)
    engine = await stage.engine(produce)
    await finish(engine)
    reader = await finish(engine, retry=True)
    assert (reader.text, reader.kinds[-1]) == ("Let me see", COMPLETED)
    assert (ask.calls, tool.calls, answer.calls) == (1, 2, 1)


@pytest.mark.parametrize("effect", ["idempotent", "pure"])
async def test_an_interrupted_tool_that_may_repeat_is_called_again(
    stage: Stage, effect: str
) -> None:
    ask, tool, answer = Model("Let me"), Tool(hangs=True), Model(" see")
    produce = agent(ask, tool, answer, effect=effect)
    await crash_when(stage, produce, lambda: tool.calls)
    reader = await finish(await stage.engine(produce))
    assert (reader.text, reader.kinds[-1]) == ("Let me see", COMPLETED)
    assert tool.calls == 2


async def test_a_product_may_decide_to_call_it_again(stage: Stage) -> None:
    async def policy(turn: InterruptedTurn) -> Any:
        assert turn.open_tool_call == "search"
        return "rerun"

    ask, tool, answer = Model("Let me"), Tool(hangs=True), Model(" see")
    produce = agent(ask, tool, answer)
    await crash_when(stage, produce, lambda: tool.calls)
    reader = await finish(await stage.engine(produce, on_interrupted=policy))
    assert (reader.text, reader.kinds[-1]) == ("Let me see", COMPLETED)
    assert tool.calls == 2


async def test_a_turn_that_failed_beside_an_open_tool_needs_one_retry(stage: Stage) -> None:
    tool = Tool(hangs=True)

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        calling = asyncio.ensure_future(turn.step("search", tool, kind="tool"))
        await until(lambda: tool.calls)
        if turn.attempt == 1:
            raise RuntimeError("no")
        yield text(await calling)

    engine = await stage.engine(produce)
    assert (await finish(engine)).kinds[-1] == FAILED
    assert (await finish(engine, retry=True)).text == "found"


# Divergence.


async def test_a_producer_that_takes_another_way_is_parked_until_the_old_one_is_back(
    stage: Stage,
) -> None:
    ask, tool, answer = Model("Let me"), Tool(), Model(" see", hangs_at=0)
    produce = agent(ask, tool, answer)
    await crash_when(stage, produce, lambda: answer.calls)

    async def changed(turn: Turn) -> AsyncIterator[Any]:
        try:
            await turn.step("something else", lambda: 1)
        except Exception:
            yield text("swallowed")

    engine = await stage.engine(changed)
    events = await events_of(await engine.submit(TURN, "Hi"))
    assert events[-2]["data"]["code"] == "parked"
    run = await stage.run()
    assert (run.state, run.reason) == ("parked", "step_divergence")
    reader = await finish(await stage.engine(produce), retry=True)
    assert reader.text == "Let me see"
    assert (ask.calls, tool.calls) == (1, 1)


# While steps replay.


async def test_what_is_yielded_between_recorded_steps_is_shown_once(stage: Stage) -> None:
    gate: list[bool] = []

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        yield text("0")
        await turn.step("one", lambda: 1)
        yield text("1")
        await turn.step("two", lambda: 2)
        yield text("2")
        await turn.step("three", lambda: 3)
        yield text("3")
        if not gate:
            gate.append(True)
            await asyncio.Event().wait()
        yield text("4")

    reader = await crash_when(stage, produce, lambda: was_shown(stage, "3"))
    engine = await stage.engine(produce)
    await engine.submit(TURN, "Hi")
    await reader.read(engine)
    assert reader.text == "01234"
    kept = [frame.data["delta"] for frame in (await stage.frames())[5:-1]]
    assert kept == ["012", "3", "4"]
    assert (await stage.answer())["finalText"] == "01234"


async def test_the_partial_answer_is_what_readers_keep(stage: Stage) -> None:
    seen: list[str] = []
    gate: list[bool] = []

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        seen.append(turn.partial.text)
        async for frame in turn.stream("ask", Model("kept"), result=joined):
            yield frame
        yield text(" lost")
        if not gate:
            gate.append(True)
            await asyncio.Event().wait()

    await crash_when(stage, produce, lambda: was_shown(stage, " lost"))
    await finish(await stage.engine(produce))
    assert seen == ["", "kept"]


async def test_a_stop_in_a_stream_keeps_what_was_shown(stage: Stage) -> None:
    model = Model("Hel", "lo", hangs_at=1)

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        async for frame in turn.stream("ask", model, result=joined):
            yield frame

    engine = await stage.engine(produce)
    await engine.submit(TURN, "Hi")
    await until(lambda: was_shown(stage, "Hel"))
    assert (await within(engine.stop(TURN))).state == "stopped"
    assert (await stage.answer())["finalText"] == "Hel"
    step = (await steps_of(stage))["ask"]
    assert step.error is not None
    assert (step.status, step.error.code) == ("failed", "abandoned")
