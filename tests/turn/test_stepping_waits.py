"""A turn that waits for an event is held by nobody, and goes on where it is or elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from perdure.core.effects import monotonic_ms
from perdure.core.frames import Frame, text
from perdure.core.records import JsonValue
from perdure.durable.execution import live_runs
from perdure.durable.runner import emit_event
from perdure.errors import AwaitEventTimeoutError, SessionBusyError
from perdure.turn.handout import Turn
from perdure.turn.identity import run_id_of
from tests.turn.stage import (
    COMPLETED,
    NEXT,
    RESTARTED,
    STOPPED,
    TURN,
    Reader,
    Stage,
    finish,
    has_frames,
    is_in,
    until,
)

RUN = run_id_of(TURN)


async def asking(turn: Turn) -> AsyncIterator[Frame]:
    yield text("May I? ")
    answer: JsonValue = await turn.await_event("answer", timeout_ms=None)
    yield text(f"You said {answer}.")


async def test_a_turn_waits_for_an_event_without_its_idle_timeout(stage: Stage) -> None:
    engine = await stage.engine(asking, idle_timeout_ms=50)
    await engine.submit(TURN, "Hi")
    await until(lambda: has_frames(stage, 1))
    store = await stage.store()
    await until(lambda: _has_begun(stage))
    await asyncio.sleep(0.2)
    await emit_event(store, RUN, "answer", "yes")
    reader = await Reader().read(engine)
    assert reader.text == "May I? You said yes."
    step = (await store.read_steps(RUN))[1]
    assert (step.intent, step.kind, step.result) == ("event:answer", "event", "yes")


async def test_an_event_that_came_before_is_there_at_once(stage: Stage) -> None:
    async def late(turn: Turn) -> AsyncIterator[Frame]:
        await emit_event(await stage.store(), RUN, "answer", "no")
        async for frame in asking(turn):
            yield frame

    assert (await finish(await stage.engine(late))).text == "May I? You said no."


async def test_a_time_out_is_final(stage: Stage) -> None:
    told: list[str] = []

    async def impatient(turn: Turn) -> AsyncIterator[Frame]:
        try:
            await turn.await_event("answer", timeout_ms=5)
        except AwaitEventTimeoutError as error:
            told.append(str(error))
        yield text("Nobody answers.")

    assert (await finish(await stage.engine(impatient))).text == "Nobody answers."
    assert told == ["no event 'answer' arrived within 5 ms"]


async def test_an_attempt_after_a_crash_waits_on(stage: Stage) -> None:
    worker = await stage.worker(asking)
    await worker.engine.submit(TURN, "Hi")
    await until(lambda: has_frames(stage, 1))
    await until(lambda: _has_begun(stage))
    await worker.kill()
    stage.lapse()
    engine = await stage.engine(asking)
    await engine.submit(TURN, "Hi")
    await emit_event(await stage.store(), RUN, "answer", "yes")
    reader = await Reader().read(engine)
    assert reader.text == "May I? You said yes."


async def test_a_turn_that_waits_can_be_stopped(stage: Stage) -> None:
    engine = await stage.engine(asking)
    await engine.submit(TURN, "Hi")
    await until(lambda: has_frames(stage, 1))
    await engine.stop(TURN)
    assert (await Reader().read(engine)).kinds[-1] == STOPPED


async def test_a_turn_that_waits_is_held_by_nobody_and_goes_on_in_place(stage: Stage) -> None:
    asked: list[Turn] = []

    def produce(turn: Turn) -> AsyncIterator[Frame]:
        asked.append(turn)
        return asking(turn)

    engine = await stage.engine(produce)
    await engine.submit(TURN, "Hi")
    await until(lambda: is_in(stage, "waiting"))
    run = await stage.run()
    assert (run.epoch, run.lease_holder_id, run.wake_key) == (1, None, "answer")
    reader = await Reader().read(engine, lines_max=2)
    assert reader.text == "May I? "
    with pytest.raises(SessionBusyError):
        await engine.submit(NEXT, "And now?")
    # Many leases later it is still whoever woke up first.
    stage.lapse()
    await emit_event(await stage.store(), RUN, "answer", "yes")
    await reader.read(engine)
    assert (reader.text, reader.kinds[-1]) == ("May I? You said yes.", COMPLETED)
    assert RESTARTED not in reader.kinds
    assert (await Reader().read(engine)).text == reader.text
    run, usage = await stage.run(), (await stage.details()).usage
    assert (run.epoch, run.strikes, len(asked)) == (2, 0, 1)
    assert [(one.epoch, one.call, one.state) for one in usage] == [(1, 0, "unknown")]


async def test_a_turn_goes_on_in_place_with_what_a_worker_here_claims_of_it(stage: Stage) -> None:
    asked: list[Turn] = []

    def produce(turn: Turn) -> AsyncIterator[Frame]:
        asked.append(turn)
        return asking(turn)

    store = await stage.open()
    engine = await stage.engine(produce, store=store)
    await engine.submit(TURN, "Hi")
    await until(lambda: is_in(stage, "waiting"))
    # The turn itself looks at once as well: whoever is first, it goes on in place.
    await emit_event(store, RUN, "answer", "yes")
    asked_ms = monotonic_ms()
    with live_runs.sweeping(store.handle):
        claims = await store.claim_due(["chat"], worker_id="w", lease_ms=60_000, limit=9)
        works = [engine.work(claim, asked_ms=asked_ms) for claim in claims]
    for work in works:
        await work
    reader = await Reader().read(engine)
    assert reader.text == "May I? You said yes."
    assert (len(asked), RESTARTED in reader.kinds, (await stage.run()).epoch) == (1, False, 2)


async def test_deaths_while_it_waits_are_no_strikes(stage: Stage) -> None:
    for _ in range(4):
        worker = await stage.worker(asking)
        await worker.engine.submit(TURN, "Hi")
        await until(lambda: is_in(stage, "waiting"))
        assert (await stage.run()).strikes == 0
        await worker.kill()
    await emit_event(await stage.store(), RUN, "answer", "yes")
    reader = await finish(await stage.engine(asking))
    assert (reader.text, reader.kinds[-1]) == ("May I? You said yes.", COMPLETED)


async def test_a_deploy_leaves_what_waits_to_the_next_engine(stage: Stage) -> None:
    first = await stage.engine(asking)
    await first.submit(TURN, "Hi")
    await until(lambda: is_in(stage, "waiting"))
    async with asyncio.timeout(20):
        await first.aclose(drain_ms=600_000)
    run = await stage.run()
    assert (run.state, run.epoch, run.strikes) == ("waiting", 1, 0)
    second = await stage.engine(asking, recover=True)
    second.start()
    await emit_event(await stage.store(), RUN, "answer", "yes")
    assert (await Reader().read(second)).text == "May I? You said yes."
    assert (await stage.run()).strikes == 0


async def test_readers_follow_a_turn_that_others_took_over_while_it_slept(stage: Stage) -> None:
    first, second = await stage.engine(asking), await stage.engine(asking)
    await first.submit(TURN, "Hi")
    await until(lambda: is_in(stage, "waiting"))
    reading = asyncio.ensure_future(Reader().read(first))
    await second.submit(TURN, "Hi")
    await until(lambda: _waits_in(stage, 2))
    await emit_event(await stage.store(), RUN, "answer", "yes")
    assert (await reading).text == "May I? You said yes."
    assert (await stage.run()).epoch == 3


async def test_a_time_out_counts_from_the_first_attempt(stage: Stage) -> None:
    async def impatient(turn: Turn) -> AsyncIterator[Frame]:
        try:
            await turn.await_event("answer", timeout_ms=60_000)
        except AwaitEventTimeoutError:
            yield text("Nobody answers.")

    worker = await stage.worker(impatient)
    await worker.engine.submit(TURN, "Hi")
    await until(lambda: is_in(stage, "waiting"))
    wake_at = (await stage.run()).wake_at
    await worker.kill()
    stage.clock.advance(40_000)
    engine = await stage.engine(impatient)
    await engine.submit(TURN, "Hi")
    await until(lambda: _waits_in(stage, 2))
    assert (await stage.run()).wake_at == wake_at
    await engine.aclose(drain_ms=0)
    stage.clock.advance(20_000)
    assert (await finish(await stage.engine(impatient))).text == "Nobody answers."


async def test_what_is_yielded_while_a_turn_waits_is_shown(stage: Stage) -> None:
    async def busy(turn: Turn) -> AsyncIterator[Frame]:
        waiting = asyncio.ensure_future(turn.await_event("answer", timeout_ms=None))
        await until(lambda: is_in(stage, "waiting"))
        yield text("Still here. ")
        await until(lambda: has_frames(stage, 1))
        yield text(f"You said {await waiting}.")

    engine = await stage.engine(busy)
    await engine.submit(TURN, "Hi")
    reader = await Reader().read(engine, lines_max=2)
    assert reader.text == "Still here. "
    await emit_event(await stage.store(), RUN, "answer", "yes")
    assert (await reader.read(engine)).text == "Still here. You said yes."
    assert RESTARTED not in reader.kinds


async def test_it_is_held_while_another_step_of_it_runs_and_sleeps_once_that_ends(
    stage: Stage,
) -> None:
    may_end, asked = asyncio.Event(), list[Turn]()

    async def search() -> str:
        await may_end.wait()
        return "found"

    async def both(turn: Turn) -> AsyncIterator[Frame]:
        asked.append(turn)
        answer, result = await asyncio.gather(
            turn.await_event("answer", timeout_ms=None), turn.step("search", search)
        )
        yield text(f"{result}, you said {answer}.")

    engine = await stage.engine(both)
    await engine.submit(TURN, "Hi")
    await until(lambda: _has_begun(stage, 3))
    run = await stage.run()
    # Whoever took it over now would make the step a second time.
    assert (run.state, run.lease_holder_id is None) == ("running", False)
    may_end.set()
    await until(lambda: is_in(stage, "waiting"))
    run = await stage.run()
    assert (run.epoch, run.lease_holder_id, run.wake_key) == (1, None, "answer")
    await emit_event(await stage.store(), RUN, "answer", "yes")
    assert (await Reader().read(engine)).text == "found, you said yes."
    assert ((await stage.run()).epoch, len(asked)) == (2, 1)


async def test_an_answer_that_comes_while_another_step_runs_is_taken_at_once(stage: Stage) -> None:
    may_end = asyncio.Event()

    async def both(turn: Turn) -> AsyncIterator[Frame]:
        searching = asyncio.ensure_future(turn.step("search", may_end.wait))
        yield text(f"You said {await turn.await_event('answer', timeout_ms=None)}. ")
        yield text(f"Found: {await searching}.")

    engine = await stage.engine(both)
    await engine.submit(TURN, "Hi")
    await until(lambda: _has_begun(stage, 3))
    await emit_event(await stage.store(), RUN, "answer", "yes")
    reader = await Reader().read(engine, lines_max=2)
    assert (reader.text, (await stage.run()).epoch) == ("You said yes. ", 1)
    may_end.set()
    assert (await reader.read(engine)).text == "You said yes. Found: True."


async def test_of_two_waits_at_once_the_last_one_sleeps(stage: Stage) -> None:
    async def two(turn: Turn) -> AsyncIterator[Frame]:
        answers = await asyncio.gather(
            turn.await_event("one", timeout_ms=None), turn.await_event("two", timeout_ms=None)
        )
        yield text(f"You said {answers}.")

    engine = await stage.engine(two)
    await engine.submit(TURN, "Hi")
    await until(lambda: _has_begun(stage, 3))
    store = await stage.store()
    # One key wakes a run: while two are waited for, its process holds it.
    assert (await stage.run()).state == "running"
    await emit_event(store, RUN, "two", 2)
    await until(lambda: is_in(stage, "waiting"))
    await emit_event(store, RUN, "one", 1)
    assert (await Reader().read(engine)).text == "You said [1, 2]."


async def _has_begun(stage: Stage, steps: int = 2) -> bool:
    return len(await (await stage.store()).read_steps(RUN)) == steps


async def _waits_in(stage: Stage, epoch: int) -> bool:
    run = await stage.run()
    return (run.state, run.epoch) == ("waiting", epoch)
