"""The journal: frames are numbered, merged, persisted, and shown only then."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core import frames
from perdure.core.changes import AppendFrames, CompleteStep, EndRun, Release
from perdure.core.frames import Frame, RowBuilder, decode_row, text, tool_call, upstream_end
from perdure.core.limits import (
    FLUSH_FRAMES,
    FRAME_BYTES_MAX,
    FRAMES_ROW_BYTES_MAX,
    LINGER_MS,
    TURN_LOG_BYTES_MAX,
    UNFLUSHED_BYTES_MAX,
)
from perdure.durable.attempt import Attempt
from perdure.durable.journal import Journal, stored_bytes
from perdure.durable.ring import Ring
from perdure.errors import LeaseLostError, NotSerializableError, ValueTooLargeError
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.protocol import RunStore
from perdure.testing.samples import manifest
from tests.durable.handles import ThreadedTroubledStore, Trouble, until, within


class Desk:
    """A journal on a store that a test may hold up, and everything it has published."""

    def __init__(self, store: RunStore, journal: Journal, attempt: Attempt, trouble: Trouble):
        self.store = store
        self.journal = journal
        self.attempt = attempt
        self.trouble = trouble
        self.published: list[Frame] = []

    @classmethod
    async def open(cls, store: RunStore) -> Desk:
        trouble = Trouble()
        troubled = ThreadedTroubledStore(store, trouble)
        claim = await troubled.start_or_resume("run", manifest(), worker_id="ann")
        attempt = Attempt(troubled, claim, lease_ms=15_000)
        published: list[Frame] = []
        journal = Journal(
            attempt,
            Ring(claim.next_seq),
            next_seq=claim.next_seq,
            on_published=published.extend,
        )
        desk = cls(store, journal, attempt, trouble)
        desk.published = published
        return desk

    async def stored(self) -> Sequence[Frame]:
        found: list[Frame] = []
        while page := await self.store.read_frames("run", after=found[-1].seq if found else -1):
            found.extend(page)
        return found

    async def hold_up(self) -> asyncio.Event:
        """Let the first frame be stored, and keep the write of the second one in flight."""
        self.journal.append(text("a"))
        await until(lambda: self.published)
        gate = self.trouble.gate = asyncio.Event()
        self.journal.append(upstream_end("x"))
        await within(self.trouble.held_up.wait())
        return gate


@pytest.fixture
async def desk(store: RunStore) -> AsyncIterator[Desk]:
    desk = await Desk.open(store)
    yield desk
    desk.attempt.end()


def deltas(found: Sequence[Frame]) -> list[str]:
    return [frame.data["delta"] for frame in found if frame.kind in ("text", "reasoning")]


# Numbering.


async def test_frames_are_numbered_from_one_without_a_gap(desk: Desk) -> None:
    for frame in (text("a"), tool_call("c", "search", {}), text("b"), text("c")):
        desk.journal.append(frame)
    await desk.journal.write()
    assert [frame.seq for frame in await desk.stored()] == [1, 2, 3, 4]
    assert desk.published == list(await desk.stored())


async def test_the_next_attempt_goes_on_where_the_last_one_stopped(store: RunStore) -> None:
    first = await Desk.open(store)
    first.journal.append(text("a"))
    first.journal.append(text("b"))
    await first.journal.leave(Release())
    second = await Desk.open(store)
    second.journal.append(text("c"))
    await second.journal.leave(Release())
    assert [(frame.seq, frame.epoch) for frame in await second.stored()] == [(1, 1), (2, 1), (3, 2)]


async def test_deltas_without_a_part_join_the_one_that_is_being_written(desk: Desk) -> None:
    kinds = (text("a"), text("b"), frames.reasoning("c"), text("d"), tool_call("t", "n", {}))
    for frame in (*kinds, text("e")):
        desk.journal.append(frame)
    await desk.journal.write()
    parts = [frame.data.get("part") for frame in await desk.stored()]
    assert parts == ["p1", "p1", "p3", "p4", None, "p6"]


async def test_a_part_that_the_producer_names_is_kept(desk: Desk) -> None:
    desk.journal.append(text("a", "mine"))
    await desk.journal.write()
    (frame,) = await desk.stored()
    assert frame.data["part"] == "mine"


async def test_an_empty_delta_is_no_frame(desk: Desk) -> None:
    assert not desk.journal.append(text(""))
    desk.journal.append(text("a"))
    await desk.journal.write()
    assert [frame.seq for frame in await desk.stored()] == [1]


@pytest.mark.parametrize("delta", [7, None, b"a", ["a"]])
async def test_a_delta_that_is_no_text_is_refused(desk: Desk, delta: object) -> None:
    with pytest.raises(NotSerializableError, match="must be str"):
        desk.journal.append(Frame(0, 0, "text", {"part": None, "delta": delta}))
    assert desk.journal.last_seq == 0


# Merging.


async def test_neighbouring_deltas_share_an_element_and_keep_their_numbers(
    desk: Desk,
) -> None:
    written: list[AppendFrames] = []
    write = desk.attempt.write

    async def spy(*changes: object) -> object:
        written.extend(change for change in changes if isinstance(change, AppendFrames))
        return await write(*changes)  # type: ignore[arg-type]

    desk.attempt.write = spy  # type: ignore[method-assign, assignment]
    for delta in ("He", "llo", " you"):
        desk.journal.append(text(delta))
    await desk.journal.write()
    (row,) = written
    assert json.loads(row.body) == [{"k": "text", "part": "p1", "d": ["He", "llo", " you"]}]
    assert (row.first_seq, row.last_seq) == (1, 3)
    assert [(frame.seq, frame.data["delta"]) for frame in await desk.stored()] == [
        (1, "He"),
        (2, "llo"),
        (3, " you"),
    ]


def as_json_reads_it(value: str) -> str:
    """Two lone surrogates that stand together are one character to every JSON reader."""
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


ODD = st.text(alphabet=st.sampled_from('ab\n"\\\0\u2028\u2029\ud800\udc00é中😀\x7f'), max_size=9)


@given(st.lists(st.tuples(st.sampled_from(["text", "reasoning"]), st.sampled_from("pqé"), ODD)))
def test_a_row_says_exactly_how_long_it_is_and_gives_back_what_it_got(
    items: list[tuple[str, str, str]],
) -> None:
    row = RowBuilder(5)
    for kind, part, delta in items:
        row.add_delta(kind, part, delta)
    body = row.body()
    assert body.isascii()
    assert "\n" not in body
    assert row.size_bytes == len(body)
    found = decode_row(5, 2, body)
    assert [(f.kind, f.data["part"], f.data["delta"]) for f in found] == [
        (kind, part, as_json_reads_it(delta)) for kind, part, delta in items
    ]
    assert [f.seq for f in found] == list(range(5, 5 + len(items)))


@pytest.mark.parametrize("odd", ["\0", "\ud800", "\u2028\u2029", "a\r\nb", "😀" * 10, '"\\'])
async def test_text_that_breaks_others_survives(desk: Desk, odd: str) -> None:
    desk.journal.append(text(odd))
    desk.journal.append(tool_call("c", odd, {odd: odd}))
    await desk.journal.write()
    delta, call = await desk.stored()
    assert delta.data["delta"] == odd
    assert call.data["args"] == {odd: odd}


# When it is flushed.


async def test_the_first_content_is_flushed_at_once_and_the_next_one_lingers(desk: Desk) -> None:
    desk.journal.append(text("first"))
    await until(lambda: desk.published)
    desk.journal.append(text("second"))
    loop = asyncio.get_running_loop()
    asked = loop.time()
    desk.journal.append(text("third"))
    await until(lambda: len(desk.published) == 3)
    assert loop.time() - asked >= LINGER_MS / 1_000 / 2
    assert desk.trouble.writes == 2


@pytest.mark.parametrize(
    "urgent", [tool_call("c", "n", {}), frames.tool_result("c", 1), upstream_end("stop")]
)
async def test_what_a_reader_waits_for_takes_along_what_lingers(desk: Desk, urgent: Frame) -> None:
    desk.journal.append(text("first"))
    await until(lambda: desk.published)
    desk.journal.append(text("second"))
    desk.journal.append(urgent)
    await asyncio.sleep(0)
    await until(lambda: len(desk.published) == 3)
    assert desk.trouble.writes == 2


async def test_an_event_that_is_a_token_lingers_and_another_does_not(desk: Desk) -> None:
    token = frames.event({"type": "message.part.updated", "data": {"delta": "a", "more": 1}})
    desk.journal.append(text("first"))
    await until(lambda: desk.published)
    gate = desk.trouble.gate = asyncio.Event()
    desk.journal.append(token)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not desk.trouble.held_up.is_set()
    desk.journal.append(frames.event({"type": "message.part.updated", "data": {"part": {}}}))
    await within(desk.trouble.held_up.wait())
    gate.set()
    await until(lambda: len(desk.published) == 3)


async def test_many_frames_do_not_linger(desk: Desk) -> None:
    gate = await desk.hold_up()
    for _ in range(FLUSH_FRAMES):
        desk.journal.append(text("t"))
    gate.set()
    desk.trouble.gate = None
    await until(lambda: len(desk.published) == FLUSH_FRAMES + 2)
    assert desk.trouble.writes == 3


async def test_many_bytes_do_not_linger(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.durable.journal.LINGER_MS", 60_000)
    desk.journal.append(text("first"))
    await until(lambda: desk.published)
    desk.journal.append(text("x" * 8_000))
    desk.journal.append(text("x" * 400))
    await until(lambda: len(desk.published) == 3)


async def test_one_write_is_in_flight_and_the_next_takes_all_that_came(desk: Desk) -> None:
    gate = await desk.hold_up()
    before = desk.trouble.writes
    for delta in "bcd":
        desk.journal.append(text(delta))
        desk.journal.append(upstream_end(delta))
    for _ in range(20):
        await asyncio.sleep(0)
    assert desk.trouble.writes == before
    gate.set()
    await until(lambda: len(desk.published) == 8)
    assert desk.trouble.writes == before + 2


async def test_a_reader_never_sees_what_the_store_has_not(desk: Desk) -> None:
    gate = await desk.hold_up()
    assert [frame.seq for frame in desk.published] == [1]
    assert desk.journal.ring.last_seq == 1
    assert not desk.journal.ring.since(1)
    gate.set()
    await until(lambda: desk.journal.ring.since(1))
    assert [frame.seq for frame in await desk.stored()] == [1, 2]


async def test_a_step_is_written_with_the_frames_before_it(desk: Desk) -> None:
    desk.journal.append(text("a"))
    await until(lambda: desk.published)
    desk.journal.append(text("b"))
    written = await desk.journal.write(
        CompleteStep(1, "step", '"done"', frames_to=desk.journal.last_seq)
    )
    assert written.steps[0].frames_to == 2
    assert desk.trouble.writes == 2
    assert len(await desk.stored()) == 2


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


async def test_elements_and_rows_keep_their_limits_whatever_the_characters(desk: Desk) -> None:
    rows: list[AppendFrames] = []
    write = desk.attempt.write

    async def spy(*changes: object) -> object:
        rows.extend(change for change in changes if isinstance(change, AppendFrames))
        return await write(*changes)  # type: ignore[arg-type]

    desk.attempt.write = spy  # type: ignore[method-assign, assignment]
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
    second.journal.begin_again(kept, reason="lease_expired", discarded_from="cursor")
    assert second.journal.log_bytes == 0
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


# The ring.


def numbered(*seqs: int) -> list[Frame]:
    return [Frame(seq, 1, "text", {"part": "p", "delta": str(seq)}) for seq in seqs]


async def test_a_ring_is_bounded_in_memory_and_keeps_the_newest() -> None:
    ring = Ring(1)
    ring.publish(numbered(*range(1, 1_001)), [1] * 1_000)
    assert not ring.reaches(0)
    kept = ring.since(900)
    assert [frame.seq for frame in kept] == list(range(901 + 100 - len(kept), 1_001))
    assert 10 <= len(kept) <= 100
    ring.publish(numbered(1_001), [300_000])
    assert [frame.seq for frame in ring.since(0)] == [1_001]


async def test_a_reader_within_the_ring_gets_what_is_behind_its_cursor() -> None:
    ring = Ring(5)
    assert not ring.reaches(3)
    assert ring.reaches(4)
    ring.publish(numbered(5, 6, 7), [1, 1, 1])
    assert [frame.seq for frame in ring.since(4)] == [5, 6, 7]
    assert [frame.seq for frame in ring.since(6)] == [7]
    assert not ring.since(7)
    assert ring.last_seq == 7


async def test_readers_of_a_ring_are_woken_by_news_and_by_its_end() -> None:
    ring = Ring(1)
    readers = [asyncio.ensure_future(ring.wait(60_000)) for _ in range(3)]
    await asyncio.sleep(0)
    ring.publish(numbered(1), [1])
    assert await within(asyncio.gather(*readers)) == [True] * 3
    late = asyncio.ensure_future(ring.wait(60_000))
    await asyncio.sleep(0)
    ring.close()
    assert await within(late)
    assert not await ring.wait(1)
