"""Steps and streams inside a turn: done once, with the frames that belong to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from perdure.core.frames import Frame, text, tool_call, tool_result, upstream_end, usage
from perdure.core.records import StepRecord
from perdure.durable.steps import current_step
from perdure.errors import StepFailedError, UsageError
from perdure.turn.handout import Turn
from perdure.turn.recovery import InterruptedTurn
from tests.turn.stage import TURN, Reader, Stage, events_of, finish, until, within

COMPLETED, FAILED = "session.run.completed", "session.run.failed"
RESTARTED = "session.run.restarted"


def joined(frames: Sequence[Frame]) -> str:
    return "".join(frame.data["delta"] for frame in frames if frame.kind == "text")


class Model:
    """A model call that streams: counts its calls, and may wait, or die, in the middle."""

    def __init__(self, *deltas: str, hangs_at: int | None = None) -> None:
        self.deltas = deltas
        self.calls = 0
        self.keys: list[str] = []
        self.hangs_at = hangs_at

    def __call__(self) -> AsyncIterator[Frame]:
        return self.stream()

    async def stream(self) -> AsyncIterator[Frame]:
        self.calls += 1
        self.keys.append(current_step().idempotency_key)
        for index, delta in enumerate(self.deltas):
            if index == self.hangs_at:
                self.hangs_at = None
                await asyncio.Event().wait()
            yield text(delta)
        yield usage(tokens_in=1, tokens_out=len(self.deltas))
        yield upstream_end("stop")


class Tool:
    """A tool: counts its calls, and may never come back the first time."""

    def __init__(self, result: Any = "found", *, hangs: bool = False) -> None:
        self.calls = 0
        self.result = result
        self.hangs = hangs

    async def __call__(self) -> Any:
        self.calls += 1
        if self.hangs:
            self.hangs = False
            await asyncio.Event().wait()
        return self.result


Produce = Callable[[Turn], AsyncIterator[Any]]


def agent(ask: Model, tool: Tool, answer: Model, **effect: Any) -> Produce:
    """A model is asked, a tool is called, and the model answers: the usual loop."""

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        asking = turn.stream("ask", ask, result=joined)
        async for frame in asking:
            yield frame
        yield tool_call("c", "search", {"q": asking.result}, "idempotent")
        found = await turn.step("search", tool, kind="tool", **effect)
        yield tool_result("c", found)
        answering = turn.stream("answer", answer, result=joined)
        async for frame in answering:
            yield frame

    return produce


async def crash_when(
    stage: Stage, produce: Produce, condition: Callable[[], Any], **options: Any
) -> Reader:
    """Let a process die in the middle of a turn, and return a reader of what it had shown."""
    worker = await stage.worker(produce, **options)
    reader = Reader()
    submitted = await worker.engine.submit(TURN, "Hi")
    reading = asyncio.ensure_future(reader.follow(submitted.lines(wire="envelope")))
    await until(condition)
    await worker.kill()
    await asyncio.wait([reading])
    if not reading.cancelled():
        reading.exception()
    stage.lapse()
    return reader


async def steps_of(stage: Stage) -> dict[str, StepRecord]:
    steps = await (await stage.store()).read_steps("chat:s:0")
    return {step.intent: step for step in steps}


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
    assert [step.frames_to for step in steps.values()] == [len(frames), 2, 3, 6]
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
    reader = await crash_when(stage, produce, lambda: _shown(stage, " see"))
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


async def _shown(stage: Stage, delta: str) -> bool:
    return any(frame.data.get("delta") == delta for frame in await stage.frames())


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

    await crash_when(stage, produce, lambda: _shown(stage, "r2"))
    reader = await finish(await stage.engine(produce))
    assert sorted(reader.text[i : i + 2] for i in range(0, 10, 2)) == ["l1", "l2", "l3", "r1", "r2"]
    assert reader.text == (await stage.answer())["finalText"]


async def test_a_stream_left_early_is_no_record(stage: Stage) -> None:
    model = Model("a", "b", "c")

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        async for frame in turn.stream("ask", model, result=joined):
            yield frame
            break
        yield text("!")

    reader = await finish(await stage.engine(produce))
    assert reader.text == "a!"
    assert (await steps_of(stage))["ask"].status == "running"
    assert [row.state for row in (await stage.details()).usage] == ["unknown", "unknown"]


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

    reader = await crash_when(stage, produce, lambda: _shown(stage, "3"))
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

    await crash_when(stage, produce, lambda: _shown(stage, " lost"))
    await finish(await stage.engine(produce))
    assert seen == ["", "kept"]


async def test_a_stop_in_a_stream_keeps_what_was_shown(stage: Stage) -> None:
    model = Model("Hel", "lo", hangs_at=1)

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        async for frame in turn.stream("ask", model, result=joined):
            yield frame

    engine = await stage.engine(produce)
    await engine.submit(TURN, "Hi")
    await until(lambda: _shown(stage, "Hel"))
    assert (await within(engine.stop(TURN))).state == "stopped"
    assert (await stage.answer())["finalText"] == "Hel"
    assert (await steps_of(stage))["ask"].status == "running"
