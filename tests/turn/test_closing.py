"""What follows a turn: its hooks, at least once and in order, whatever they do."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from perdure.core import limits
from perdure.core.frames import data, text, upstream_end, usage
from perdure.core.identity import idempotency_key
from perdure.core.records import DeliveryRecord
from perdure.turn import engine as engine_module
from perdure.turn.hooks import ChatTurnHooks, FinishedTurn
from tests.turn.stage import (
    COMPLETED,
    FAILED,
    TURN,
    Reader,
    Script,
    Stage,
    finish,
    until,
    within,
    words,
)


class Product(ChatTurnHooks):
    """Hooks that take notes; `persist` fails as often as it is told, or waits."""

    def __init__(self, *, fails: int = 0, gate: asyncio.Event | None = None) -> None:
        super().__init__()
        self.fails = fails
        self.gate = gate
        self.called: list[str] = []
        self.persisted: list[FinishedTurn] = []
        self.completed: list[FinishedTurn] = []
        self.events: list[str] = []
        self.flushes = 0

    async def persist_assistant_message(self, turn: FinishedTurn) -> None:
        self.called.append("persist")
        if self.gate is not None:
            await self.gate.wait()
        if self.fails > 0:
            self.fails -= 1
            raise RuntimeError("the product's database is away")
        self.persisted.append(turn)

    def on_turn_complete(self, turn: FinishedTurn) -> None:
        self.called.append("complete")
        self.completed.append(turn)

    def on_event(self, event: Any) -> None:
        self.events.append(event["type"])

    def transform_final_text(self, final: str) -> str:
        return final.upper()

    def trace_flush(self) -> None:
        self.flushes += 1


async def deliveries(stage: Stage) -> list[DeliveryRecord]:
    return list((await stage.details()).deliveries)


async def delivered(stage: Stage) -> bool:
    return [one.state for one in await deliveries(stage)] == ["delivered"] * 2


# Hooks.


async def test_hooks_are_called_in_order_with_the_transformed_text(stage: Stage) -> None:
    product = Product()
    reader = await finish(await stage.engine(Script(words("Hel", "lo")), hooks=product))
    await until(lambda: delivered(stage))
    assert reader.text == "Hello", "the stream stays as it was"
    assert (await stage.answer())["finalText"] == "Hello"
    assert product.called == ["persist", "complete"]
    (turn,) = product.persisted
    assert (turn.identity, turn.status, turn.final_text) == (TURN, "completed", "HELLO")
    assert turn.parts == [{"k": "text", "part": "p1", "d": "Hello"}]
    assert turn.record.state == "completed"
    assert turn.idempotency_key == idempotency_key("chat:s:0", "persist_assistant_message")
    assert product.completed[0].idempotency_key != turn.idempotency_key


async def test_the_end_is_shown_after_the_first_try_of_persist(stage: Stage) -> None:
    product = Product(gate=asyncio.Event())
    engine = await stage.engine(hooks=product)
    reader = Reader()
    submitted = await engine.submit(TURN, "Hi")
    reading = asyncio.ensure_future(reader.follow(submitted.lines(wire="envelope")))
    await until(lambda: product.called)
    assert reader.text == "Hello there", "what is not the end does not wait for it"
    assert not reader.is_done
    assert product.gate is not None
    product.gate.set()
    await within(reading)
    assert reader.kinds[-1] == COMPLETED


async def test_a_persist_that_takes_long_holds_the_end_only_for_a_while(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert limits.PERSIST_WAIT_MS == 2_000
    monkeypatch.setattr(engine_module, "PERSIST_WAIT_MS", 50)
    product = Product(gate=asyncio.Event())
    reader = await finish(await stage.engine(hooks=product))
    assert reader.kinds[-1] == COMPLETED
    assert product.gate is not None
    product.gate.set()
    await until(lambda: delivered(stage))


async def test_a_persist_that_fails_does_not_touch_the_turn_and_is_tried_again(
    stage: Stage,
) -> None:
    product = Product(fails=2)
    engine = await stage.engine(hooks=product, recover=True)
    reader = await finish(engine)
    assert reader.kinds[-1] == COMPLETED
    await until(lambda: _tried(stage, 1))
    first, second = await deliveries(stage)
    assert (first.state, second.state, second.tries) == ("waiting", "waiting", 0)
    assert "database is away" in (first.last_error or "")
    for tries, backoff_ms in ((2, 1_000), (3, 2_000)):
        stage.clock.advance(backoff_ms - 1)
        await _nudge(engine)
        assert (await deliveries(stage))[0].tries == tries - 1, "it waits for its time"
        stage.clock.advance(1)
        await _nudge(engine)
        await until(partial(_tried, stage, tries))
    await until(lambda: delivered(stage))
    assert product.called == ["persist", "persist", "persist", "complete"]


async def _tried(stage: Stage, tries: int) -> bool:
    first = (await deliveries(stage))[0]
    return first.tries >= tries and first.token is None


async def _nudge(engine: Any) -> None:
    """Let recovery look for due work now."""
    engine._worker.wake()
    for _ in range(10):
        await asyncio.sleep(0.002)


async def test_what_a_dead_process_left_undone_is_delivered_by_another(stage: Stage) -> None:
    never = Product(gate=asyncio.Event())
    worker = await stage.worker(hooks=never)
    await worker.engine.submit(TURN, "Hi")
    await until(lambda: never.called)
    await worker.kill()
    product = Product()
    engine = await stage.engine(hooks=product, recover=True)
    engine.start()
    stage.clock.advance(60_000)
    await _nudge(engine)
    await until(lambda: delivered(stage))
    assert product.persisted[0].idempotency_key == idempotency_key(
        "chat:s:0", "persist_assistant_message"
    )
    assert product.persisted[0].final_text == "HELLO THERE"


async def test_only_hooks_that_are_there_leave_deliveries(stage: Stage) -> None:
    done: list[Any] = []
    await finish(await stage.engine(hooks=ChatTurnHooks(on_turn_complete=done.append)))
    await until(lambda: done)
    assert [one.topic for one in await deliveries(stage)] == ["on_turn_complete"]
    await finish(await stage.engine(), TURN._replace(session_id="t"))
    assert not (await stage.details(TURN._replace(session_id="t"))).deliveries


async def test_a_failed_turn_calls_no_hooks_but_the_trace(stage: Stage) -> None:
    product = Product()
    engine = await stage.engine(Script([text("a"), RuntimeError("no")]), hooks=product)
    assert (await finish(engine)).kinds[-1] == FAILED
    await within(engine.aclose())
    assert product.called == []
    assert not await deliveries(stage)
    assert product.flushes == 1


async def test_a_stopped_turn_calls_its_hooks_with_that_status(stage: Stage) -> None:
    product = Product()
    engine = await stage.engine(Script([text("Hel"), asyncio.Event()]), hooks=product)
    await engine.submit(TURN, "Hi")
    await until(stage.frames)
    await within(engine.stop(TURN))
    await until(lambda: delivered(stage))
    (turn,) = product.persisted
    assert (turn.status, turn.final_text) == ("stopped", "HEL")
    assert product.completed[0].status == "stopped"


async def test_a_turn_that_is_given_back_flushes_its_trace_and_calls_nothing_else(
    stage: Stage,
) -> None:
    product = Product()
    engine = await stage.engine(Script([text("Hel"), asyncio.Event()]), hooks=product)
    await engine.submit(TURN, "Hi")
    await until(stage.frames)
    await within(engine.aclose(drain_ms=0))
    assert (product.called, product.flushes) == ([], 1)


async def test_a_turn_that_was_deleted_is_no_delivery_any_more(stage: Stage) -> None:
    product = Product(fails=1)
    engine = await stage.engine(hooks=product, recover=True)
    await finish(engine)
    await until(lambda: _tried(stage, 1))
    await (await stage.store()).delete("chat:s:0")
    stage.clock.advance(60_000)
    await _nudge(engine)
    assert product.called == ["persist"]


# transform_final_text.


class Clumsy(Product):
    def transform_final_text(self, final: str) -> str:
        raise ZeroDivisionError(final)


async def test_a_failing_transformation_fails_the_turn(stage: Stage) -> None:
    product = Clumsy()
    reader = await finish(await stage.engine(hooks=product))
    assert (reader.text, reader.kinds[-1]) == ("Hello there", FAILED)
    assert product.called == []
    assert (await stage.run()).state == "failed"


async def test_a_transformation_that_returns_no_text_fails_the_turn(stage: Stage) -> None:
    hooks = ChatTurnHooks(transform_final_text=lambda _text: None)
    assert (await finish(await stage.engine(hooks=hooks))).kinds[-1] == FAILED


async def test_a_failing_transformation_does_not_stop_a_stop(stage: Stage) -> None:
    product = Clumsy()
    engine = await stage.engine(Script([text("Hel"), asyncio.Event()]), hooks=product)
    await engine.submit(TURN, "Hi")
    await until(stage.frames)
    assert (await within(engine.stop(TURN))).state == "stopped"
    await until(lambda: delivered(stage))
    assert product.persisted[0].final_text == "Hel"


async def test_a_transformation_may_be_async_and_sees_the_final_text(stage: Stage) -> None:
    async def transform(final: str) -> str:
        await asyncio.sleep(0)
        return f"<{final}>"

    kept: list[FinishedTurn] = []
    hooks = ChatTurnHooks(transform_final_text=transform, persist_assistant_message=kept.append)
    await finish(await stage.engine(hooks=hooks))
    await until(lambda: kept)
    assert kept[0].final_text == "<Hello there>"


# on_event.


async def test_the_owner_of_a_turn_follows_its_events_in_order(stage: Stage) -> None:
    product = Product()
    engine = await stage.engine(
        Script([text("a"), data("note", 1), usage(tokens_in=1), upstream_end("stop")]),
        hooks=product,
    )
    reader = await finish(engine)
    expected = ["session.run.started", "message.part.updated", "note", COMPLETED]
    assert product.events == expected == reader.kinds
    await finish(engine)
    assert product.events == expected, "a replay is nobody's doing"


async def test_a_takeover_is_followed_from_its_own_start(stage: Stage) -> None:
    product = Product()
    engine = await stage.engine(Script([text("a"), RuntimeError("no")], words("b")), hooks=product)
    await finish(engine)
    product.events.clear()
    await finish(engine, retry=True)
    assert product.events == [
        "session.run.started",
        "session.run.restarted",
        "message.part.updated",
        COMPLETED,
    ]


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_on_event_that_raises_or_dawdles_changes_nothing(
    stage: Stage, is_async: bool
) -> None:
    told: list[str] = []

    def follow(event: Any) -> None:
        told.append(event["type"])
        raise RuntimeError("no")

    async def follow_later(event: Any) -> None:
        await asyncio.sleep(0.001)
        follow(event)

    hooks = ChatTurnHooks(on_event=follow_later if is_async else follow)
    engine = await stage.engine(hooks=hooks)
    reader = await finish(engine)
    assert reader.kinds[-1] == COMPLETED
    await within(engine.aclose())
    assert told == reader.kinds
