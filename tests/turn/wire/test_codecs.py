"""The wires: bytes of NDJSON, of its envelope, and of server-sent events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perdure.backends.sse import SSEParser
from perdure.errors import UsageError
from perdure.turn.wire.codecs import WIRES, codec_for

EVENT = {"type": "t", "data": {"b": 1, "a": "é\u2028\n\0\ud800"}}
LINE = '{"type":"t","data":{"b":1,"a":"\\u00e9\\u2028\\n\\u0000\\ud800"}}'
CURSOR = "0001_0000000001_abcdef"


def test_ndjson_is_one_event_a_line() -> None:
    codec = codec_for("ndjson")
    assert codec.encode(EVENT, CURSOR) == f"{LINE}\n".encode()
    assert codec.heartbeat() == b""
    assert codec.content_type == "application/x-ndjson"


@pytest.mark.parametrize("cursor", [CURSOR, None])
def test_the_envelope_adds_the_cursor(cursor: str | None) -> None:
    codec = codec_for("envelope")
    told = json.dumps(cursor)
    assert codec.encode(EVENT, cursor) == f'{{"id":{told},"chunk":{LINE}}}\n'.encode()
    assert codec.heartbeat() == b'{"id":null,"chunk":null}\n'


def test_server_sent_events_carry_the_cursor_as_their_id() -> None:
    codec = codec_for("sse")
    assert codec.encode(EVENT, CURSOR) == f"id: {CURSOR}\ndata: {LINE}\n\n".encode()
    assert codec.encode(EVENT, None) == f"data: {LINE}\n\n".encode()
    assert codec.heartbeat() == b": hb\n\n"
    assert codec.content_type == "text/event-stream"


@pytest.mark.parametrize("wire", sorted(WIRES))
def test_no_text_breaks_a_line(wire: str) -> None:
    written = codec_for(wire).encode(EVENT, CURSOR)
    assert written.isascii()
    assert len(written.strip().splitlines()) == (2 if wire == "sse" else 1)


def test_what_a_browser_reads_is_what_was_written() -> None:
    codec = codec_for("sse")
    parser = SSEParser()
    found: list[Any] = []
    for cursor in (CURSOR, None):
        found.extend(parser.feed(codec.encode(EVENT, cursor) + codec.heartbeat()))
    assert [json.loads(one.data) for one in found] == [EVENT, EVENT]


def test_a_wire_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="known: ndjson, envelope, sse"):
        codec_for("carrier pigeon")
