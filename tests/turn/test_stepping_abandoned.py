"""Steps that nobody ends: no turn that has an answer leaves one behind as running."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from perdure.core.frames import Frame, text, usage
from perdure.errors import StepFailedError
from perdure.turn.handout import Turn
from tests.turn.agents import Model, Produce, Tool, crash_when, joined, steps_of, was_shown
from tests.turn.stage import FAILED, TURN, Stage, finish, until, within


async def code_of(stage: Stage, intent: str) -> str | None:
    step = (await steps_of(stage))[intent]
    assert step.status == "failed"
    assert step.error is not None
    return step.error.code


def breaking_off(model: Callable[[], AsyncIterator[Frame]], how: str) -> Produce:
    """A producer that takes one frame of a stream, and has enough."""

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        stream = turn.stream("ask", model, result=joined)
        frames: Any = aiter(stream)
        async for frame in frames:
            yield frame
            break
        if how == "close":
            await frames.aclose()
        elif how == "collect":
            del stream, frames
            gc.collect()
        yield text("!")

    return produce


@pytest.mark.parametrize("how", ["close", "collect", "keep"])
async def test_a_stream_that_is_broken_off_is_recorded_as_abandoned(stage: Stage, how: str) -> None:
    reader = await finish(await stage.engine(breaking_off(Model("a", "b", "c"), how)))
    assert reader.text == "a!" == (await stage.answer())["finalText"]
    assert await code_of(stage, "ask") == "abandoned"
    assert [row.state for row in (await stage.details()).usage] == ["unknown", "unknown"]


@pytest.mark.parametrize("how", ["close", "collect"])
async def test_what_a_stream_said_of_its_usage_before_it_was_broken_off_is_billed(
    stage: Stage, how: str
) -> None:
    async def model() -> AsyncIterator[Frame]:
        yield usage(tokens_in=7, tokens_out=1)
        yield text("a")
        yield text("b")

    await finish(await stage.engine(breaking_off(model, how)))
    row = next(row for row in (await stage.details()).usage if row.step_index == 1)
    assert (row.state, row.tokens_in, row.tokens_out) == ("settled", 7, 1)


async def test_the_call_upstream_of_a_stream_that_is_broken_off_is_ended(stage: Stage) -> None:
    ended: list[str] = []

    async def model() -> AsyncIterator[Frame]:
        try:
            yield text("a")
            yield text("b")
        finally:
            ended.append("ended")

    await finish(await stage.engine(breaking_off(model, "close")))
    assert ended == ["ended"]


async def test_a_stream_that_was_broken_off_is_made_again_after_a_crash(stage: Stage) -> None:
    model, tool = Model("a", "b"), Tool(hangs=True)

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        async for frame in turn.stream("ask", model, result=joined):
            yield frame
            break
        yield text("-")
        await turn.step("look", tool, kind="tool", effect="idempotent")
        yield text("!")

    await crash_when(stage, produce, lambda: tool.calls)
    reader = await finish(await stage.engine(produce))
    assert reader.text == "a-!" == (await stage.answer())["finalText"]
    assert (model.calls, await code_of(stage, "ask")) == (2, "abandoned")
    assert (await steps_of(stage))["look"].status == "completed"


async def test_a_stream_that_a_time_limit_cut_off_is_cut_off_again_after_a_crash(
    stage: Stage,
) -> None:
    model, tool = Model("a", "b", hangs_at=1), Tool(hangs=True)

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        end = "whole"
        try:
            async with asyncio.timeout(0.1):
                async for frame in turn.stream("ask", model, result=joined):
                    yield frame
        except TimeoutError:
            end = "late"
        await turn.step(end, tool, kind="tool", effect="idempotent")
        yield text(f"{end}!")

    await crash_when(stage, produce, lambda: tool.calls)
    model.hangs_at = None
    await finish(await stage.engine(produce))
    assert (await stage.answer())["finalText"] == "late!"
    assert (model.calls, await code_of(stage, "ask")) == (1, "abandoned")


async def test_a_model_that_cancels_itself_has_failed_like_any_other(stage: Stage) -> None:
    calls = 0

    async def model() -> AsyncIterator[Frame]:
        nonlocal calls
        calls += 1
        yield text("a")
        raise asyncio.CancelledError

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        try:
            async for frame in turn.stream("ask", model, result=joined):
                yield frame
        except StepFailedError as error:
            yield text(f" {error.original_type}")

    reader = await finish(await stage.engine(produce))
    assert reader.text == "a CancelledError"
    assert calls == 1


@pytest.mark.parametrize(
    ("effect", "code"), [("at_most_once", "unfinished_tool_call"), ("idempotent", "abandoned")]
)
async def test_a_stop_in_a_tool_says_what_became_of_it(
    stage: Stage, effect: Any, code: str
) -> None:
    tool = Tool(hangs=True)

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        yield text("Looking.")
        await turn.step("look", tool, kind="tool", effect=effect)

    engine = await stage.engine(produce)
    await engine.submit(TURN, "Hi")
    await until(lambda: tool.calls)
    await within(engine.stop(TURN))
    assert await code_of(stage, "look") == code


async def test_a_stop_without_a_worker_leaves_no_step_of_the_lost_one_running(
    stage: Stage,
) -> None:
    model = Model("a", "b", hangs_at=1)

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        async for frame in turn.stream("ask", model, result=joined):
            yield frame

    await crash_when(stage, produce, lambda: was_shown(stage, "a"))
    engine = await stage.engine(produce)
    assert (await within(engine.stop(TURN))).state == "stopped"
    assert await code_of(stage, "ask") == "abandoned"


async def test_a_failed_turn_leaves_its_steps_open_for_a_retry(stage: Stage) -> None:
    tries: list[int] = []

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        tries.append(1)
        async for frame in turn.stream("ask", Model("a", "b"), result=joined):
            yield frame
            if len(tries) == 1:
                raise RuntimeError("not today")

    engine = await stage.engine(produce)
    assert (await finish(engine)).kinds[-1] == FAILED
    assert (await steps_of(stage))["ask"].status == "running"
    assert (await finish(engine, retry=True)).text == "ab"


async def test_a_step_that_a_turn_does_not_wait_for_is_abandoned(stage: Stage) -> None:
    begun = asyncio.Event()

    async def look() -> None:
        begun.set()
        await asyncio.Event().wait()

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        looking = asyncio.ensure_future(turn.step("look", look, kind="llm"))
        await begun.wait()
        yield text("Enough.")
        assert not looking.done()

    assert (await finish(await stage.engine(produce))).text == "Enough."
    assert await code_of(stage, "look") == "abandoned"
