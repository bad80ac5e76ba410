"""run_durable_turn: what becomes of its lease when somebody leaves, or the store closes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from perdure.core.records import RunRecord
from perdure.errors import DurableRunError, LeaseLostError, RunStoppedError, StoreClosedError
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.testing.samples import manifest
from perdure.turn import driving
from perdure.turn.durable import DurableTurn, run_durable_turn
from tests.durable.doors import Doors
from tests.turn.stage import Stage, collect, until, within


class Producer:
    """Yields a word, then waits for ever; `calls` counts how often it was asked to produce."""

    def __init__(self, *, hangs: bool = True) -> None:
        self.calls = 0
        self.was_closed = False
        self._hangs = hangs

    async def __call__(self) -> AsyncIterator[str]:
        self.calls += 1
        try:
            yield "word"
            if self._hangs:
                await asyncio.Event().wait()
        finally:
            self.was_closed = True


def turn(store: RunStore, produce: Any, *, lease_ms: int = 15_000) -> DurableTurn[Any]:
    return run_durable_turn(
        store,
        run_id="run",
        manifest=manifest(),
        produce=produce,
        accumulate=lambda event, text: text + str(event),
        lease_ms=lease_ms,
    )


async def free(store: RunStore) -> RunRecord:
    """Return the run, which somebody else may claim at once and without a strike."""
    run = await store.read_run("run")
    assert run is not None
    assert (run.state, run.lease_holder_id, run.strikes) == ("running", None, 0)
    return run


async def test_a_turn_that_is_cancelled_while_it_claims_holds_nothing(stage: Stage) -> None:
    store, doors = await stage.open(), Doors()
    produce = Producer()
    pull = asyncio.create_task(collect(turn(doors.before(store), produce).stream))
    await within(doors.granted.wait())
    pull.cancel()
    await within(asyncio.wait((pull,)))
    assert pull.cancelled()
    await free(store)
    events = await within(collect(turn(store, Producer(hangs=False)).stream))
    assert (events, produce.calls) == (["word"], 0)


async def test_closing_the_store_gives_a_turn_back(stage: Stage) -> None:
    store, produce = await stage.open(), Producer()
    stream = turn(store, produce).stream
    assert await within(anext(stream)) == "word"
    await within(store.close())
    with pytest.raises(StoreClosedError):
        await within(anext(stream))
    assert produce.was_closed
    await free(await stage.store())


async def test_closing_the_store_waits_for_a_claim_that_is_under_way(stage: Stage) -> None:
    store, doors = await stage.open(), Doors()
    pull = asyncio.create_task(collect(turn(doors.before(store), Producer()).stream))
    await within(doors.granted.wait())
    close = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    doors.answer.set()
    await within(close)
    with pytest.raises(StoreClosedError):
        await within(pull)
    await free(await stage.store())


async def test_a_producer_that_makes_an_error_of_the_close_has_not_failed(stage: Stage) -> None:
    async def stubborn() -> AsyncIterator[str]:
        yield "word"
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("because of the cancellation") from None

    store = await stage.open()
    stream = turn(store, stubborn).stream
    await within(anext(stream))
    await within(store.close())
    with pytest.raises(StoreClosedError):
        await within(anext(stream))
    await free(await stage.store())


async def test_a_claim_that_was_answered_after_its_lease_is_not_worked_on(stage: Stage) -> None:
    produce = Producer()
    late = Doors(late_ms=120).before(await stage.open())
    with pytest.raises(LeaseLostError):
        await within(collect(turn(late, produce, lease_ms=100).stream))
    assert produce.calls == 0


def test_a_loop_that_shuts_down_gives_the_lease_back(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'runs.db'}"

    async def begin() -> None:
        store = await open_store(url)
        await anext(turn(store, Producer()).stream)
        await until(lambda: store.read_steps("run"))

    async def look() -> None:
        store = await open_store(url)
        await free(store)
        await store.close()

    asyncio.run(begin())
    asyncio.run(look())


async def test_a_producer_that_cancels_itself_has_failed(stage: Stage) -> None:
    async def produce() -> AsyncIterator[str]:
        yield "word"
        raise asyncio.CancelledError

    store = await stage.open()
    with pytest.raises(DurableRunError, match="cancelled itself"):
        await within(collect(turn(store, produce).stream))
    run = await store.read_run("run")
    assert run is not None
    assert (run.state, run.lease_holder_id) == ("failed", None)
    (step,) = await store.read_steps("run")
    assert step.status == "failed"


class Stubborn:
    """A producer that does not let itself be cancelled, until it is let go."""

    def __init__(self) -> None:
        self.refused = 0
        self.may_go_on = asyncio.Event()
        self.is_over = asyncio.Event()

    async def __call__(self) -> AsyncIterator[str]:
        try:
            yield "word"
            while not self.may_go_on.is_set():
                try:
                    await self.may_go_on.wait()
                except asyncio.CancelledError:
                    self.refused += 1
            yield " too late"
        finally:
            self.is_over.set()


@pytest.mark.parametrize("how", ["stop", "close"])
async def test_a_producer_that_does_not_let_itself_be_cancelled_is_left_behind(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(driving, "GRACE_MS", 20)
    store, produce = await stage.open(), Stubborn()
    answer = turn(store, produce, lease_ms=3_000)
    assert await within(anext(answer.stream)) == "word"
    reading = asyncio.create_task(collect(answer.stream))
    if how == "stop":
        await store.request_stop("run")
    else:
        await within(store.close())
    with pytest.raises(RunStoppedError if how == "stop" else StoreClosedError):
        await within(reading)
    produce.may_go_on.set()
    await within(produce.is_over.wait())
    assert produce.refused == 1
    if how == "stop":
        [step] = await store.read_steps("run")
        assert step.result == {"finalText": "word", "stopped": True}
        assert answer.final_text() == "word"
    else:
        await free(await stage.open())
