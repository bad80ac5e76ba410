"""From every cursor the rest is exact, live or finished, here or elsewhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from perdure.core.changes import BeginStep, CompleteStep, EndRun
from perdure.core.frames import (
    data,
    reasoning,
    text,
    tool_call,
    tool_result,
    upstream_end,
)
from perdure.core.records import SessionKey
from perdure.errors import (
    CursorError,
    FramesExpiredError,
    RunNotFoundError,
    UsageError,
)
from perdure.turn import reading as reading_module
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.identity import chat_manifest, run_id_of
from perdure.turn.reading import is_at_end, lines, open_reading
from perdure.turn.wire.codecs import codec_for
from tests.turn.stage import (
    COMPLETED,
    FAILED,
    RESTARTED,
    STOPPED,
    TURN,
    Reader,
    Script,
    Stage,
    collect,
    cursor_of,
    events_of,
    finish,
    has_frames,
    kinds_of,
    until,
    within,
    words,
)

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
    await until(lambda: has_frames(stage, 5))
    cursors = [cursor_of(await stage.run(), seq) for seq in range(6)]
    readers = [asyncio.ensure_future(whole(other, cursor)) for cursor in cursors]
    await asyncio.sleep(0.02)
    gate.set()
    full = ids_of(await within(first))
    for seq, reader in enumerate(readers):
        assert await within(reader) == full[seq + 1 :]


async def test_a_cursor_of_a_lost_attempt_goes_on_at_the_restart(stage: Stage) -> None:
    full = await parted(stage)
    engine = await stage.engine()
    old = cursor_of(await stage.run(), 1)
    rest = await whole(engine, old)
    assert rest[0][1]["type"] == RESTARTED
    assert [cursor for cursor, _ in rest] == [cursor for cursor, _ in full[2:]]


async def test_a_reader_without_a_cursor_begins_at_the_last_restart(stage: Stage) -> None:
    gate = asyncio.Event()
    engine = await stage.engine(Script([text("lost"), RuntimeError("no")], [text("new"), gate]))
    await finish(engine)
    await engine.submit(TURN, "Hi", retry=True)
    await until(lambda: has_frames(stage, 4))
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
        {"type": COMPLETED, "data": {"sessionId": "s", "replayed": True, "finishReason": "stop"}},
    ]


async def test_the_lines_of_a_turn_are_those_of_the_reference(stage: Stage) -> None:
    script = Script([text("Hé", "a"), {"type": "note", "data": {"z": 1}}, upstream_end("stop")])
    submitted = await (await stage.engine(script)).submit(TURN, "Hi")
    body = b"".join(await within(collect(submitted.lines(dialect="reference"))))
    assert body.decode() == (
        '{"type":"session.run.started","data":{"sessionId":"s","tenantId":"","turnIndex":0}}\n'
        '{"type":"message.part.updated","data":'
        '{"delta":"H\\u00e9","part":{"id":"a","type":"text"}}}\n'
        '{"type":"note","data":{"z":1}}\n'
        '{"type":"session.run.completed","data":{"sessionId":"s","replayed":false}}\n'
    )


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
    other = cursor_of(await stage.run(TURN._replace(session_id="t")), 1)
    with pytest.raises(CursorError, match="another turn"):
        await engine.open(TURN, after=other)
    last = (await stage.frames())[-1].seq
    await engine.open(TURN, after=cursor_of(run, last))
    with pytest.raises(CursorError, match="behind the last frame"):
        await engine.open(TURN, after=cursor_of(run, last + 1))
    with pytest.raises(CursorError, match="behind the last frame"):
        await within(collect(engine.read(TURN, after=cursor_of(run, 9_999_999_999))))


async def test_a_cursor_of_an_attempt_that_wrote_no_such_frame_is_refused(stage: Stage) -> None:
    engine = await stage.engine()
    await finish(engine)
    run = await stage.run()
    for seq in (0, 1):
        await whole(engine, cursor_of(run, seq))
        with pytest.raises(CursorError, match="names an attempt"):
            await whole(engine, cursor_of(run, seq, epoch=7))


async def test_frames_that_are_gone_are_said_to_be_gone(stage: Stage) -> None:
    engine = await stage.engine()
    await finish(engine)
    cursor = cursor_of(await stage.run(), 1)
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
    assert not await is_at_end(await engine.open(TURN, after=cursor_of(await stage.run(), 0)))
    assert not await is_at_end(await engine.open(TURN))
    assert await whole(engine, reader.cursor) == []
