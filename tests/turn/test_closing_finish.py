"""Why a model's answer ended: told to readers, recorded, handed to hooks, lost by no crash."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from perdure.core.frames import Frame, text, upstream_end
from perdure.turn.handout import Turn
from perdure.turn.hooks import ChatTurnHooks, FinishedTurn
from tests.turn.agents import Produce, Tool, crash_when, joined
from tests.turn.stage import (
    COMPLETED,
    FAILED,
    TURN,
    Reader,
    Script,
    Stage,
    crashed,
    events_of,
    finish,
    until,
    within,
)


def reason_of(reader: Reader) -> Any:
    assert reader.kinds[-1] == COMPLETED
    return reader.events[-1]["data"].get("finishReason")


def calls(*reasons: str | None, then: Tool | None = None) -> Produce:
    """A producer that asks once for each finish reason, and may then call a tool."""

    def model(reason: str | None) -> Any:
        async def stream() -> AsyncIterator[Frame]:
            yield text("a")
            if reason is not None:
                yield upstream_end(reason)

        return stream

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        for number, reason in enumerate(reasons):
            async for frame in turn.stream(f"ask {number}", model(reason), result=joined):
                yield frame
        if then is not None:
            await turn.step("look", then, kind="tool", effect="idempotent")

    return produce


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter"])
async def test_readers_replays_and_hooks_hear_why_an_answer_ended(
    stage: Stage, reason: str
) -> None:
    finished: list[FinishedTurn] = []
    engine = await stage.engine(
        Script([text("Hel"), upstream_end(reason)]),
        hooks=ChatTurnHooks(persist_assistant_message=finished.append),
    )
    fresh = await finish(engine)
    again = await finish(engine)
    assert reason_of(fresh) == reason_of(again) == reason
    assert (await stage.answer())["finishReason"] == reason
    await until(lambda: finished)
    assert finished[0].finish_reason == reason
    assert (await stage.frames())[-1].data == {"finish": reason}


@pytest.mark.parametrize("replay", ["frames", "result"])
async def test_the_reference_s_lines_do_not_change(stage: Stage, replay: Any) -> None:
    engine = await stage.engine(Script([text("Hel"), upstream_end("length")]), replay=replay)
    for replayed in (False, True):
        submitted = await within(engine.submit(TURN, "Hi"))
        last = (await events_of(submitted, dialect="reference"))[-1]
        assert last["data"] == {"sessionId": "s", "replayed": replayed}
    told = (await events_of(await engine.submit(TURN, "Hi")))[-1]
    assert told["data"]["finishReason"] == "length"


@pytest.mark.parametrize(
    ("reasons", "last"),
    [(("tool_calls", "length"), "length"), (("length", "stop"), "stop"), ((None,), None)],
)
async def test_of_several_calls_the_last_one_counts(
    stage: Stage, reasons: Sequence[str | None], last: str | None
) -> None:
    assert reason_of(await finish(await stage.engine(calls(*reasons)))) == last
    assert (await stage.answer()).get("finishReason") == last


async def test_a_crash_behind_the_last_call_forgets_nothing(stage: Stage) -> None:
    tool = Tool(hangs=True)
    produce = calls("tool_calls", "length", then=tool)
    await crash_when(stage, produce, lambda: tool.calls)
    reader = await finish(await stage.engine(produce))
    assert (reader.text, reason_of(reader)) == ("aa", "length")


async def test_restarts_keep_why_the_kept_calls_ended(stage: Stage) -> None:
    asked = calls("length")

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        async for frame in asked(turn):
            yield frame
        yield text("-")
        if turn.attempt < 3:
            await asyncio.Event().wait()

    await crash_when(stage, produce, lambda: has_text(stage, "-", 1))
    await crash_when(stage, produce, lambda: has_text(stage, "-", 2))
    reader = await finish(await stage.engine(produce))
    assert (reader.text, reason_of(reader)) == ("a-", "length")
    assert [frame.kind for frame in await stage.frames()].count("restarted") == 2


async def has_text(stage: Stage, delta: str, epoch: int) -> bool:
    frames = await stage.frames()
    return any(frame.epoch == epoch and frame.data.get("delta") == delta for frame in frames)


async def test_an_answer_that_was_whole_before_the_crash_ends_as_it_did(stage: Stage) -> None:
    await crashed(stage, text("Hel"), upstream_end("content_filter"))
    script = Script()
    reader = await finish(await stage.engine(script))
    assert (reader.text, reason_of(reader), script.calls) == ("Hel", "content_filter", 0)


async def test_a_turn_that_was_stopped_has_no_finish_reason(stage: Stage) -> None:
    engine = await stage.engine(Script([text("a"), upstream_end("tool_calls"), asyncio.Event()]))
    await engine.submit(TURN, "Hi")
    await until(lambda: has_end(stage))
    await within(engine.stop(TURN))
    assert "finishReason" not in await stage.answer()


async def has_end(stage: Stage) -> bool:
    return any(frame.kind == "upstream_end" for frame in await stage.frames())


async def test_calls_that_follow_each_other_write_one_part(stage: Stage) -> None:
    await finish(await stage.engine(calls("stop", "stop")))
    (part,) = (await stage.answer())["parts"]
    assert part["d"] == "aa"


async def test_a_finish_reason_is_a_text(stage: Stage) -> None:
    wrong: Any = 7
    reader = await finish(await stage.engine(Script([text("a"), upstream_end(wrong)])))
    assert reader.kinds[-1] == FAILED
