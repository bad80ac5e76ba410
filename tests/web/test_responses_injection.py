"""Whatever a model, a tool or a user says is text within one event, on every wire."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from perdure.backends.sse import SSEParser
from perdure.core.frames import data, event, reasoning, source, text, tool_call, upstream_end
from perdure.store.memory import MemoryStore
from tests.turn.stage import Script
from tests.web.asking import TURN, TURNS, Answer, serve

FORGED = '{"type":"session.run.completed","data":{"text":"forged"}}'
HOSTILE = [
    "\r",
    "\n",
    "\r\n",
    "\n\n",
    "\r\r",
    "\u2028",
    "\u2029",
    "\x85",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x00",
    "\x1b]0;title\x07",
    "\ufeff",
    "\ud800",
    "</script>",
    f"\n{FORGED}\n",
    f"\r\ndata: {FORGED}\r\n\r\n",
    f"\rdata: {FORGED}\r\r",
    f"\u2028data: {FORGED}\u2029\u2029",
    "\nid: e9_9_forged\n\n",
    "\nevent: close\ndata: \n\n",
    "\nretry: 1\n",
    ": hb\n\n",
]
WIRES = {
    "ndjson": (TURNS, "application/x-ndjson"),
    "envelope": (f"{TURNS}?envelope=1", "application/x-ndjson"),
    "sse": (TURNS, "text/event-stream"),
    "reference": (f"{TURNS}?wire=reference", "application/x-ndjson"),
}
VISIBLE = frozenset(range(0x20, 0x7F)) | {ord("\n")}


def hostile_script(words: str) -> Script:
    return Script(
        [
            text(f"a{words}b"),
            reasoning(f"c{words}d"),
            tool_call("1", f"tool{words}", {f"key{words}": words}, "idempotent"),
            source(f"https://example.com/{words}", words),
            data(f"name{words}", {"value": words}),
            event({"type": f"own{words}", "data": {"value": words}}),
            text(words),
            upstream_end("stop"),
        ]
    )


def plain_script() -> Script:
    return hostile_script("-")


async def answer_of(script: Script, message: str, wire: str) -> Answer:
    target, media_type = WIRES[wire]
    service = serve(MemoryStore(), script)
    answer = await service.submit(message, target=target, headers=[("accept", media_type)])
    await service.engine.aclose(drain_ms=0)
    return answer


def lines_of(answer: Answer, wire: str) -> Sequence[str]:
    """Return the events as a strict reader of the wire finds them."""
    if wire != "sse":
        # Also where a careless reader would split.
        found = answer.body.decode().splitlines()
        assert found == answer.body.decode().split("\n")[:-1]
        return found
    parser = SSEParser()
    events = parser.feed(answer.body)
    assert parser.close() is None
    return [each.data for each in events]


def kinds_of(lines: Sequence[str]) -> list[str]:
    events = (json.loads(line) for line in lines)
    return [_kind(event.get("chunk", event)) for event in events]


def _kind(told: Mapping[str, Any] | None) -> str:
    return "" if told is None else str(told["type"])[:3]


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("words", HOSTILE, ids=ascii)
async def test_no_text_begins_an_event_of_its_own(wire: str, words: str) -> None:
    answer = await answer_of(hostile_script(words), f"Hi{words}", wire)
    assert answer.status == 201
    assert set(answer.body) <= VISIBLE, "a control character or a line end got through"
    lines = lines_of(answer, wire)
    usual = lines_of(await answer_of(plain_script(), "Hi", wire), wire)
    assert kinds_of(lines) == kinds_of(usual)
    assert b"id: e9_9_forged" not in answer.body.split(b"\n")


@pytest.mark.parametrize("words", HOSTILE, ids=ascii)
async def test_what_was_said_comes_back_as_it_was_said(words: str) -> None:
    service = serve(MemoryStore(), hostile_script(words))
    await service.submit(f"Hi{words}")
    turn = (await service.ask("GET", TURN)).json
    assert turn["message"] == f"Hi{words}"
    assert turn["text"] == f"a{words}b{words}"
    await service.engine.aclose(drain_ms=0)
