"""run_turn: what its hooks hear of a refusal, and what becomes of its turn when somebody closes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest

from perdure.core.records import RunRecord
from perdure.store.protocol import RunStore
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.hooks import ChatTurnHooks
from perdure.turn.reference import TurnBody, durable_chat_turn_engine
from tests.durable.doors import Doors
from tests.turn.stage import TURN, Event, Stage, kinds_of, until, within

REFUSED = ["session.run.started", "error", "session.run.failed"]
DELTA = {"type": "message.part.updated", "data": {"delta": "word"}}


class Hooks(ChatTurnHooks):
    """Hooks that remember what they were told; the producer says a word, and waits to go on."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.flushes = 0
        self.persisted: list[str] = []
        self.calls = 0
        self.said = asyncio.Event()
        self.go_on = asyncio.Event()

    def produce(self) -> AsyncIterator[Any]:
        self.calls += 1
        return self._answer()

    async def _answer(self) -> AsyncIterator[Any]:
        yield DELTA
        self.said.set()
        await self.go_on.wait()

    async def on_event(self, event: Any) -> None:
        await asyncio.sleep(0)
        self.events.append(event)

    async def trace_flush(self) -> None:
        self.flushes += 1

    async def persist_assistant_message(self, turn: Any) -> None:
        self.persisted.append(turn.final_text)


def call(store: RunStore, hooks: Hooks, **more: Any) -> TurnBody:
    options: dict[str, Any] = {"identity": TURN, "user_message": "Hi", "project_id": "p", **more}
    return durable_chat_turn_engine.run_turn(store=store, hooks=hooks, **options)


async def read(body: TurnBody) -> list[Event]:
    lines = b"".join([chunk async for chunk in body.body])
    return [json.loads(line) for line in lines.splitlines()]


async def free(stage: Stage) -> RunRecord:
    """Return the turn, which somebody else may claim at once and without a strike."""
    run = await stage.run()
    assert (run.state, run.lease_holder_id, run.strikes) == ("running", None, 0)
    return run


# Refusals.


@pytest.mark.parametrize("wrong", [{"lease_ms": 0}, {"lease_ms": "long"}, {"user_message": 1}])
async def test_a_bad_argument_is_a_refusal_of_which_the_hooks_hear(
    stage: Stage, wrong: dict[str, Any]
) -> None:
    hooks = Hooks()
    handed: list[Any] = []
    logged: list[Any] = []
    body = call(
        await stage.open(),
        hooks,
        wait_until=handed.append,
        log=lambda message, meta: logged.append(message),
        **wrong,
    )
    events = await within(read(body))
    assert kinds_of(events) == REFUSED
    await within(asyncio.gather(*handed))
    assert hooks.events == events
    assert (hooks.flushes, hooks.calls) == (1, 0)
    assert logged == ["turn failed"]


async def test_hooks_hear_of_a_refusal_that_nobody_reads(stage: Stage) -> None:
    hooks = Hooks()
    call(await stage.open(), hooks, lease_ms=0)
    await until(lambda: hooks.flushes)
    assert kinds_of(hooks.events) == REFUSED


async def test_a_turn_in_flight_elsewhere_is_refused_with_its_code(stage: Stage) -> None:
    first, second = Hooks(), Hooks()
    running = call(await stage.open(), first)
    await within(first.said.wait())
    events = await within(read(call(await stage.open(), second)))
    assert kinds_of(events) == REFUSED
    assert events[1]["data"]["code"] == "lease_held"
    await until(lambda: second.flushes)
    assert second.events == events
    first.go_on.set()
    assert kinds_of(await within(read(running)))[-1] == "session.run.completed"


async def test_hooks_hear_of_a_replay_before_what_was_handed_over_is_done(stage: Stage) -> None:
    store, hooks = await stage.open(), Hooks()
    hooks.go_on.set()
    handed: list[Awaitable[None]] = []
    await within(read(call(store, hooks, wait_until=handed.append)))
    await within(asyncio.gather(*handed))
    again = Hooks()
    handed.clear()
    events = await within(read(call(store, again, wait_until=handed.append)))
    await within(asyncio.gather(*handed))
    assert kinds_of(events) == ["session.run.started", "result", "session.run.completed"]
    assert (again.events, again.flushes, again.calls) == (events, 1, 0)


# Several calls for one turn.


async def test_a_failed_turn_is_run_again_while_the_trace_of_the_failure_is_flushed(
    stage: Stage,
) -> None:
    store, flushed = await stage.open(), asyncio.Event()

    async def fail() -> AsyncIterator[Any]:
        yield DELTA
        raise ValueError("the model is gone")

    failing: Any = ChatTurnHooks(produce=fail, trace_flush=flushed.wait)
    assert kinds_of(await within(read(call(store, failing))))[-1] == "session.run.failed"
    hooks = Hooks()
    hooks.go_on.set()
    events = await within(read(call(store, hooks)))
    flushed.set()
    assert (kinds_of(events)[-1], hooks.calls) == ("session.run.completed", 1)


async def test_each_of_the_calls_at_once_hears_that_a_turn_is_in_flight_elsewhere(
    stage: Stage,
) -> None:
    first = Hooks()
    running = call(await stage.open(), first)
    await within(first.said.wait())
    store = await stage.open()
    bodies = [read(call(store, Hooks())) for _ in range(3)]
    for events in await within(asyncio.gather(*bodies)):
        assert kinds_of(events) == REFUSED
        assert events[1]["data"]["code"] == "lease_held"
    first.go_on.set()
    await within(read(running))


async def test_the_hooks_of_each_of_the_replays_at_once_hear_of_it(stage: Stage) -> None:
    store, hooks = await stage.open(), Hooks()
    hooks.go_on.set()
    await within(read(call(store, hooks)))
    several = [Hooks() for _ in range(3)]
    bodies = [call(store, again) for again in several]
    replays = await within(asyncio.gather(*map(read, bodies)))
    await until(lambda: all(again.flushes for again in several))
    assert [again.events for again in several] == replays
    assert [(again.calls, again.flushes) for again in several] == [(0, 1)] * 3


async def test_whoever_joins_a_turn_flushes_his_own_trace_and_follows_no_events(
    stage: Stage,
) -> None:
    store, first, second = await stage.open(), Hooks(), Hooks()
    handed: list[Awaitable[None]] = []
    running = call(store, first)
    await within(first.said.wait())
    joined, seen = call(store, second, wait_until=handed.append), b""
    async for chunk in joined.body:
        seen += chunk
        if b"word" in chunk:
            first.go_on.set()
    assert b"session.run.completed" in seen
    await within(read(running))
    await within(asyncio.gather(*handed))
    assert (second.calls, second.events, second.flushes) == (0, [], 1)


# Closing.


async def test_closing_the_store_gives_a_turn_back_and_ends_its_body(stage: Stage) -> None:
    store, hooks = await stage.open(), Hooks()
    reading = asyncio.create_task(read(call(store, hooks)))
    await within(hooks.said.wait())
    await within(store.close())
    events = await within(reading)
    assert kinds_of(events)[-2:] == REFUSED[-2:]
    await free(stage)
    again = Hooks()
    again.go_on.set()
    events = await within(read(call(await stage.open(), again)))
    assert kinds_of(events)[-1] == "session.run.completed"
    assert again.persisted == ["word"]


async def test_closing_the_store_waits_for_a_claim_that_is_under_way(stage: Stage) -> None:
    store, doors = await stage.open(), Doors()
    reading = asyncio.create_task(read(call(doors.before(store), Hooks())))
    await within(doors.granted.wait())
    close = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    doors.answer.set()
    await within(close)
    assert kinds_of(await within(reading))[-2:] == REFUSED[-2:]
    await free(stage)


async def test_a_claim_that_was_answered_after_its_lease_is_not_worked_on(stage: Stage) -> None:
    hooks = Hooks()
    call(Doors(late_ms=120).before(await stage.open()), hooks, lease_ms=100)
    await until(lambda: hooks.flushes)
    assert hooks.calls == 0


# The engine's own calls.


async def begun(engine: ChatTurnEngine, hooks: Hooks) -> asyncio.Task[list[Event]]:
    reading = asyncio.create_task(
        read(engine.run_turn(identity=TURN, user_message="Hi", hooks=hooks))
    )
    await within(hooks.said.wait())
    return reading


async def test_an_engine_that_closes_gives_back_what_its_run_turn_began(stage: Stage) -> None:
    engine, hooks = await stage.engine(), Hooks()
    reading = await begun(engine, hooks)
    await within(engine.aclose(drain_ms=0))
    events = await within(reading)
    assert events[-2]["data"]["code"] == "store_unavailable"
    await free(stage)


async def test_an_engine_that_closes_lets_such_a_turn_finish_for_a_while(stage: Stage) -> None:
    engine, hooks = await stage.engine(), Hooks()
    reading = await begun(engine, hooks)
    closing = asyncio.create_task(engine.aclose())
    await asyncio.sleep(0)
    assert not closing.done()
    hooks.go_on.set()
    await within(closing)
    assert kinds_of(await within(reading))[-1] == "session.run.completed"
    assert hooks.persisted == ["word"]


async def test_whoever_joined_a_turn_that_is_given_back_is_cut_off_too(stage: Stage) -> None:
    store = await stage.open()
    engine, hooks = await stage.engine(store=store), Hooks()
    reading = await begun(engine, hooks)
    joined = asyncio.create_task(read(call(store, Hooks(), project_id="perdure")))
    await asyncio.sleep(0)
    await within(engine.aclose(drain_ms=0))
    for body in (reading, joined):
        assert kinds_of(await within(body))[-2:] == REFUSED[-2:]


async def test_a_close_that_is_cancelled_gives_back_all_the_same(stage: Stage) -> None:
    engine, hooks = await stage.engine(), Hooks()
    reading = await begun(engine, hooks)
    closing = asyncio.create_task(engine.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await within(asyncio.wait((closing,)))
    await within(reading)
    await free(stage)


async def test_a_closed_engine_refuses_a_further_call(stage: Stage) -> None:
    engine = await stage.engine()
    await engine.aclose()
    body = engine.run_turn(identity=TURN, user_message="Hi", hooks=Hooks())
    assert kinds_of(await within(read(body))) == REFUSED


async def test_closing_the_store_gives_back_what_an_idle_engine_was_handed(stage: Stage) -> None:
    """A worker may have an engine whose own methods nobody ever called."""
    from perdure.core.frames import text
    from perdure.durable.worker import Worker
    from tests.turn.stage import Script

    first = await stage.worker(Script([text("a"), asyncio.Event()]))
    await first.engine.submit(TURN, "Hi")
    await until(stage.frames)
    await first.kill()
    stage.lapse()
    store, script = await stage.open(), Script([text("b"), asyncio.Event()])
    engine = await stage.engine(script, store=store)
    working = asyncio.create_task(Worker(store, engines=(engine,)).run())
    await until(lambda: script.calls)
    await within(store.close())
    await within(working)
    run = await stage.run()
    assert (run.state, run.lease_holder_id) == ("running", None)


# The log.


def boom(*_: object) -> None:
    raise ValueError("the inside")


async def fails() -> AsyncIterator[Any]:
    yield DELTA
    raise ValueError("the inside")


@pytest.mark.parametrize(
    ("hook", "told"),
    [
        ("produce", "turn failed"),
        ("transform_final_text", "turn failed"),
        ("persist_assistant_message", "persist_assistant_message failed"),
        ("on_turn_complete", "on_turn_complete failed"),
        ("on_event", "on_event failed"),
        ("trace_flush", "trace_flush failed"),
    ],
)
async def test_the_log_hears_of_each_hook_that_fails_and_of_a_failed_turn(
    stage: Stage, hook: str, told: str
) -> None:
    hooks = Hooks()
    hooks.go_on.set()
    setattr(hooks, hook, fails if hook == "produce" else boom)
    logged: list[Any] = []
    body = call(
        await stage.open(),
        hooks,
        log=lambda message, meta: logged.append((message, dict(meta))),
    )
    await within(read(body))
    await until(lambda: logged)
    assert {message for message, _ in logged} == {told}
    assert logged[0][1] == {"error": "the inside"}


async def test_the_log_hears_of_a_final_text_that_fails_for_a_stopped_turn(stage: Stage) -> None:
    hooks, store = Hooks(), await stage.open()
    setattr(hooks, "transform_final_text", boom)  # noqa: B010 a method is replaced
    logged: list[Any] = []
    body = call(store, hooks, log=lambda message, meta: logged.append((message, dict(meta))))
    reading = asyncio.create_task(read(body))
    await within(hooks.said.wait())
    await store.request_stop("chat:s:0")
    events = await within(reading)
    assert kinds_of(events)[-1] == "session.run.stopped"
    assert logged == [("transform_final_text failed", {"error": "the inside"})]
    await until(lambda: hooks.persisted)
    assert hooks.persisted == ["word"], "a stop keeps what there is"


async def test_a_log_that_fails_hurts_no_turn(stage: Stage) -> None:
    hooks = Hooks()
    hooks.go_on.set()
    setattr(hooks, "on_event", boom)  # noqa: B010 a method is replaced, which a checker forbids
    events = await within(read(call(await stage.open(), hooks, log=boom)))
    assert kinds_of(events)[-1] == "session.run.completed"
    await until(lambda: hooks.persisted)
