"""What a producer may yield, and what a turn amounts to while it streams."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from perdure.core.changes import SettleUsage
from perdure.core.frames import (
    Frame,
    data,
    event,
    reasoning,
    source,
    text,
    tool_call,
    tool_result,
    upstream_end,
    usage,
)
from perdure.errors import UsageError
from perdure.turn.parts import Content, frame_of


def updated(**data: Any) -> dict[str, Any]:
    return {"type": "message.part.updated", "data": data}


TEXT_PART = {"id": "p", "type": "text"}


@pytest.mark.parametrize(
    "frame",
    [
        text("a"),
        reasoning("a", "r"),
        tool_call("c", "n", {}),
        tool_result("c"),
        tool_result("c", error={"code": "x", "message": "y"}),
        source("u"),
        data("n", None),
        event({"type": "x"}),
        usage(tokens_in=1),
        upstream_end("stop"),
    ],
)
def test_every_frame_that_a_constructor_makes_may_be_yielded(frame: Frame) -> None:
    assert frame_of(frame) == frame


@pytest.mark.parametrize(
    ("item", "complaint"),
    [
        ("text", "not str"),
        (None, "not NoneType"),
        ({"data": {}}, "not dict"),
        ({"type": 7}, "not dict"),
        (Frame(0, 0, "completed", {}), "no frames of kind 'completed'"),
        (Frame(0, 0, "failed", {}), "no frames of kind 'failed'"),
        (Frame(0, 0, "restarted", {}), "no frames of kind 'restarted'"),
        (Frame(0, 0, "started", {}), "no frames of kind 'started'"),
        (Frame(0, 0, "nonsense", {}), "no frames of kind 'nonsense'"),
        (Frame(0, 0, "tool_call", {"call": "c"}), "lacks args, name"),
        (Frame(0, 0, "tool_result", {"call": "c"}), "needs a result or an error"),
        (Frame(0, 0, "source", {"url": "u"}), "lacks title"),
        (Frame(0, 0, "data", {"name": 7, "value": 1}), "name of a data frame"),
        (Frame(0, 0, "event", {"event": {"data": 1}}), "needs an event"),
        (Frame(0, 0, "usage", {"in": "many"}), "counts tokens in integers"),
        (Frame(0, 0, "usage", {"out": True}), "counts tokens in integers"),
        (Frame(0, 0, "upstream_end", {}), "lacks finish"),
    ],
)
def test_what_no_reader_could_be_shown_is_refused(item: object, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        frame_of(item)


def test_an_event_that_is_only_a_delta_becomes_text_that_merges() -> None:
    assert frame_of(updated(delta="a", part=TEXT_PART)) == text("a", "p")


def test_an_event_of_reasoning_stays_one_since_the_reference_takes_it_for_text() -> None:
    thought = updated(delta="a", part={"id": "r", "type": "reasoning"})
    assert frame_of(thought) == event(thought)


@pytest.mark.parametrize(
    "verbatim",
    [
        updated(delta="a"),
        updated(delta="", part=TEXT_PART),
        updated(delta="a", part=TEXT_PART, more=1),
        updated(delta="a", part={**TEXT_PART, "more": 1}),
        updated(delta="a", part={"id": "p", "type": "image"}),
        updated(delta="a", part={"id": 7, "type": "text"}),
        updated(delta=7, part=TEXT_PART),
        updated(part={**TEXT_PART, "text": "whole"}),
        {**updated(delta="a", part=TEXT_PART), "more": 1},
        {"type": "message.part.updated"},
        {"type": "message.part.updated", "data": [1]},
        {"type": "product.thing", "data": {"a": 1}},
    ],
)
def test_any_other_event_travels_verbatim(verbatim: Mapping[str, Any]) -> None:
    frame = frame_of(verbatim)
    assert frame.kind == "event"
    assert frame.data["event"] == verbatim


def parts_of(content: Content) -> list[Any]:
    parts: list[Any] = json.loads(f"[{','.join(content.part_texts)}]")
    return parts


def gathered(*items: Any) -> Content:
    content = Content()
    for seq, item in enumerate(items, 1):
        frame = frame_of(item)
        content.add(frame._replace(seq=seq))
    return content


@pytest.mark.parametrize(
    ("events", "final"),
    [
        ([updated(delta="a"), updated(delta="b")], "ab"),
        ([updated(delta="a"), updated(part={"type": "text", "text": "whole"})], "whole"),
        ([updated(delta="a"), updated(delta="", part={"type": "text", "text": "w"})], "w"),
        ([updated(delta="a", part={"type": "text", "text": "whole"})], "a"),
        ([updated(part={"type": "text", "text": ""}), updated(delta="b")], "b"),
        ([updated(delta="a"), updated(part={"type": "tool", "text": "x"})], "a"),
        ([updated(delta="a"), updated(part={"type": "text", "text": 7})], "a"),
        ([updated(delta="a"), {"type": "result", "data": {"finalText": "r"}}], "r"),
        ([updated(delta="a"), {"type": "result", "data": {"finalText": 7}}], "a"),
        ([updated(delta="a"), {"type": "result"}, {"type": "other", "data": {"delta": "x"}}], "a"),
    ],
)
def test_the_final_text_follows_the_rules_of_the_reference(events: list[Any], final: str) -> None:
    assert gathered(*events).text == final


def test_text_is_gathered_as_it_came_and_parts_by_their_first_appearance() -> None:
    content = gathered(text("a", "p"), text("b", "q"), text("c", "p"), reasoning("x", "p"))
    assert content.text == "abc"
    assert parts_of(content) == [
        {"k": "text", "part": "p", "d": "ac"},
        {"k": "text", "part": "q", "d": "b"},
        {"k": "reasoning", "part": "p", "d": "x"},
    ]
    assert content.spoken == 4


def test_what_is_no_content_becomes_no_part() -> None:
    content = gathered(usage(tokens_in=1), upstream_end("stop"))
    assert parts_of(content) == []
    assert content.spoken == 0


def test_what_calls_used_adds_up_and_what_nobody_said_stays_unknown() -> None:
    assert gathered(text("a", "p")).usage(0) is None
    said = gathered(
        usage(tokens_in=3, tokens_out=4, model="a", request_id="one"),
        usage(tokens_in=5, model="b", tokens_cached=0),
    )
    assert said.usage(2) == SettleUsage(2, model="b", tokens_in=8, tokens_out=4, tokens_cached=0)


def test_a_long_answer_is_gathered_in_linear_time() -> None:
    content = Content()
    for _ in range(50_000):
        content.add(Frame(1, 1, "event", {"event": updated(delta="ab")}))
        content.add(Frame(1, 1, "text", {"part": "p", "delta": "cd"}))
    assert len(content.text) == 200_000
