"""The SSE parser against a plain reading of the standard, however the bytes are cut."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.backends.sse import EVENT_CHARS_MAX, SSEEvent, SSEParser
from perdure.errors import ValueTooLargeError

SAMPLE = (
    "\ufeff: a comment\r\n"
    "retry: 1500\r"
    "id: 1\n"
    "event: greeting\r\n"
    "data: Grüß dich 👋\r\n"
    "data\n"
    "data:  indented\r"
    "\r\n"
    "unknown: field\n"
    "data: \ufeffsecond\n"
    "\n\n\r\n"
    "id\r\n"
    "data:third\r\r"
    "event: without data\n\n"
    "data: dropped\n"
).encode() + b"\n\xffdata: \xe2\x82\n\ndata: open"


def events_of(chunks: Iterable[bytes]) -> list[SSEEvent]:
    parser = SSEParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def expected_events(stream: bytes) -> list[SSEEvent]:
    """Read `stream` as the standard is written: line by line, without any chunks."""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    *lines, _ = re.split(r"\r\n|\n|\r", text)
    events: list[SSEEvent] = []
    data, event, last_id = "", "", ""
    for line in lines:
        if not line:
            if data:
                events.append(SSEEvent(data[:-1], event or "message", last_id))
            data, event = "", ""
            continue
        name, colon, value = line.partition(":")
        if colon and value[:1] == " ":
            value = value[1:]
        if name == "data":
            data += value + "\n"
        elif name == "event":
            event = value
        elif name == "id" and "\0" not in value:
            last_id = value
    return events


def test_the_sample_is_read_as_the_standard_says() -> None:
    assert events_of([SAMPLE]) == [
        SSEEvent("Grüß dich 👋\n\n indented", "greeting", "1"),
        SSEEvent("\ufeffsecond", id="1"),
        SSEEvent("third"),
        SSEEvent("dropped"),
    ]


def test_a_cut_at_every_position_changes_nothing() -> None:
    whole = events_of([SAMPLE])
    for first in range(len(SAMPLE) + 1):
        assert events_of([SAMPLE[:first], SAMPLE[first:]]) == whole


def test_a_stream_may_come_byte_by_byte() -> None:
    assert events_of(bytes([byte]) for byte in SAMPLE) == events_of([SAMPLE])


MARKS = (b"\r", b"\n", b"\r\n", b":", b" ", b"\0", b"\xef\xbb\xbf", b"\xff", b"\xf0\x9f")
FIELDS = (b"data", b"data:", b"event:", b"id:", b"retry:", b"a", "é".encode(), "\u2028".encode())
PIECES = st.sampled_from(MARKS + FIELDS)


@given(st.lists(PIECES | st.binary(max_size=3), max_size=60).map(b"".join), st.data())
def test_any_bytes_in_any_chunks_give_what_the_standard_says(
    stream: bytes, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    bounds = [0, *cuts, len(stream)]
    chunks = [stream[start:end] for start, end in pairwise(bounds)]
    assert events_of(chunks) == expected_events(stream)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_an_event_is_there_as_soon_as_its_blank_line_is(end: bytes) -> None:
    parser = SSEParser()
    assert parser.feed(b"data: a" + end) == []
    assert parser.feed(end[:1]) == [SSEEvent("a")]
    assert parser.feed(end[1:]) == []


def test_an_empty_data_field_is_an_event() -> None:
    assert events_of([b"data\n\ndata:\n\n"]) == [SSEEvent(""), SSEEvent("")]


def test_only_one_space_after_the_colon_is_dropped() -> None:
    assert events_of([b"data:  a \n\n"]) == [SSEEvent(" a ")]


def test_a_field_name_counts_with_its_spaces_and_case() -> None:
    assert events_of([b"Data: a\ndata : b\n data: c\n\n"]) == []


def test_line_separators_of_unicode_are_text() -> None:
    text = "a\u2028b\u2029c\x0bd\x0ce\x85f"
    assert events_of([f"data: {text}\n\n".encode()]) == [SSEEvent(text)]


def test_only_the_first_byte_order_mark_is_dropped() -> None:
    mark = "\ufeff".encode()
    assert events_of([mark + mark + b"data: a\n\n"]) == []
    assert events_of([mark, b"data: a\n\n"]) == [SSEEvent("a")]


def test_an_id_with_a_nul_is_ignored() -> None:
    assert events_of([b"id: 1\nid: 2\0\ndata: a\n\n"]) == [SSEEvent("a", id="1")]


def test_an_id_counts_once_its_event_is_complete() -> None:
    parser = SSEParser()
    parser.feed(b"id: 1\ndata: a\n\nid: 2\ndata: b\n")
    assert parser.last_event_id == "1"
    parser.feed(b"\nid: 3\n\n")
    assert parser.last_event_id == "3"


@pytest.mark.parametrize(
    ("value", "retry_ms"),
    [
        ("0", 0),
        ("1500", 1500),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("²", None),
        ("٣", None),
        ("9" * 5_000, None),
    ],
)
def test_retry_takes_ascii_digits_only(value: str, retry_ms: int | None) -> None:
    parser = SSEParser()
    parser.feed(f"retry: {value}\n".encode())
    assert parser.retry_ms == retry_ms


@pytest.mark.parametrize("stream", [b"data: open", b"data: open\n", b"data: open\r"])
def test_close_hands_out_the_event_without_a_blank_line(stream: bytes) -> None:
    parser = SSEParser()
    assert parser.feed(b"id: 1\n\nid: 2\n" + stream) == []
    assert parser.close() == SSEEvent("open", id="2")
    assert parser.last_event_id == "1"


@pytest.mark.parametrize("stream", [b"", b"data: a\n\n", b"data: a\r\n\r", b": comment", b"id: 1"])
def test_close_has_nothing_when_nothing_is_open(stream: bytes) -> None:
    parser = SSEParser()
    parser.feed(stream)
    assert parser.close() is None


def test_close_shows_a_character_that_is_cut() -> None:
    parser = SSEParser()
    parser.feed("data: 👋".encode()[:-1])
    assert parser.close() == SSEEvent("\ufffd")


@pytest.mark.parametrize(
    "stream",
    [b"data: 34567\n\n", b"data: 0\ndata: 1\ndata:  3\n\n", b": 345678901", b"x" * 11],
    ids=["one line", "many lines", "a comment", "no line end"],
)
def test_an_event_over_the_limit_is_refused_however_it_is_cut(stream: bytes) -> None:
    def read(first: int) -> None:
        parser = SSEParser(event_chars_max=10)
        parser.feed(stream[:first])
        parser.feed(stream[first:])

    for first in range(len(stream) + 1):
        with pytest.raises(ValueTooLargeError, match="longer than 10 characters"):
            read(first)


def test_an_event_within_the_limit_passes_and_frees_its_room() -> None:
    parser = SSEParser(event_chars_max=10)
    for _ in range(100):
        assert parser.feed(b"data: 3456\n: 345\n\n") == [SSEEvent("3456")]


def test_the_limit_leaves_room_for_large_answers() -> None:
    large = "x" * (EVENT_CHARS_MAX - 6)
    assert events_of([f"data: {large}\n\n".encode()]) == [SSEEvent(large)]
