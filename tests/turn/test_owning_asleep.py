"""What is done to a turn while it waits: it is stopped, replaced, asked again, erased."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from perdure.core.frames import Frame, text
from perdure.core.records import JsonValue, RunRecord
from perdure.durable.erasing import erase_session, stop_for_good
from perdure.durable.runner import emit_event
from perdure.errors import (
    AwaitEventTimeoutError,
    RunNotFoundError,
    SessionBusyError,
    UsageError,
)
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.handout import Turn
from perdure.turn.identity import run_id_of
from perdure.turn.registry import live_turns
from tests.turn.stage import (
    COMPLETED,
    NEXT,
    RESTARTED,
    STOPPED,
    TURN,
    Reader,
    Stage,
    finish,
    is_in,
    until,
    within,
)

RUN = run_id_of(TURN)
ASKED, WHOLE = "May I? ", "May I? You said yes."


async def asking(turn: Turn) -> AsyncIterator[Frame]:
    """Ask in the first turn of a session, and answer the others at once."""
    if turn.identity.turn_index or turn.identity.revision:
        yield text("Never mind.")
        return
    yield text("May I? ")
    answer: JsonValue = await turn.await_event("answer", timeout_ms=None)
    yield text(f"You said {answer}.")


class Asleep:
    """A turn that waits in one engine, and a reader who stays with it."""

    def __init__(self, engine: ChatTurnEngine, stage: Stage) -> None:
        self.engine = engine
        self.stage = stage
        self.reader = Reader()
        self.reading = asyncio.ensure_future(self.reader.read(engine))

    async def is_over(self) -> None:
        """Return when nothing of the turn is left in its process."""
        handle = self.engine.store.handle
        await until(lambda: not live_turns.of(handle))

    async def answer(self) -> None:
        await emit_event(await self.stage.store(), RUN, "answer", "yes")


@pytest.fixture
async def asleep(stage: Stage) -> Asleep:
    engine = await stage.engine(asking)
    await engine.submit(TURN, "Hi")
    await until(lambda: is_in(stage, "waiting"))
    asleep = Asleep(engine, stage)
    await until(lambda: asleep.reader.text)
    return asleep


async def has_stopped(asleep: Asleep) -> None:
    await within(asleep.reading)
    assert (asleep.reader.text, asleep.reader.kinds[-1]) == (ASKED, STOPPED)
    assert RESTARTED not in asleep.reader.kinds
    run = await asleep.stage.run()
    assert (run.state, run.strikes, run.lease_holder_id) == ("stopped", 0, None)
    assert (await asleep.stage.answer())["finalText"] == ASKED
    await asleep.is_over()


# Stopped.


async def test_a_stop_where_it_waits_ends_it(asleep: Asleep) -> None:
    assert (await asleep.engine.stop(TURN)).state == "stopped"
    await has_stopped(asleep)


async def test_a_stop_by_another_engine_ends_it(stage: Stage, asleep: Asleep) -> None:
    other = await stage.engine(asking)
    # Either process may be the first to claim it.
    assert (await other.stop(TURN)).stop_requested_at is not None
    await has_stopped(asleep)


async def test_a_mark_by_whoever_has_no_engine_ends_it(stage: Stage, asleep: Asleep) -> None:
    await (await stage.store()).request_stop(RUN)
    await has_stopped(asleep)


async def test_an_answer_behind_a_stop_wakes_nothing(stage: Stage, asleep: Asleep) -> None:
    await asleep.engine.stop(TURN)
    await asleep.answer()
    other = await stage.engine(asking, recover=True)
    other.start()
    assert (await finish(other, NEXT, "And?")).text == "Never mind."
    await has_stopped(asleep)


async def test_a_mark_on_a_turn_whose_process_died_is_seen_by_the_next(stage: Stage) -> None:
    worker = await stage.worker(asking)
    await worker.engine.submit(TURN, "Hi")
    await until(lambda: is_in(stage, "waiting"))
    await worker.kill()
    await (await stage.store()).request_stop(RUN)
    engine = await stage.engine(asking, recover=True)
    engine.start()
    reader = await Reader().read(engine)
    assert (reader.text, reader.kinds[-1]) == (ASKED, STOPPED)


# Another turn of the session.


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_turn_that_replaces_it_goes_on(
    stage: Stage, asleep: Asleep, elsewhere: bool
) -> None:
    engine = await stage.engine(asking) if elsewhere else asleep.engine
    assert (await finish(engine, NEXT, "Forget it", busy="replace")).text == "Never mind."
    await has_stopped(asleep)


async def test_a_turn_in_line_behind_it_begins_once_it_is_answered(
    stage: Stage, asleep: Asleep
) -> None:
    engine = await stage.engine(asking, recover=True)
    queued = await engine.submit(NEXT, "And?", busy="queue")
    assert queued.run.state == "queued"
    await asleep.answer()
    assert (await within(Reader().follow(queued.lines(wire="envelope")))).text == "Never mind."
    await within(asleep.reading)
    assert (asleep.reader.text, asleep.reader.kinds[-1]) == (WHOLE, COMPLETED)


async def test_a_revision_of_it_is_refused_unless_it_replaces_it(asleep: Asleep) -> None:
    engine = asleep.engine
    with pytest.raises(SessionBusyError):
        await engine.submit(TURN, None, regenerate=True)
    again = await engine.submit(TURN, None, regenerate=True, busy="replace")
    assert again.identity.revision == 1
    assert (await within(Reader().follow(again.lines(wire="envelope")))).text == "Never mind."
    await has_stopped(asleep)


async def test_a_retry_of_it_only_attaches(stage: Stage, asleep: Asleep) -> None:
    again = await asleep.engine.submit(TURN, "Hi", retry=True)
    assert (again.created, again.run.state, again.run.epoch) == (False, "waiting", 1)
    await asleep.answer()
    assert (await within(Reader().follow(again.lines(wire="envelope")))).text == WHOLE
    assert (await stage.run()).epoch == 2


# Erased.


async def test_it_is_not_erased_unless_it_is_stopped(stage: Stage, asleep: Asleep) -> None:
    store = await stage.store()
    with pytest.raises(SessionBusyError):
        await erase_session(store, "s")
    with pytest.raises(UsageError):
        await store.delete(RUN)
    await asleep.answer()
    assert (await within(asleep.reading)).text == WHOLE


async def test_an_engine_stops_it_before_it_is_erased(stage: Stage, asleep: Asleep) -> None:
    async def stop(_: RunRecord) -> object:
        return await asleep.engine.stop(TURN)

    erased = await erase_session(asleep.engine.store, "s", stop=stop)
    assert erased.turns == 1
    await within(asleep.reading)
    assert asleep.reader.kinds[-1] == STOPPED
    await nothing_is_left(stage, asleep)


async def test_it_is_erased_by_whoever_has_no_engine(stage: Stage, asleep: Asleep) -> None:
    store = await stage.store()
    erased = await erase_session(store, "s", stop=lambda run: stop_for_good(store, run))
    assert erased.turns == 1
    try:
        await within(asleep.reading)
    except RunNotFoundError:
        pass  # Its reader came to look when it was gone.
    else:
        assert asleep.reader.kinds[-1] == STOPPED
    await nothing_is_left(stage, asleep)


async def nothing_is_left(stage: Stage, asleep: Asleep) -> None:
    await asleep.is_over()
    store = await stage.store()
    with pytest.raises(RunNotFoundError):
        await asleep.answer()
    assert await store.read_run(RUN) is None
    assert await store.read_frames(RUN, after=0) == []
    # The session begins anew, in the same process too.
    await asleep.engine.submit(TURN, "Hi again")
    await until(lambda: is_in(stage, "waiting"))
    assert (await stage.run()).epoch == 1


# The time is over.


def impatient(timeout_ms: int) -> Callable[[Turn], AsyncIterator[Frame]]:
    async def produce(turn: Turn) -> AsyncIterator[Frame]:
        try:
            await turn.await_event("answer", timeout_ms=timeout_ms)
        except AwaitEventTimeoutError:
            yield text("Nobody answers.")

    return produce


async def test_a_wait_ends_in_time_where_it_sleeps(stage: Stage) -> None:
    assert (await finish(await stage.engine(impatient(60)))).text == "Nobody answers."
    run = await stage.run()
    assert (run.state, run.epoch, run.strikes) == ("completed", 2, 0)


async def test_a_wait_whose_process_died_ends_in_time_in_the_next(stage: Stage) -> None:
    worker = await stage.worker(impatient(60_000))
    await worker.engine.submit(TURN, "Hi")
    await until(lambda: is_in(stage, "waiting"))
    await worker.kill()
    stage.clock.advance(60_000)
    engine = await stage.engine(impatient(60_000), recover=True)
    engine.start()
    reader = await Reader().read(engine)
    assert (reader.text, (await stage.run()).strikes) == ("Nobody answers.", 0)
