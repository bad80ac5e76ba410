"""Server-sent events: the grammar, round trips through a parser, and what may leave."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.agent.knowledge import KnowledgeRequirement
from perdure.agent.readiness import score_knowledge_readiness
from perdure.backends.sse import SSEParser
from perdure.core.jsonvalue import decode_value
from perdure.errors import NotSerializableError
from perdure.observe.sse import (
    encode_server_sent_event,
    encode_server_sent_event_bytes,
    readiness_server_sent_event,
    runtime_stream_server_sent_event,
    sse_stream,
)
from perdure.observe.telemetry import telemetry_log

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_12_r1_the_vector_of_the_specification() -> None:
    text = encode_server_sent_event({"type": "tick"}, id="a\nb", event="run", retry=1500.9)
    assert text == 'id: a b\nevent: run\nretry: 1500\ndata: {"type":"tick"}\n\n'


@pytest.mark.parametrize("retry", [-1, float("nan"), float("inf"), "soon", True])
def test_12_r3_a_retry_that_is_no_length_is_left_out(retry: Any) -> None:
    assert "retry" not in encode_server_sent_event("x", retry=retry)


def test_12_r2_an_empty_id_or_event_is_left_out() -> None:
    assert encode_server_sent_event("x", id="", event="") == "data: x\n\n"


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_12_r2_a_line_end_in_an_id_or_event_becomes_a_space_each(end: str) -> None:
    written = encode_server_sent_event("x", id=f"a{end}b", event=f"c{end}d")
    gap = " " * len(end)
    assert written == f"id: a{gap}b\nevent: c{gap}d\ndata: x\n\n"


def test_12_r7_words_are_written_as_they_are() -> None:
    assert encode_server_sent_event({"é": "日本"}) == 'data: {"é":"日本"}\n\n'


def test_12_r4_r7_a_text_is_split_at_every_kind_of_line_end() -> None:
    text = encode_server_sent_event("a\r\nb\rc\nd")
    assert text == "data: a\ndata: b\ndata: c\ndata: d\n\n"


def test_12_r7_nul_in_an_id_does_not_make_a_parser_drop_it() -> None:
    parser = SSEParser()
    [event] = parser.feed(encode_server_sent_event_bytes("x", id="a\0b"))
    assert event.id == "a b"


@pytest.mark.parametrize("data", [float("nan"), {"x": float("inf")}, {"x": object()}, {1, 2}])
def test_12_r7_what_has_no_json_is_refused(data: Any) -> None:
    with pytest.raises(NotSerializableError):
        encode_server_sent_event(data)


@given(VALUES.filter(lambda value: not isinstance(value, str)))
def test_every_value_comes_back_out_of_a_parser(value: Any) -> None:
    parser = SSEParser()
    [event] = parser.feed(encode_server_sent_event_bytes(value))
    assert decode_value(event.data) == value


def test_half_a_character_does_not_break_the_stream() -> None:
    [event] = SSEParser().feed(encode_server_sent_event_bytes({"text": "a\ud800b"}))
    assert decode_value(event.data) == {"text": "a\ud800b"}
    [event] = SSEParser().feed(encode_server_sent_event_bytes("a\ud800b"))
    assert event.data == "a\ufffdb"


def test_12_r5_a_readiness_report_is_an_event() -> None:
    report = score_knowledge_readiness("t", [KnowledgeRequirement("k", "the address of a user")])
    [shown] = SSEParser().feed(readiness_server_sent_event(report).encode())
    [logged] = SSEParser().feed(readiness_server_sent_event(report, telemetry_log()).encode())
    assert decode_value(shown.data)["type"] == "readiness"
    assert shown.event == "message"
    assert "address" in shown.data
    assert "address" not in logged.data


def test_12_r6_an_event_of_a_stream_shows_the_owner_its_text_and_a_log_nothing() -> None:
    event = {"type": "text_delta", "text": "Hello"}
    assert "Hello" in runtime_stream_server_sent_event(event)
    assert "Hello" not in runtime_stream_server_sent_event(event, telemetry_log())


def text_of(event: Any) -> str:
    return str(event["text"])


async def test_a_stream_of_events_is_sent_as_it_comes_and_closed_with_its_reader() -> None:
    closed: list[bool] = []

    async def events() -> AsyncIterator[object]:
        try:
            for text in "abc":
                yield {"type": "text_delta", "text": text}
        finally:
            closed.append(True)

    parser = SSEParser()
    stream: Any = sse_stream(events(), id_of=text_of, retry=50)
    [first] = parser.feed(await anext(stream))
    [second] = parser.feed(await anext(stream))
    assert (first.id, second.id, parser.retry_ms) == ("a", "b", 50)
    await stream.aclose()
    assert closed == [True]
