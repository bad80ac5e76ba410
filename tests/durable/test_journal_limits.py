"""The journal under pressure: limits, restarts, the end, and a store in trouble."""

from __future__ import annotations

import asyncio
import json

import pytest

from perdure.core import frames
from perdure.core.changes import CompleteStep, EndRun, Release
from perdure.core.frames import Frame, text, tool_call, upstream_end
from perdure.core.limits import (
    FRAME_BYTES_MAX,
    FRAMES_ROW_BYTES_MAX,
    TURN_LOG_BYTES_MAX,
    UNFLUSHED_BYTES_MAX,
)
from perdure.durable.journal import stored_bytes
from perdure.errors import LeaseLostError, NotSerializableError, ValueTooLargeError
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.protocol import RunStore
from tests.durable.desk import Desk, deltas
from tests.durable.handles import until, within

# Back-pressure and limits.


async def test_a_producer_waits_when_the_store_is_too_slow(desk: Desk) -> None:
    gate = await desk.hold_up()
    count = 0
    while not desk.journal.is_full:
        desk.journal.append(text("x" * 4_000))
        count += 1
    assert (count - 1) * 4_000 <= UNFLUSHED_BYTES_MAX < (count + 1) * 4_100
    room = asyncio.ensure_future(desk.journal.room())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not room.done()
    gate.set()
    await within(room)
    assert not desk.journal.is_full


async def test_a_producer_that_waits_is_woken_when_the_lease_is_lost(desk: Desk) -> None:
    gate = await desk.hold_up()
    while not desk.journal.is_full:
        desk.journal.append(text("x" * 4_000))
    room = asyncio.ensure_future(desk.journal.room())
    await asyncio.sleep(0)
    desk.attempt.held.lose()
    gate.set()
    with pytest.raises(LeaseLostError):
        await within(room)


async def test_a_long_delta_is_cut_into_frames_that_fit(desk: Desk) -> None:
    long = "😀\0" * 20_000
    numbered = desk.journal.append(text(long))
    await desk.journal.write()
    found = await desk.stored()
    assert "".join(deltas(found)) == long
    assert len(numbered) == len(found) > 1
    assert all(len(json.dumps(frame.data)) <= FRAME_BYTES_MAX for frame in found)


async def test_elements_and_rows_keep_their_limits_whatever_the_characters(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = desk.spy_on_rows(monkeypatch)
    for _ in range(3):
        desk.journal.append(text("😀" * 8_192))
        desk.journal.append(text("\0" * 8_191))
    desk.journal.append(tool_call("c", "n", "x" * (FRAME_BYTES_MAX - 100)))
    desk.journal.append(text("after"))
    await desk.journal.write()
    for row in rows:
        assert len(row.body) <= FRAMES_ROW_BYTES_MAX
        for element in json.loads(row.body):
            assert len(json.dumps(element, separators=(",", ":"))) <= FRAME_BYTES_MAX
    assert sum(row.last_seq - row.first_seq + 1 for row in rows) == 8


async def test_a_frame_over_the_limit_is_refused_and_costs_no_number(desk: Desk) -> None:
    desk.journal.append(text("a"))
    with pytest.raises(ValueTooLargeError, match="tool_call frame"):
        desk.journal.append(tool_call("c", "n", "x" * FRAME_BYTES_MAX))
    with pytest.raises(NotSerializableError, match=r"data frame\.value"):
        desk.journal.append(frames.data("d", float("nan")))
    desk.journal.append(text("b"))
    await desk.journal.write()
    assert [frame.seq for frame in await desk.stored()] == [1, 2]


async def test_a_turn_over_the_limit_is_refused_and_what_it_has_is_kept(desk: Desk) -> None:
    async def fill() -> None:
        while True:
            desk.journal.append(text("x" * 8_000))
            if desk.journal.is_full:
                await desk.journal.room()

    with pytest.raises(ValueTooLargeError, match=str(TURN_LOG_BYTES_MAX)):
        await fill()
    await desk.journal.leave(EndRun("failed"), last=Frame(0, 0, "failed", {"code": "c"}))
    desk.journal.show_last()
    kept = await desk.stored()
    assert kept[-1].kind == "failed"
    assert TURN_LOG_BYTES_MAX - 16_000 < sum(map(len, deltas(kept))) < TURN_LOG_BYTES_MAX + 16_000


async def test_a_delta_over_the_limit_is_refused_before_it_is_cut(desk: Desk) -> None:
    desk.journal.append(text("before"))
    with pytest.raises(ValueTooLargeError, match=str(TURN_LOG_BYTES_MAX)):
        desk.journal.append(text("x" * TURN_LOG_BYTES_MAX))
    assert desk.journal.last_seq == 1
    await desk.journal.write()
    assert deltas(await desk.stored()) == ["before"]


async def test_the_limit_counts_what_earlier_attempts_left(store: RunStore) -> None:
    first = await Desk.open(store)
    for _ in range(1_000):
        first.journal.append(text("ab"))
    await first.journal.leave(Release())
    second = await Desk.open(store)
    second.journal.log_bytes = stored_bytes(await second.stored())
    assert 0.8 * first.journal.log_bytes <= second.journal.log_bytes <= first.journal.log_bytes
    second.attempt.end()


# Beginning again.


async def test_a_restart_is_one_unit_that_says_what_readers_keep(store: RunStore) -> None:
    first = await Desk.open(store)
    for frame in (text("lost"), text("too")):
        first.journal.append(frame)
    await first.journal.leave(Release())
    second = await Desk.open(store)
    kept = [text("😀" * 10_000, "p1"), tool_call("c", "n", {})]
    second.journal.log_bytes = 5_000
    second.journal.begin_again(kept, reason="lease_expired", discarded_from="cursor")
    assert second.journal.log_bytes == 0, "readers do not get it any more"
    await second.journal.write(CompleteStep(1, "step", "1"))
    found = await store.read_frames("run", after=2)
    assert found[0].kind == "restarted"
    assert found[0].data == {
        "attempt": 2,
        "reason": "lease_expired",
        "from": "cursor",
        "kept": len(found) - 1,
    }
    assert "".join(deltas(found)) == "😀" * 10_000
    run = await store.read_run("run")
    assert run is not None
    assert run.live_from == 3
    assert second.trouble.writes == 1
    assert second.published == list(found)
    second.attempt.end()


async def test_a_restart_may_be_written_along_with_the_end(store: RunStore) -> None:
    first = await Desk.open(store)
    first.journal.append(text("lost"))
    await first.journal.leave(Release())
    second = await Desk.open(store)
    second.journal.begin_again([text("kept", "p1")], reason="retry", discarded_from="cursor")
    await second.journal.leave(EndRun("stopped"), last=Frame(0, 0, "stopped", {}))
    assert second.trouble.writes == 1
    kinds = [frame.kind for frame in await store.read_frames("run")]
    assert kinds == ["text", "restarted", "text", "stopped"]
    run = await store.read_run("run")
    assert run is not None
    assert run.live_from == 2


async def test_text_after_a_restart_begins_a_part_of_its_own(store: RunStore) -> None:
    first = await Desk.open(store)
    first.journal.append(text("kept"))
    await first.journal.leave(Release())
    second = await Desk.open(store)
    second.journal.begin_again([text("kept", "p1")], reason="retry", discarded_from="cursor")
    second.journal.append(text("new"))
    await second.journal.leave(Release())
    last = (await store.read_frames("run"))[-1]
    assert last.data == {"part": "p4", "delta": "new"}


# The end.


async def test_the_end_is_shown_only_when_it_may_be(desk: Desk) -> None:
    desk.journal.append(text("a"))
    await desk.journal.leave(EndRun("completed"), last=Frame(0, 0, "completed", {}))
    assert [frame.kind for frame in desk.published] == ["text"]
    assert [frame.kind for frame in await desk.stored()] == ["text", "completed"]
    desk.journal.show_last()
    desk.journal.show_last()
    assert [frame.kind for frame in desk.published] == ["text", "completed"]
    assert desk.trouble.writes == 1


async def test_a_caller_that_is_cancelled_does_not_tear_a_write(desk: Desk) -> None:
    gate = desk.trouble.gate = asyncio.Event()
    desk.journal.append(text("a"))
    leaving = asyncio.ensure_future(
        desk.journal.leave(EndRun("completed"), last=Frame(0, 0, "completed", {}))
    )
    await within(desk.trouble.held_up.wait())
    leaving.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await within(leaving)
    assert [frame.kind for frame in await desk.stored()] == ["text", "completed"]


async def test_nothing_is_flushed_behind_the_end(desk: Desk) -> None:
    desk.journal.append(text("a"))
    await desk.journal.leave(Release())
    desk.journal.append(text("late"))
    desk.journal.append(upstream_end("late"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert deltas(await desk.stored()) == ["a"]


# A store in trouble.


async def test_a_busy_store_loses_no_frame(desk: Desk) -> None:
    desk.trouble.failures_left = 3
    for delta in "abc":
        desk.journal.append(text(delta))
    await within(desk.journal.leave(EndRun("completed"), last=Frame(0, 0, "completed", {})))
    assert desk.trouble.failures == 3
    assert deltas(await desk.stored()) == list("abc")
    assert (await desk.stored())[-1].kind == "completed"


async def test_a_lost_lease_ends_the_flushing(desk: Desk) -> None:
    desk.journal.append(text("a"))
    await until(lambda: desk.published)
    changes = 0

    def changed() -> None:
        nonlocal changes
        changes += 1

    desk.attempt.on_change = changed
    await desk.store.write(desk.attempt.lease, Release())
    desk.journal.append(upstream_end("x"))
    await until(lambda: desk.attempt.held.lost)
    assert changes == 1
    assert [frame.seq for frame in desk.published] == [1]
    with pytest.raises(LeaseLostError):
        await desk.journal.write()


async def test_nothing_is_written_behind_frames_that_are_missing() -> None:
    data = MemoryData()
    desk = await Desk.open(MemoryStore(data))
    data.runs["run"].rows.clear()
    desk.journal.append(text("a"))
    await until(lambda: desk.published)
    data.runs["run"].rows.clear()
    desk.journal.append(upstream_end("x"))
    await until(lambda: desk.attempt.held.lost)
    with pytest.raises(LeaseLostError):
        await desk.journal.leave(Release())
    desk.attempt.end()
