"""Readers: from every cursor the rest is exact, live or finished, here or elsewhere."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.core.changes import BeginStep, CompleteStep, EndRun
from perdure.core.frames import (
    Frame,
    cursor_mark,
    data,
    format_cursor,
    reasoning,
    text,
    tool_call,
    tool_result,
    upstream_end,
)
from perdure.core.limits import LEASE_MS, READERS_MAX
from perdure.core.records import SessionKey
from perdure.errors import (
    CursorError,
    FramesExpiredError,
    RunNotFoundError,
    TooManyReadersError,
    UsageError,
)
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.turn import reading as reading_module
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.handout import Turn
from perdure.turn.identity import chat_manifest, run_id_of
from perdure.turn.reading import Reading, is_at_end, lines, open_reading
from perdure.turn.wire.codecs import codec_for
from tests.turn.stage import (
    TURN,
    Reader,
    Script,
    Stage,
    collect,
    events_of,
    finish,
    kinds_of,
    until,
    within,
    words,
)

COMPLETED, STOPPED, FAILED = (f"session.run.{end}" for end in ("completed", "stopped", "failed"))
RESTARTED = "session.run.restarted"
MIXED = [
    reasoning("Hm"),
    text("Hel"),
    text("lo"),
    tool_call("c", "search", {}),
    tool_result("c", 1),
    data("note", 1),
    text(" you"),
    upstream_end("stop"),
]


def ids_of(body: Sequence[bytes]) -> list[tuple[str | None, Any]]:
    envelopes = [json.loads(line) for line in b"".join(body).splitlines()]
    return [(one["id"], one["chunk"]) for one in envelopes]


def is_delta(event: Any) -> bool:
    return event["type"] == "message.part.updated" and "delta" in event["data"]


async def whole(engine: ChatTurnEngine, after: str | None = None) -> list[tuple[str | None, Any]]:
    return ids_of(await within(collect(engine.read(TURN, after=after, wire="envelope"))))


async def parted(stage: Stage) -> list[tuple[str | None, Any]]:
    """Run a turn with a restart in it, to its end; return every frame with its cursor."""
    engine = await stage.engine(Script([text("lost"), RuntimeError("no")], MIXED))
    await finish(engine)
    submitted = await engine.submit(TURN, "Hi", retry=True)
    return ids_of(await within(collect(submitted.lines(wire="envelope"))))


# The rest is exact.


@pytest.mark.parametrize("handle", ["same", "another"])
async def test_from_every_cursor_of_a_finished_turn_the_rest_is_exact(
    stage: Stage, handle: str
) -> None:
    engine = await stage.engine(Script(MIXED))
    submitted = await engine.submit(TURN, "Hi")
    full = ids_of(await within(collect(submitted.lines(wire="envelope"))))
    assert all(cursor for cursor, _ in full)
    other = engine if handle == "same" else await stage.engine()
    for position, (cursor, _) in enumerate(full[:-1], 1):
        rest = await whole(other, cursor)
        replayed = [(c, {**e, "data": {**e["data"], "replayed": True}}) for c, e in full[-1:]]
        assert rest == [*full[position:-1], *replayed]
    assert await whole(other, full[-1][0]) == []


@pytest.mark.parametrize("handle", ["same", "another"])
async def test_from_every_cursor_of_a_live_turn_the_rest_is_exact(
    stage: Stage, handle: str
) -> None:
    gate = asyncio.Event()
    engine = await stage.engine(Script([*MIXED[:5], gate, *MIXED[5:]]))
    submitted = await engine.submit(TURN, "Hi")
    other = engine if handle == "same" else await stage.engine()
    first = asyncio.ensure_future(collect(submitted.lines(wire="envelope")))
    await until(lambda: _has(stage, 5))
    cursors = [_cursor(await stage.run(), seq) for seq in range(6)]
    readers = [asyncio.ensure_future(whole(other, cursor)) for cursor in cursors]
    await asyncio.sleep(0.02)
    gate.set()
    full = ids_of(await within(first))
    for seq, reader in enumerate(readers):
        assert await within(reader) == full[seq + 1 :]


async def _has(stage: Stage, count: int) -> bool:
    return len(await stage.frames()) >= count


def _cursor(run: Any, seq: int, *, epoch: int = 1) -> str:
    return format_cursor(epoch, seq, cursor_mark(run.run_id))


async def test_a_cursor_of_a_lost_attempt_goes_on_at_the_restart(stage: Stage) -> None:
    full = await parted(stage)
    engine = await stage.engine()
    old = _cursor(await stage.run(), 1)
    rest = await whole(engine, old)
    assert rest[0][1]["type"] == RESTARTED
    assert [cursor for cursor, _ in rest] == [cursor for cursor, _ in full[2:]]


async def test_a_reader_without_a_cursor_begins_at_the_last_restart(stage: Stage) -> None:
    gate = asyncio.Event()
    engine = await stage.engine(Script([text("lost"), RuntimeError("no")], [text("new"), gate]))
    await finish(engine)
    await engine.submit(TURN, "Hi", retry=True)
    await until(lambda: _has(stage, 4))
    reader = Reader()
    reading = asyncio.ensure_future(reader.read(engine))
    await until(lambda: reader.text == "new")
    assert reader.kinds == ["session.run.started", RESTARTED, "message.part.updated"]
    await within(engine.stop(TURN))
    await within(reading)


async def test_a_finished_turn_is_replayed_from_its_parts(stage: Stage) -> None:
    engine = await stage.engine(Script(MIXED))
    await finish(engine)
    full = await whole(engine)
    assert [chunk["type"] for _, chunk in full] == [
        "session.run.started",
        *["message.part.updated"] * 4,
        "note",
        "message.part.updated",
        COMPLETED,
    ]
    deltas = [chunk["data"]["delta"] for _, chunk in full if is_delta(chunk)]
    assert deltas == ["Hm", "Hello", " you"]
    assert [cursor is not None for cursor, _ in full] == [True, *[False] * 6, True]
    assert full[-1][1]["data"]["replayed"] is True
    assert await whole(engine, full[-1][0]) == []
    again = await whole(engine, full[0][0])
    assert [c["data"]["delta"] for _, c in again if is_delta(c)] == ["Hm", "Hel", "lo", " you"]


async def test_a_stopped_turn_says_so_when_it_is_replayed(stage: Stage) -> None:
    engine = await stage.engine(Script([text("Hel"), asyncio.Event()]))
    await engine.submit(TURN, "Hi")
    await until(stage.frames)
    await within(engine.stop(TURN))
    reader = await Reader().read(engine)
    assert (reader.text, reader.kinds[-1]) == ("Hel", STOPPED)


async def test_a_replay_may_be_the_single_event_of_the_reference(stage: Stage) -> None:
    engine = await stage.engine(Script(MIXED), replay="result")
    await finish(engine)
    events = await events_of(await engine.submit(TURN, "Hi"))
    assert events[1:] == [
        {"type": "result", "data": {"finalText": "Hello you"}},
        {"type": COMPLETED, "data": {"sessionId": "s", "replayed": True}},
    ]


async def test_the_reference_dialect_has_no_word_of_ours(stage: Stage) -> None:
    script = Script([text("lost"), RuntimeError("no")], words("Hel", "lo"))
    engine = await stage.engine(script)
    await finish(engine)
    events = await events_of(await engine.submit(TURN, "Hi", retry=True), dialect="reference")
    assert set(kinds_of(events)) == {"session.run.started", "message.part.updated", COMPLETED}
    final = ""
    for event in events:
        if event["type"] == "message.part.updated":
            body = event["data"]
            final = final + body["delta"] if "delta" in body else body["part"]["text"]
    assert final == "Hello"


# Turns that another runtime has worked on.


async def typescript(stage: Stage, *, ends: bool = True) -> Any:
    """Do what a TypeScript worker does with a turn: no frames, no parts, no session."""
    store = await stage.store()
    manifest = chat_manifest(TURN, "Hi", project_id="perdure", domain="chat", model=None)
    claim = await store.start_or_resume(run_id_of(TURN), manifest, worker_id="ts", lease_ms=60_000)
    assert claim.lease is not None
    await store.write(claim.lease, BeginStep(0, "chat:turn-0", kind="llm"))

    async def end() -> None:
        assert claim.lease is not None
        done = CompleteStep(0, "chat:turn-0", '{"finalText":"from afar"}', kind="llm")
        await store.write(claim.lease, done, EndRun("completed"))

    if ends:
        await end()
    return end


async def test_a_turn_that_has_only_a_result_is_replayed_as_that(stage: Stage) -> None:
    await typescript(stage)
    script = Script()
    submitted = await (await stage.engine(script)).submit(TURN, "Hi")
    events = await events_of(submitted)
    assert events == [
        {"type": "session.run.started", "data": {"sessionId": "s", "tenantId": "", "turnIndex": 0}},
        {"type": "result", "data": {"finalText": "from afar"}},
        {"type": COMPLETED, "data": {"sessionId": "s", "replayed": True}},
    ]
    assert script.calls == 0


async def test_a_turn_that_another_runtime_ends_without_a_frame_ends_its_readers(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_module, "POLL_MS", 20)
    end = await typescript(stage, ends=False)
    store = await stage.store()
    run = await store.read_run(run_id_of(TURN))
    assert run is not None
    opened = await open_reading(store, run, after=None, find_ring=lambda: None, turn=TURN)
    reading = asyncio.ensure_future(collect(lines(opened, codec_for("ndjson"))))
    await asyncio.sleep(0.05)
    assert not reading.done()
    await end()
    body = b"".join(await within(reading))
    events = [json.loads(line) for line in body.splitlines()]
    assert kinds_of(events) == ["session.run.started", "result", COMPLETED]


async def test_a_turn_that_another_runtime_fails_ends_its_readers(stage: Stage) -> None:
    store = await stage.store()
    manifest = chat_manifest(TURN, "Hi", project_id="perdure", domain="chat", model=None)
    session = SessionKey("s", 0, owner_id="ann")
    claim = await store.start_or_resume(run_id_of(TURN), manifest, worker_id="x", session=session)
    assert claim.lease is not None
    await store.write(claim.lease, EndRun("failed"))
    engine = await stage.engine()
    reader = await Reader().read(engine)
    assert reader.kinds == ["session.run.started", "error", FAILED]


# Cursors that are none.


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "nonsense",
        "1_2_abcdef",
        "0001_0000000001_ABCDEF",
        "0001_0000000001_abcdef\n",
        "0001_0000000001_" + "0" * 5_000,
        "٠٠٠١_0000000001_abcdef",
    ],
)
async def test_a_malformed_cursor_is_refused(stage: Stage, cursor: str) -> None:
    engine = await stage.engine()
    await finish(engine)
    with pytest.raises(CursorError, match="malformed"):
        await engine.open(TURN, after=cursor)


async def test_a_cursor_of_another_turn_or_of_the_future_is_refused(stage: Stage) -> None:
    engine = await stage.engine()
    await finish(engine)
    await finish(engine, TURN._replace(session_id="t"))
    run = await stage.run()
    other = _cursor(await stage.run(TURN._replace(session_id="t")), 1)
    with pytest.raises(CursorError, match="another turn"):
        await engine.open(TURN, after=other)
    last = (await stage.frames())[-1].seq
    await engine.open(TURN, after=_cursor(run, last))
    with pytest.raises(CursorError, match="behind the last frame"):
        await engine.open(TURN, after=_cursor(run, last + 1))
    with pytest.raises(CursorError, match="behind the last frame"):
        await within(collect(engine.read(TURN, after=_cursor(run, 9_999_999_999))))


async def test_the_epoch_of_a_cursor_is_information(stage: Stage) -> None:
    engine = await stage.engine()
    await finish(engine)
    run = await stage.run()
    assert await whole(engine, _cursor(run, 1, epoch=7)) == await whole(engine, _cursor(run, 1))


async def test_frames_that_are_gone_are_said_to_be_gone(stage: Stage) -> None:
    engine = await stage.engine()
    await finish(engine)
    cursor = _cursor(await stage.run(), 1)
    await (await stage.store()).delete(run_id_of(TURN), frames_only=True)
    with pytest.raises(FramesExpiredError):
        await engine.open(TURN, after=cursor)
    reader = await Reader().read(engine)
    assert (reader.text, reader.kinds[-1]) == ("Hello there", COMPLETED)


async def test_a_turn_that_is_not_there_is_not_read(stage: Stage) -> None:
    engine = await stage.engine()
    with pytest.raises(RunNotFoundError, match="turn 0 of session 's'"):
        await collect(engine.read(TURN))
    with pytest.raises(RunNotFoundError):
        await engine.open(TURN)


async def test_a_wire_that_is_none_is_refused(stage: Stage) -> None:
    engine = await stage.engine()
    await finish(engine)
    with pytest.raises(UsageError, match="telegraph"):
        await collect(engine.read(TURN, wire="telegraph"))


# Being at the end.


@pytest.mark.parametrize("last", [upstream_end("stop"), RuntimeError("no")])
async def test_whoever_has_everything_is_at_the_end(stage: Stage, last: Any) -> None:
    gate = asyncio.Event()
    engine = await stage.engine(Script([text("a"), gate, last]))
    reader = Reader()
    submitted = await engine.submit(TURN, "Hi")
    reading = asyncio.ensure_future(reader.follow(submitted.lines(wire="envelope")))
    await until(lambda: reader.text)
    assert not await is_at_end(await engine.open(TURN, after=reader.cursor))
    gate.set()
    await within(reading)
    assert await is_at_end(await engine.open(TURN, after=reader.cursor))
    assert not await is_at_end(await engine.open(TURN, after=_cursor(await stage.run(), 0)))
    assert not await is_at_end(await engine.open(TURN))
    assert await whole(engine, reader.cursor) == []


# Readers that come, go, and are slow.


async def test_a_turn_goes_on_when_all_its_readers_have_left(stage: Stage) -> None:
    gate = asyncio.Event()
    engine = await stage.engine(Script([text("Hel"), gate, text("lo"), upstream_end("stop")]))
    submitted = await engine.submit(TURN, "Hi")
    reader = await Reader().follow(submitted.lines(wire="envelope"), lines_max=2)
    gate.set()
    await until(lambda: _is_over(stage))
    await reader.read(engine)
    assert (reader.text, reader.kinds[-1]) == ("Hello", COMPLETED)


async def _is_over(stage: Stage) -> bool:
    return (await stage.run()).state == "completed"


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
    await until(lambda: _is_over(stage))
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


async def test_the_ring_spares_the_store(stage: Stage) -> None:
    reads = 0
    store = await stage.open()
    read_frames = store.read_frames

    async def counted(*args: Any, **options: Any) -> Sequence[Frame]:
        nonlocal reads
        reads += 1
        return await read_frames(*args, **options)

    store.read_frames = counted  # type: ignore[method-assign]

    async def produce(_turn: Turn) -> AsyncIterator[Any]:
        for _ in range(20):
            yield text("x")
            await asyncio.sleep(0.005)

    engine = await stage.engine(produce, store=store)
    await finish(engine)
    assert reads <= 4


async def test_a_reader_waits_without_asking_again_and_again(stage: Stage) -> None:
    """A hint that stands for ever would make readers of other processes spin."""
    gate = asyncio.Event()
    engine = await stage.engine(Script([text("a"), gate, upstream_end("stop")]))
    await engine.submit(TURN, "Hi")
    await until(stage.frames)
    reads = 0
    store = await stage.open()
    read_frames = store.read_frames

    async def counted(*args: Any, **options: Any) -> Sequence[Frame]:
        nonlocal reads
        reads += 1
        return await read_frames(*args, **options)

    store.read_frames = counted  # type: ignore[method-assign]
    other = await stage.engine(store=store)
    reader = Reader()
    reading = asyncio.ensure_future(reader.read(other))
    await until(lambda: reader.text)
    reads = 0
    await asyncio.sleep(0.3)
    assert reads <= 8
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


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
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
