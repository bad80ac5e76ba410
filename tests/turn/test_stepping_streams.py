"""Model calls that stream inside a turn: recorded in order, with their frames."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from perdure.core.frames import Frame, text
from perdure.durable.steps import current_step
from perdure.errors import StepFailedError, UsageError
from perdure.turn.handout import Turn
from tests.turn.agents import Model, Tool, crash_when, joined, steps_of, was_shown
from tests.turn.stage import COMPLETED, Stage, finish

# Failures that a producer lives with.


async def test_frames_of_a_stream_behind_a_failed_step_are_not_lost(stage: Stage) -> None:
    sorry, more = Model("Sorry."), Model(" Anyway", hangs_at=0)

    def fail() -> None:
        raise RuntimeError("no such page")

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        try:
            await turn.step("fetch", fail)
        except StepFailedError:
            async for frame in turn.stream("sorry", sorry, result=joined):
                yield frame
        async for frame in turn.stream("more", more, result=joined):
            yield frame

    await crash_when(stage, produce, lambda: more.calls)
    reader = await finish(await stage.engine(produce))
    assert reader.text == "Sorry. Anyway" == (await stage.answer())["finalText"]
    assert (sorry.calls, more.calls) == (1, 2)


async def test_a_stream_that_fails_is_recorded_as_failed(stage: Stage) -> None:
    async def broken() -> AsyncIterator[Frame]:
        yield text("Hel")
        raise RuntimeError("cut off")

    caught: list[StepFailedError] = []

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        try:
            async for frame in turn.stream("ask", broken, result=joined):
                yield frame
        except StepFailedError as error:
            caught.append(error)
            yield text("… sorry")

    reader = await finish(await stage.engine(produce))
    assert reader.text == "Hel… sorry"
    assert caught[0].original_message == "cut off"
    step = (await steps_of(stage))["ask"]
    assert (step.status, step.attempts) == ("failed", 1)
    assert [row.state for row in (await stage.details()).usage] == ["unknown", "unknown"]


# Streams out of order.


async def test_a_stream_that_ends_before_an_earlier_step_is_recorded_with_it(
    stage: Stage,
) -> None:
    gate = asyncio.Event()
    draft, final = Model("draft"), Model(" final", hangs_at=0)

    async def slow() -> str:
        await gate.wait()
        return "facts"

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        looking = asyncio.ensure_future(turn.step("look", slow))
        await asyncio.sleep(0)
        drafting = turn.stream("draft", draft, result=joined)
        async for frame in drafting:
            yield frame
        assert drafting.result == "draft"
        gate.set()
        await looking
        async for frame in turn.stream("final", final, result=joined):
            yield frame

    await crash_when(stage, produce, lambda: final.calls)
    steps = await steps_of(stage)
    assert [steps[name].status for name in ("look", "draft", "final")] == [
        "completed",
        "completed",
        "running",
    ]
    reader = await finish(await stage.engine(produce))
    assert reader.text == "draft final"
    assert (draft.calls, final.calls) == (1, 2)


async def test_a_crash_before_the_earlier_step_repeats_the_stream(stage: Stage) -> None:
    draft, slow = Model("draft"), Tool(hangs=True)
    drafted = asyncio.Event()

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        looking = asyncio.ensure_future(turn.step("look", slow))
        await asyncio.sleep(0)
        async for frame in turn.stream("draft", draft, result=joined):
            yield frame
        drafted.set()
        await looking

    await crash_when(stage, produce, drafted.is_set)
    reader = await finish(await stage.engine(produce))
    assert reader.text == "draft" == (await stage.answer())["finalText"]
    assert draft.calls == 2


async def test_a_stream_whose_earlier_step_never_ends_is_recorded_with_the_turn(
    stage: Stage,
) -> None:
    async def produce(turn: Turn) -> AsyncIterator[Any]:
        looking = asyncio.ensure_future(turn.step("look", Tool(hangs=True)))
        await asyncio.sleep(0)
        async for frame in turn.stream("draft", Model("draft"), result=joined):
            yield frame
        assert not looking.done()

    assert (await finish(await stage.engine(produce))).text == "draft"
    steps = await steps_of(stage)
    assert (steps["draft"].status, steps["draft"].result) == ("completed", "draft")
    assert steps["look"].status == "failed"


async def test_streams_side_by_side_lose_nothing(stage: Stage) -> None:
    left, right = Model("l1", "l2", "l3", hangs_at=2), Model("r1", "r2")

    async def merged(*streams: Any) -> AsyncIterator[Frame]:
        queue: asyncio.Queue[Frame | None] = asyncio.Queue()

        async def pump(stream: Any) -> None:
            async for frame in stream:
                queue.put_nowait(frame)
                await asyncio.sleep(0)
            queue.put_nowait(None)

        pumps = [asyncio.ensure_future(pump(stream)) for stream in streams]
        try:
            open_streams = len(pumps)
            while open_streams:
                frame = await queue.get()
                if frame is None:
                    open_streams -= 1
                else:
                    yield frame
        finally:
            for one in pumps:
                one.cancel()

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        streams = [turn.stream("left", left, result=joined)]
        streams.append(turn.stream("right", right, result=joined))
        async for frame in merged(*streams):
            yield frame

    await crash_when(stage, produce, lambda: was_shown(stage, "r2"))
    reader = await finish(await stage.engine(produce))
    assert sorted(reader.text[i : i + 2] for i in range(0, 10, 2)) == ["l1", "l2", "l3", "r1", "r2"]
    assert reader.text == (await stage.answer())["finalText"]


async def test_a_stream_has_no_result_before_its_end(stage: Stage) -> None:
    caught: list[Exception] = []

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        stream = turn.stream("ask", Model("a"), result=joined)
        try:
            _ = stream.result
        except UsageError as error:
            caught.append(error)
        async for frame in stream:
            yield frame

    await finish(await stage.engine(produce))
    assert "iterated to its end" in str(caught[0])


async def test_no_step_is_begun_within_a_stream(stage: Stage) -> None:
    caught: list[Exception] = []

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        async def nested() -> AsyncIterator[Frame]:
            try:
                await turn.step("inner", lambda: 1)
            except UsageError as error:
                caught.append(error)
            yield text("a")

        async for frame in turn.stream("outer", nested, result=joined):
            yield frame
            await turn.step("between", lambda: 1)

    reader = await finish(await stage.engine(produce))
    assert reader.kinds[-1] == COMPLETED
    assert "inside the body" in str(caught[0])


async def test_only_the_body_of_a_stream_is_inside_its_step(stage: Stage) -> None:
    model = Model("a", "b")
    outside: list[str] = []

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        outside.append(current_step().idempotency_key)
        async for frame in turn.stream("ask", model, result=joined):
            outside.append(current_step().idempotency_key)
            yield frame

    await finish(await stage.engine(produce))
    assert len(set(outside)) == 1
    assert model.keys[0] not in outside


async def test_text_between_a_step_and_a_failure_that_was_handled_is_not_lost(stage: Stage) -> None:
    last = Tool(hangs=True)

    def fail() -> None:
        raise RuntimeError("no such page")

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        yield text("A")
        await turn.step("first", lambda: 1)
        yield text("B")
        try:
            await turn.step("second", fail)
        except StepFailedError:
            yield text("C")
        await turn.step("last", last)
        yield text("D")

    await crash_when(stage, produce, lambda: last.calls)
    reader = await finish(await stage.engine(produce))
    assert reader.text == "ABCD" == (await stage.answer())["finalText"]


async def test_a_step_that_ends_while_a_stream_runs_keeps_nothing_of_the_stream(
    stage: Stage,
) -> None:
    hanging = asyncio.Event()
    attempts: list[int] = []

    async def words() -> AsyncIterator[Frame]:
        attempts.append(1)
        yield text("one ")
        looked_up.set()
        await recorded.wait()
        yield text("two ")
        if len(attempts) == 1:
            hanging.set()
            await asyncio.Event().wait()
        yield text("three")

    looked_up, recorded = asyncio.Event(), asyncio.Event()

    async def look_up() -> str:
        await looked_up.wait()
        return "found"

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        lookup = asyncio.ensure_future(turn.step("look up", look_up))
        lookup.add_done_callback(lambda _: recorded.set())
        async for frame in turn.stream("say", words, result=joined):
            yield frame
        await lookup

    await crash_when(stage, produce, hanging.is_set)
    reader = await finish(await stage.engine(produce))
    assert reader.text == "one two three" == (await stage.answer())["finalText"]


async def test_a_misspelt_effect_inside_a_turn_is_refused(stage: Stage) -> None:
    async def produce(turn: Turn) -> AsyncIterator[Any]:
        yield text("Paying.")
        effect: Any = "at-most-once"
        await turn.step("pay", lambda: 1, kind="tool", effect=effect)

    reader = await finish(await stage.engine(produce))
    assert reader.kinds[-1] == "session.run.failed"
    assert "pay" not in await steps_of(stage)
