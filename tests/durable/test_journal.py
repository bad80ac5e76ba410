"""The journal: frames are numbered, merged, persisted, and shown only then."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core import frames
from perdure.core.changes import CompleteStep, Release
from perdure.core.frames import (
    EncodedEvent,
    Frame,
    RowBuilder,
    decode_row,
    encoded_event,
    text,
    tool_call,
    upstream_end,
)
from perdure.core.limits import (
    FLUSH_FRAMES,
    LINGER_MS,
)
from perdure.errors import NotSerializableError
from perdure.store.protocol import RunStore
from tests.durable.desk import Desk
from tests.durable.handles import until, within

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


@pytest.mark.parametrize(
    "value", [{"type": "x"}, {"type": "µ", "data": {"z": [1, None], "a": "\u2028"}, "more": 2.5}]
)
async def test_a_reader_is_sent_the_very_text_of_an_event_that_was_stored(
    desk: Desk, value: dict[str, object]
) -> None:
    (shown,) = desk.journal.append(frames.event(value))
    assert isinstance(shown.data, EncodedEvent)
    assert shown.data.text == json.dumps(value, separators=(",", ":"))
    await desk.journal.write()
    assert [frame.data for frame in await desk.stored()] == [shown.data] == [{"event": value}]


def test_a_row_of_events_and_deltas_says_how_long_it_is_and_gives_them_back() -> None:
    row = RowBuilder(5)
    told = [{"type": "x", "data": {"µ": [number]}} for number in range(3)]
    row.add_event(encoded_event(told[0]).text)
    row.add_event(encoded_event(told[1]).text)
    row.add_delta("text", "p", "a")
    row.add_event(encoded_event(told[2]).text)
    row.add_element('{"k":"upstream_end","finish":"stop"}')
    body = row.body()
    assert row.size_bytes == len(body)
    found = decode_row(5, 2, body)
    assert [f.seq for f in found] == list(range(5, 10))
    assert [f.data["event"] for f in found if f.kind == "event"] == told
    assert [f.kind for f in found] == ["event", "event", "text", "event", "upstream_end"]


async def test_an_event_that_somebody_has_added_to_has_no_text_of_its_own(desk: Desk) -> None:
    (shown,) = desk.journal.append(Frame(0, 0, "event", {"before": 1, "event": {"type": "x"}}))
    assert not isinstance(shown.data, EncodedEvent)
    await desk.journal.write()
    assert [frame.data for frame in await desk.stored()] == [shown.data]


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
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = desk.spy_on_rows(monkeypatch)
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


async def test_the_first_event_that_is_a_token_does_not_linger(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.durable.ticks.LINGER_MS", 60_000)
    token = frames.event({"type": "message.part.updated", "data": {"delta": "a", "more": 1}})
    desk.journal.append(frames.event({"type": "message.updated", "data": {}}))
    await until(lambda: len(desk.published) == 1)
    desk.journal.append(token)
    await until(lambda: len(desk.published) == 2)
    desk.journal.append(token)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(desk.published) == 2


async def test_many_frames_do_not_linger(desk: Desk) -> None:
    gate = await desk.hold_up()
    for _ in range(FLUSH_FRAMES):
        desk.journal.append(text("t"))
    gate.set()
    desk.trouble.gate = None
    await until(lambda: len(desk.published) == FLUSH_FRAMES + 2)
    assert desk.trouble.writes == 3


async def test_many_bytes_do_not_linger(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.durable.ticks.LINGER_MS", 60_000)
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
