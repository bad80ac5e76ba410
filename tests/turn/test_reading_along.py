"""Readers that come, go, dawdle, and lose their connection again and again."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.core.frames import (
    text,
    upstream_end,
)
from perdure.core.limits import LEASE_MS, READERS_MAX
from perdure.errors import (
    RunNotFoundError,
    TooManyReadersError,
)
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.testing.crashing import crashing
from perdure.turn import reading as reading_module
from perdure.turn.handout import Turn
from perdure.turn.reading import Reading, lines
from perdure.turn.wire.codecs import codec_for
from tests.turn.stage import (
    COMPLETED,
    RESTARTED,
    TURN,
    Reader,
    Script,
    Stage,
    Traffic,
    collect,
    finish,
    is_in,
    kinds_of,
    until,
    within,
    words,
)

RECOVERING = "session.run.recovering"


async def test_a_turn_goes_on_when_all_its_readers_have_left(stage: Stage) -> None:
    gate = asyncio.Event()
    engine = await stage.engine(Script([text("Hel"), gate, text("lo"), upstream_end("stop")]))
    submitted = await engine.submit(TURN, "Hi")
    reader = await Reader().follow(submitted.lines(wire="envelope"), lines_max=2)
    gate.set()
    await until(lambda: is_in(stage, "completed"))
    await reader.read(engine)
    assert (reader.text, reader.kinds[-1]) == ("Hello", COMPLETED)


async def test_a_turn_has_so_many_readers_and_no_more(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert READERS_MAX == 1_024
    monkeypatch.setattr("perdure.durable.ring.READERS_MAX", 2)
    engine = await stage.engine(Script([text("a"), asyncio.Event()]))
    submitted = await engine.submit(TURN, "Hi")
    await until(stage.frames)
    readers = [submitted.lines() for _ in range(3)]
    for one in readers[:2]:
        await anext(one)
        await anext(one)
    with pytest.raises(TooManyReadersError):
        await anext(readers[2])
    await readers[0].aclose()
    late = submitted.lines()
    await anext(late)
    await anext(late)
    for one in (readers[1], late):
        await one.aclose()


async def test_a_slow_reader_reads_the_store_and_costs_the_turn_nothing(stage: Stage) -> None:
    async def produce(_turn: Turn) -> AsyncIterator[Any]:
        for number in range(3_000):
            yield text(f"{number},")
            if number % 100 == 0:
                await asyncio.sleep(0)

    engine = await stage.engine(produce)
    submitted = await engine.submit(TURN, "Hi")
    slow = submitted.lines(wire="envelope")
    reader = Reader()
    for line in (await anext(slow)).splitlines() + (await anext(slow)).splitlines():
        reader.take(line)
    await until(lambda: is_in(stage, "completed"))
    await within(reader.follow(slow))
    assert reader.text == "".join(f"{number}," for number in range(3_000))
    assert reader.seqs == list(range(3_002))


async def test_silence_is_filled_with_heartbeats(stage: Stage) -> None:
    engine = await stage.engine(Script([text("a"), asyncio.Event()]))
    await engine.submit(TURN, "Hi")
    await until(stage.frames)
    for wire, beat in (("envelope", b'{"id":null,"chunk":null}\n'), ("sse", b": hb\n\n")):
        opened = await engine.open(TURN)
        chunks = lines(opened._replace(heartbeat_ms=10), codec_for(wire))
        await anext(chunks)
        await anext(chunks)
        assert await within(anext(chunks)) == beat
        assert await within(anext(chunks)) == beat
        await chunks.aclose()


async def test_readers_of_another_process_get_heartbeats_too(stage: Stage) -> None:
    engine = await stage.engine(Script([text("a"), asyncio.Event()]))
    await engine.submit(TURN, "Hi")
    await until(stage.frames)
    opened = await (await stage.engine()).open(TURN)
    chunks = lines(opened._replace(heartbeat_ms=10), codec_for("sse"))
    await anext(chunks)
    await anext(chunks)
    assert await within(anext(chunks)) == b": hb\n\n"
    await chunks.aclose()


async def test_readers_are_told_when_nobody_works_on_their_turn(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_module, "POLL_MS", 10)
    engine = await stage.engine(Script([text("lost"), asyncio.Event()], words("whole")))
    await engine.submit(TURN, "Hi")
    await until(stage.frames)
    other = await stage.engine(Script(words("whole")))
    reader, old = Reader(), Reader()
    reading = asyncio.ensure_future(reader.read(other))
    plainly = other.read(TURN, wire="envelope", dialect="reference")
    reading_plainly = asyncio.ensure_future(old.follow(plainly))
    await until(lambda: reader.text and old.text)
    assert RECOVERING not in reader.kinds
    await engine.aclose(drain_ms=0)
    await until(lambda: RECOVERING in reader.kinds)
    await asyncio.sleep(0.05)
    await other.submit(TURN, "Hi")
    await within(asyncio.gather(reading, reading_plainly))
    assert reader.kinds.count(RECOVERING) == 1
    assert reader.kinds.index(RECOVERING) < reader.kinds.index(RESTARTED)
    assert RECOVERING not in old.kinds


async def test_a_lease_that_is_not_renewed_is_told_too(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_module, "POLL_MS", 10)
    monkeypatch.setattr(reading_module, "ADRIFT_MS", 50)
    worker = await stage.worker(Script([text("lost"), asyncio.Event()]))
    await worker.engine.submit(TURN, "Hi")
    await until(stage.frames)
    await worker.kill()
    reader = Reader()
    reading = asyncio.ensure_future(reader.read(await stage.engine()))
    await until(lambda: RECOVERING in reader.kinds)
    reading.cancel()
    await asyncio.wait([reading])


async def test_plain_ndjson_stays_silent(stage: Stage) -> None:
    gate = asyncio.Event()
    engine = await stage.engine(Script([text("a"), gate, upstream_end("stop")]))
    await engine.submit(TURN, "Hi")
    await until(stage.frames)
    opened = await engine.open(TURN)
    reading = asyncio.ensure_future(
        collect(lines(opened._replace(heartbeat_ms=5), codec_for("ndjson")))
    )
    await asyncio.sleep(0.05)
    gate.set()
    assert all(await within(reading))


async def test_a_turn_that_is_deleted_cuts_its_readers_off(stage: Stage) -> None:
    engine = await stage.engine()
    await finish(engine)
    store = await stage.store()
    run = await stage.run()
    gone = Reading(store, run._replace(state="running"), TURN, 1, "perdure", "frames", lambda: None)
    await store.delete(run.run_id)
    with pytest.raises(RunNotFoundError):
        await within(collect(lines(gone, codec_for("ndjson"))))


async def test_a_turn_that_is_deleted_behind_its_end_ends_only_once(stage: Stage) -> None:
    engine = await stage.engine(Script(words("Hello")))
    submitted = await engine.submit(TURN, "Hi")
    store = await stage.store()
    body: list[bytes] = []
    async with asyncio.timeout(5):
        async for piece in submitted.lines():
            body.append(piece)
            if COMPLETED.encode() in piece:
                await store.delete(submitted.run.run_id)
    kinds = kinds_of(json.loads(line) for line in b"".join(body).splitlines())
    assert kinds[-1] == COMPLETED
    assert kinds.count(COMPLETED) == 1
    assert "result" not in kinds


async def test_the_ring_spares_the_store(stage: Stage) -> None:
    async def produce(_turn: Turn) -> AsyncIterator[Any]:
        for _ in range(20):
            yield text("x")
            await asyncio.sleep(0.005)

    traffic = Traffic()
    engine = await stage.engine(produce, store=crashing(await stage.open(), traffic))
    await finish(engine)
    assert 1 <= traffic.reads["read_frames"] <= 3


async def test_a_reader_of_another_process_waits_without_asking_again_and_again(
    stage: Stage,
) -> None:
    gate = asyncio.Event()
    engine = await stage.engine(Script([text("a"), gate, upstream_end("stop")]))
    await engine.submit(TURN, "Hi")
    await until(stage.frames)
    traffic = Traffic()
    other = await stage.engine(store=crashing(await stage.open(), traffic))
    reader = Reader()
    reading = asyncio.ensure_future(reader.read(other))
    await until(lambda: reader.text)
    traffic.reads.clear()
    await asyncio.sleep(0.3)
    assert traffic.reads.total() <= 8
    gate.set()
    await within(reading)


# Whatever happens in between.


async def drops(stage: Stage, seed: int) -> None:
    """Read a turn that crashes twice through connections that break at random moments."""
    chance = random.Random(seed)
    answer = [f"{chance.randrange(100)} " for _ in range(40)]

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        for position, word in enumerate(answer):
            if turn.attempt < 3 and position == chance.randrange(5, 35):
                await asyncio.Event().wait()
            yield text(word)
            await asyncio.sleep(chance.choice([0, 0, 0.001]))
        yield upstream_end("stop")

    reader = Reader()
    for _ in range(2):
        worker = await stage.worker(produce)
        await worker.engine.submit(TURN, "Hi")
        for _ in range(chance.randrange(1, 6)):
            engine = worker.engine if chance.random() < 0.5 else await stage.engine()
            limit = chance.randrange(1, 12)
            try:
                async with asyncio.timeout(0.05):
                    chunks = engine.read(TURN, after=reader.cursor, wire="envelope")
                    await reader.follow(chunks, lines_max=limit)
            except TimeoutError:
                continue
        if (await stage.run()).state == "completed":
            break
        await worker.kill()
        stage.clock.advance(LEASE_MS)
    last = await stage.engine(produce)
    await last.submit(TURN, "Hi")
    while not reader.is_done:
        await reader.read(last, lines_max=chance.randrange(1, 20))
    assert reader.text == (await stage.answer())["finalText"] == "".join(answer)
    frames = await stage.frames()
    assert [frame.seq for frame in frames] == list(range(1, len(frames) + 1))


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
async def test_the_text_of_a_reader_who_comes_and_goes_is_the_final_text(seed: int) -> None:
    data = MemoryData()

    async def open_handle(clock: Any) -> Any:
        return MemoryStore(data, clock=clock)

    async with Stage(open_handle) as stage:
        await drops(stage, seed)


@pytest.mark.parametrize("seed", range(3))
async def test_a_reader_who_comes_and_goes_on_any_store(stage: Stage, seed: int) -> None:
    await drops(stage, seed)
