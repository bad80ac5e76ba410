"""Producers: what they may be and yield, how they fail, fall silent, and refuse to end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import pytest

from perdure.core.frames import (
    Frame,
    data,
    text,
    tool_call,
)
from perdure.core.limits import FRAME_BYTES_MAX
from perdure.errors import BackendTransportError
from perdure.testing.crashing import Process, crashing
from perdure.turn import driving
from perdure.turn.handout import Turn
from perdure.turn.producing import FAIR_ITEMS
from tests.turn.stage import (
    COMPLETED,
    FAILED,
    STOPPED,
    TURN,
    Script,
    Stage,
    errors_in,
    events_of,
    finish,
    kinds_of,
    until,
    within,
)

T = TypeVar("T")


class HeldUp(Process):
    """A process whose first write of frames, behind the turn's begin, waits until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.held_up = asyncio.Event()
        self.may_go_on = asyncio.Event()

    async def write(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        if name == "write" and self.calls.count("write") == 1:
            self.held_up.set()
            await self.may_go_on.wait()
        return await super().write(name, call)


# Failures of the producer.
SECRET = "postgres://ann:hunter2@10.0.0.7/prod"


@pytest.mark.parametrize("deltas", [[], ["Hel"]])
async def test_a_reader_learns_nothing_of_the_inside(
    stage: Stage, caplog: pytest.LogCaptureFixture, deltas: list[str]
) -> None:
    script = Script([*map(text, deltas), RuntimeError(SECRET)])
    submitted = await (await stage.engine(script)).submit(TURN, "Hi")
    body = b"".join([line async for line in submitted.lines()])
    assert b"hunter2" not in body
    events = await events_of(submitted)
    error = events[-2]["data"]
    assert error["code"] == "internal"
    assert error["ref"] in error["message"]
    assert error["ref"] in caplog.text
    assert SECRET in caplog.text
    assert events[-1]["data"]["message"] == error["message"]


async def test_a_product_may_show_the_message(stage: Stage) -> None:
    engine = await stage.engine(Script([RuntimeError("the cat is out")]), expose_errors=True)
    events = await events_of(await engine.submit(TURN, "Hi"))
    assert events[-2]["data"]["message"] == "the cat is out"


@pytest.mark.parametrize("retryable", [True, False])
async def test_a_provider_that_fails_says_so_without_details(stage: Stage, retryable: bool) -> None:
    error = BackendTransportError(SECRET, backend="b", status=500, retryable=retryable)
    events = await events_of(await (await stage.engine(Script([error]))).submit(TURN, "Hi"))
    told = events[-2]["data"]
    assert (told["code"], told["retryable"]) == ("transport", retryable)
    assert "hunter2" not in told["message"]
    assert told["message"].startswith("The model")


@pytest.mark.parametrize(
    "broken",
    [
        [7],
        [Frame(0, 0, "completed", {})],
        [text("a"), data("d", {1})],
        [tool_call("c", "n", "x" * FRAME_BYTES_MAX)],
    ],
)
async def test_what_a_producer_may_not_yield_fails_the_turn(stage: Stage, broken: Any) -> None:
    async def produce(_turn: Turn) -> AsyncIterator[Any]:
        for item in broken:
            yield item

    reader = await finish(await stage.engine(produce))
    assert reader.kinds[-1] == FAILED
    assert (await stage.run()).state == "failed"


async def test_a_producer_that_is_none_fails_the_turn(stage: Stage) -> None:
    reader = await finish(await stage.engine(lambda _turn: None))
    assert reader.kinds[-1] == FAILED


async def test_a_producer_that_cancels_itself_fails_the_turn(stage: Stage) -> None:
    async def produce(_turn: Turn) -> AsyncIterator[Any]:
        yield text("a")
        raise asyncio.CancelledError

    assert (await finish(await stage.engine(produce))).kinds[-1] == FAILED


async def test_a_turn_that_grows_too_large_fails_and_keeps_what_fits(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.durable.journal.TURN_LOG_BYTES_MAX", 10_000)

    async def produce(_turn: Turn) -> AsyncIterator[Any]:
        while True:
            yield text("x" * 1_000)

    reader = await finish(await stage.engine(produce))
    assert errors_in(reader) == ["value_too_large"]
    assert 9_000 <= len(reader.text) <= 11_000


async def test_the_first_words_of_a_producer_that_never_waits_are_read_before_its_last(
    stage: Stage,
) -> None:
    said = 0

    async def produce(_turn: Turn) -> AsyncIterator[Any]:
        nonlocal said
        while said < 20_000:
            said += 1
            yield text("word ")

    submitted = await (await stage.engine(produce)).submit(TURN, "Hi")
    heard = [said async for line in submitted.lines() if b"word" in line]
    assert heard[0] <= 4 * FAIR_ITEMS
    assert heard[-1] == 20_000


async def test_a_producer_that_never_waits_is_not_silent_while_the_store_is(
    stage: Stage,
) -> None:
    async def produce(_turn: Turn) -> AsyncIterator[Any]:
        for _ in range(2 * FAIR_ITEMS):
            yield text("word ")

    process = HeldUp()
    store = crashing(await stage.open(), process)
    engine = await stage.engine(produce, store=store, idle_timeout_ms=50)
    submitted = await engine.submit(TURN, "Hi")
    await within(process.held_up.wait())
    await asyncio.sleep(0.15)
    process.may_go_on.set()
    events = await within(events_of(submitted))
    assert events[-1]["type"] == COMPLETED


# Producers in other shapes.


async def streamed(*deltas: str) -> AsyncIterator[Frame]:
    for delta in deltas:
        yield text(delta)


async def test_a_producer_may_be_a_coroutine_function_or_have_a_stream(stage: Stage) -> None:
    class Producer:
        def __init__(self) -> None:
            self.stream = streamed("streamed")

        def final_text(self) -> str:
            return "said at last"

    async def produce(_turn: Turn) -> Any:
        return Producer()

    reader = await finish(await stage.engine(produce))
    assert reader.text == "streamed"
    assert (await stage.answer())["finalText"] == "said at last"


@pytest.mark.parametrize(("own", "final"), [(None, "ab"), ("", "ab"), ("c", "c")])
async def test_an_empty_final_text_of_its_own_leaves_the_streamed_one(
    stage: Stage, own: str | None, final: str
) -> None:
    class Producer:
        def __init__(self) -> None:
            self.stream = streamed("a", "b")

        async def final_text(self) -> str | None:
            return own

    await finish(await stage.engine(lambda _turn: Producer()))
    assert (await stage.answer())["finalText"] == final


async def test_a_final_text_that_is_none_fails_the_turn(stage: Stage) -> None:
    class Producer:
        def __init__(self) -> None:
            self.stream = streamed("a")

        def final_text(self) -> Any:
            return {"text": "a"}

    assert (await finish(await stage.engine(lambda _turn: Producer()))).kinds[-1] == FAILED


# Silence.


async def test_a_model_that_goes_silent_is_given_up(stage: Stage) -> None:
    script = Script([text("Hel"), asyncio.Event()])
    reader = await finish(await stage.engine(script, idle_timeout_ms=50))
    assert (reader.text, errors_in(reader)) == ("Hel", ["idle_timeout"])
    assert script.closed == 1
    error = next(event for event in reader.events if event["type"] == "error")
    assert error["data"]["retryable"] is True


async def test_a_model_that_goes_on_is_not_given_up(stage: Stage) -> None:
    async def produce(_turn: Turn) -> AsyncIterator[Any]:
        for _ in range(30):
            await asyncio.sleep(0.03)
            yield text("x")

    reader = await finish(await stage.engine(produce, idle_timeout_ms=600))
    assert reader.kinds[-1] == COMPLETED


async def test_a_tool_may_take_longer_than_a_model(stage: Stage) -> None:
    async def produce(turn: Turn) -> AsyncIterator[Any]:
        await turn.step("slow", lambda: asyncio.sleep(0.9), kind="tool")
        yield text("x")

    reader = await finish(await stage.engine(produce, idle_timeout_ms=400))
    assert reader.kinds[-1] == COMPLETED


async def test_a_model_in_a_step_may_not(stage: Stage) -> None:
    async def produce(turn: Turn) -> AsyncIterator[Any]:
        await turn.step("ask", lambda: asyncio.sleep(60), kind="llm")
        yield text("x")

    reader = await finish(await stage.engine(produce, idle_timeout_ms=100))
    assert errors_in(reader) == ["idle_timeout"]


# Producers that do not want to end.


class Stubborn:
    """A producer that swallows its cancellation, and then does what it likes."""

    def __init__(self, afterwards: str) -> None:
        self.afterwards = afterwards
        self.is_free = asyncio.Event()

    async def __call__(self, turn: Turn) -> AsyncIterator[Any]:
        yield text("Hel")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if self.afterwards == "raises":
                raise RuntimeError("cancelled? me?") from None
        if self.afterwards == "hangs":
            await self.is_free.wait()
        if self.afterwards == "steps":
            await turn.step("late", lambda: "late")
        if self.afterwards == "goes on":
            while True:
                yield text("lo")


@pytest.mark.parametrize("afterwards", ["returns", "raises", "goes on", "hangs", "steps"])
@pytest.mark.parametrize("ending", ["stop", "drain", "idle"])
async def test_a_turn_ends_whatever_its_producer_makes_of_that(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, afterwards: str, ending: str
) -> None:
    monkeypatch.setattr(driving, "GRACE_MS", 50)
    stubborn = Stubborn(afterwards)
    limit_ms = 50 if ending == "idle" else 60_000
    engine = await stage.engine(stubborn, idle_timeout_ms=limit_ms)
    submitted = await engine.submit(TURN, "Hi")
    await until(stage.frames)
    if ending == "stop":
        assert (await within(engine.stop(TURN))).state == "stopped"
        assert (await stage.answer())["finalText"] == "Hel"
    elif ending == "drain":
        await within(engine.aclose(drain_ms=0))
        run = await stage.run()
        assert (run.state, run.lease_holder_id) == ("running", None)
    else:
        events = await events_of(submitted)
        assert events[-2]["data"]["code"] == "idle_timeout"
    stubborn.is_free.set()
    assert [frame.data.get("delta") for frame in await stage.frames()][:2] in (
        ["Hel"],
        ["Hel", None],
    )


async def test_a_stop_before_the_producer_begins_never_asks_it(stage: Stage) -> None:
    script = Script()
    engine = await stage.engine(script)
    submitted = await engine.submit(TURN, "Hi")
    run = await within(engine.stop(TURN))
    assert run.state in ("stopped", "completed")
    if run.state == "stopped" and not script.calls:
        assert kinds_of(await events_of(submitted))[-1] == STOPPED
