"""What some providers of chat completions do in a way of their own, and is read all the same."""

from __future__ import annotations

import pytest

from perdure.core.frames import reasoning, text, tool_call, upstream_end
from tests.backends.completing import calls, fragment, read, tool_frames
from tests.backends.model_server import chunk, sse


def test_calls_that_share_an_index_and_have_no_ids_are_told_apart_by_whole_arguments() -> None:
    found = tool_frames(
        calls(fragment('{"day": 1}', index=0, id="", name="look")),
        calls(fragment('{"day": 2}', index=0, id="", name="look")),
        calls(fragment('{"at":', index=0, name="go"), fragment("3}", index=0)),
    )
    told = [(frame.data["name"], frame.data["args"]) for frame in found]
    assert told == [("look", {"day": 1}), ("look", {"day": 2}), ("go", {"at": 3})]
    assert len({frame.data["call"] for frame in found}) == 3


def test_a_name_that_comes_with_every_fragment_begins_no_other_call() -> None:
    assert tool_frames(
        calls(fragment('{"a":', index=0, id="a", name="f")),
        calls(fragment('{"b": 1}}', index=0, name="f")),
        calls(fragment("", index=0, name="f")),
    ) == [tool_call("a", "f", {"a": {"b": 1}})]


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_a_call_that_was_cut_off_before_its_arguments_is_none_without_any(finish: str) -> None:
    frames = read(
        sse(
            calls(fragment("", index=0, id="a", name="now")),
            calls(fragment("", index=1, id="b", name="delete")),
            chunk(finish),
        )
    )
    assert frames[:2] == [tool_call("a", "now", {}), tool_call("b", "delete", "")]


def test_content_in_parts_is_text_and_thoughts() -> None:
    thinking = [{"type": "text", "text": "Hm, "}, {"type": "text", "text": "so"}]
    told = [
        [{"type": "thinking", "thinking": thinking}, {"type": "reference", "reference_ids": [1]}],
        [{"type": "thinking", "thinking": "plain"}, {"type": "text", "text": "It "}],
        "is.",
    ]
    frames = read(sse(*[chunk(content=each) for each in told], chunk("stop")))
    assert frames == [
        reasoning("Hm, so"),
        reasoning("plain"),
        text("It "),
        text("is."),
        upstream_end("stop"),
    ]


def test_a_character_that_two_deltas_share_is_told_whole() -> None:
    halves = sse(chunk(content="Hi \ud83d"), chunk(content="\udc4b!"), chunk("stop"))
    assert read(halves)[:2] == [text("Hi "), text("👋!")]


def test_a_character_that_two_fragments_share_is_whole_in_the_arguments() -> None:
    assert tool_frames(
        calls(fragment('{"wave": "\ud83d', index=0, id="a", name="f")),
        calls(fragment('\udc4b"}', index=0)),
    ) == [tool_call("a", "f", {"wave": "👋"})]
