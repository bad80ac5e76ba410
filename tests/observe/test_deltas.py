"""Deltas of a stream leave masked as one text: however a credential is cut, none of it is seen."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from perdure.observe.collector import create_runtime_stream_event_collector
from perdure.observe.credentials import mask_text
from perdure.observe.deltas import HELD_CHARACTERS_MAX, SanitizedStream
from perdure.observe.sse import sse_stream
from perdure.observe.telemetry import RuntimeTelemetryOptions, telemetry_client, telemetry_log

WORD = "hunter2canary99"
KEY = "sk-" + f"proj-{WORD}{WORD}"
TEXTS = [
    f"The key is {KEY}, keep it.",
    f"Its password is {WORD} and no other.",
    f'{{"password": "two words {WORD}", "n": 3}}',
    f"Authorization: Token {WORD}\nAccept: */*",
    f"curl -u ann:{WORD} https://a.example",
    f"https://ann:{WORD}@db.example/x and on",
    f"-----BEGIN PRIVATE KEY-----\n{WORD}\n{WORD}\n-----END PRIVATE KEY-----\nover",
]


def delta(text: str, kind: str = "text_delta") -> dict[str, Any]:
    return {"type": kind, "text": text}


def sent(stream: SanitizedStream, *events: dict[str, Any]) -> list[dict[str, Any]]:
    return [*itertools.chain.from_iterable(map(stream.take, events)), *stream.rest()]


def words(events: list[dict[str, Any]]) -> str:
    return "".join(event.get("text", "") for event in events)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize("text", TEXTS)
def test_a_credential_is_masked_however_it_is_cut(text: str, size: int) -> None:
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    events = sent(SanitizedStream(telemetry_client()), *map(delta, pieces))
    assert words(events) == mask_text(text)
    assert WORD not in words(events)
    assert len(events) == len(pieces)


@pytest.mark.parametrize("text", TEXTS)
def test_a_credential_is_masked_wherever_the_only_cut_is(text: str) -> None:
    for at in range(len(text)):
        events = sent(SanitizedStream(telemetry_client()), delta(text[:at]), delta(text[at:]))
        assert words(events) == mask_text(text), at


def test_a_delta_waits_for_no_more_than_its_word() -> None:
    stream = SanitizedStream(telemetry_client())
    assert [
        words(stream.take(delta(text))) for text in ("Hel", "lo ", "wor", "ld. ", "更", "多")
    ] == [
        "",
        "Hello ",
        "",
        "world. ",
        "更",
        "多",
    ]
    assert stream.waiting == []


def test_what_is_no_delta_lets_go_what_waits_and_nothing_is_overtaken() -> None:
    stream = SanitizedStream(telemetry_client())
    call = {"type": "tool_call", "toolName": "t", "toolCallId": "c"}
    assert stream.take(delta("a pass")) == []
    assert [event["type"] for event in stream.take(call)] == ["text_delta", "tool_call"]
    assert stream.take(delta("think", "reasoning_delta")) == []
    assert [event["type"] for event in stream.take(delta("x "))] == [
        "reasoning_delta",
        "text_delta",
    ]


def test_a_long_text_does_not_wait_for_ever_and_what_is_known_of_it_stays_masked() -> None:
    stream = SanitizedStream(telemetry_client())
    image = "iVBORw0KGgo" * 1_000
    shown = sent(stream, *(delta(image[at : at + 7]) for at in range(0, len(image), 7)))
    assert words(shown) == image
    head = "-----BEGIN RSA PRIVATE KEY-----\n"
    lines = [f"{WORD}{number:04}{WORD}\n" for number in range(200)]
    whole = [head, *lines, "-----END RSA PRIVATE KEY-----\n", "and more "]
    assert sum(map(len, lines)) > 2 * HELD_CHARACTERS_MAX
    taken = [stream.take(delta(piece)) for piece in whole]
    assert any(taken[:-2]), "it waits for ever"
    assert words([*itertools.chain.from_iterable(taken), *stream.rest()]) == "[redacted]\nand more "


def test_without_words_nothing_waits() -> None:
    stream = SanitizedStream(telemetry_log())
    assert stream.take(delta("pass")) == [delta("[redacted]")]


def test_a_delta_is_cut_as_any_text() -> None:
    stream = SanitizedStream(RuntimeTelemetryOptions(include_text=True, text_characters_max=3))
    assert words(sent(stream, delta("abcdef "))) == "abc…"


def test_a_collector_keeps_deltas_masked_as_one_text_and_none_is_missing() -> None:
    collector = create_runtime_stream_event_collector(telemetry_client())
    for piece in ("Use sk-pr", f"oj-{WORD}", f"{WORD} now", " or"):
        collector.on_event(delta(piece))
        assert WORD not in str(collector.events)
    assert words(collector.events) == "Use [redacted] now or"
    assert [event["type"] for event in collector.events] == ["text_delta"] * 4
    collector.on_event({"type": "final", "status": "completed", "text": f"Use {KEY} now or"})
    assert [event["text"] for event in collector.events][-2:] == [" or", "Use [redacted] now or"]
    few = create_runtime_stream_event_collector(telemetry_client(), events_max=2)
    for piece in ("a ", "b ", "c ", "d"):
        few.on_event(delta(piece))
    assert words(few.events) == "c d"


async def test_a_stream_of_events_is_masked_as_one_text_and_each_keeps_its_id() -> None:
    async def events() -> AsyncIterator[dict[str, Any]]:
        for number, piece in enumerate(("Use sk-pr", f"oj-{WORD}", f"{WORD} now", " or")):
            yield {"id": number, **delta(piece)}

    def id_of(event: Any) -> str:
        return str(event["id"])

    frames = sse_stream(events(), id_of=id_of, retry=5)
    told = b"".join([frame async for frame in frames]).decode()
    assert WORD not in told
    assert [line for line in told.splitlines() if line.startswith(("id", "retry"))] == [
        "id: 0",
        "retry: 5",
        "id: 1",
        "id: 2",
        "id: 3",
    ]
    assert told.count('"text":') == 4


async def test_what_waits_is_sent_before_a_failure_is_told() -> None:
    async def events() -> AsyncIterator[dict[str, Any]]:
        yield delta("Hel")
        raise ValueError("it broke")

    frames = sse_stream(events())
    assert b'"text":"Hel"' in await anext(frames)
    with pytest.raises(ValueError, match="it broke"):
        await anext(frames)
