"""What follows behind what readers have of an answer, however the provider cuts it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.backends.joining import join
from perdure.core.frames import (
    Frame,
    fold_parts,
    reasoning,
    text,
    tool_call,
    tool_result,
    upstream_begin,
    upstream_end,
    usage,
)

CALL, RESULT = tool_call("c", "search", {"q": 1}), tool_result("c", {"found": 1})
ENDING = [usage(tokens_in=1), upstream_end("stop")]


class Answer:
    """An answer that is told from its beginning; `taken` counts its frames, `closed` its ends."""

    def __init__(self, *frames: Frame, begins: bool = True) -> None:
        self.taken = 0
        self.closed = 0
        self._frames = [upstream_begin("h"), *frames] if begins else frames

    async def frames(self) -> AsyncIterator[Frame]:
        try:
            for frame in self._frames:
                self.taken += 1
                yield frame
        finally:
            self.closed += 1


def named(frames: Sequence[Frame]) -> list[Frame]:
    """Name the parts as a journal does: by kind is enough here."""
    return [
        frame._replace(data={**frame.data, "part": frame.kind}) if "delta" in frame.data else frame
        for frame in frames
    ]


async def behind(answer: Answer, *seen: Frame) -> list[Frame] | None:
    joined = await join(answer.frames(), fold_parts(named(seen)))
    return None if joined is None else [frame async for frame in joined]


def text_in(frames: Sequence[Frame], kind: str = "text") -> str:
    return "".join(frame.data["delta"] for frame in frames if frame.kind == kind)


async def test_what_readers_have_is_skipped_and_the_rest_follows() -> None:
    answer = Answer(reasoning("hm"), text("Hel"), CALL, RESULT, text("lo"), *ENDING)
    rest = await behind(answer, reasoning("hm"), text("Hel"), CALL)
    assert rest == [RESULT, text("lo"), *ENDING]
    assert answer.closed == 1


async def test_nothing_is_skipped_where_readers_have_nothing() -> None:
    assert await behind(Answer(text("a"), *ENDING)) == [text("a"), *ENDING]


async def test_no_more_is_taken_before_the_answer_is_known_to_be_the_same() -> None:
    answer = Answer(text("a"), text("b"), *ENDING)
    joined = await join(answer.frames(), fold_parts(named([text("a")])))
    assert joined is not None
    assert answer.taken == 2
    await joined.aclose()


async def test_a_whole_answer_leaves_its_end() -> None:
    assert await behind(Answer(text("a"), *ENDING), text("a")) == ENDING


async def test_usage_that_comes_before_the_text_is_not_lost() -> None:
    answer = Answer(usage(tokens_in=3), text("a"), upstream_end("stop"))
    assert await behind(answer, text("a")) == [usage(tokens_in=3), upstream_end("stop")]


@pytest.mark.parametrize(
    "answer",
    [
        Answer(text("Help"), *ENDING),
        Answer(text("He")),
        Answer(reasoning("Hello"), *ENDING),
        Answer(CALL, *ENDING),
        Answer(),
        Answer(text("Hello"), *ENDING, begins=False),
    ],
    ids=["other text", "too short", "other kind", "no text", "nothing", "no begin"],
)
async def test_another_answer_is_not_joined_but_closed(answer: Answer) -> None:
    assert await behind(answer, text("Hello")) is None
    assert answer.closed == 1


async def test_other_arguments_are_another_answer() -> None:
    assert await behind(Answer(tool_call("c", "search", {"q": 2}), *ENDING), CALL) is None


async def test_an_answer_that_cannot_be_had_is_closed() -> None:
    closed: list[int] = []

    async def broken() -> AsyncIterator[Frame]:
        try:
            yield upstream_begin("h")
            raise OSError("gone")
        finally:
            closed.append(1)

    with pytest.raises(OSError, match="gone"):
        await join(broken(), fold_parts(named([text("a")])))
    assert closed == [1]


@given(st.text(min_size=1), st.lists(st.integers(0, 30)), st.lists(st.integers(0, 30)), st.data())
async def test_the_cuts_make_no_difference(
    whole: str, first: list[int], second: list[int], data: st.DataObject
) -> None:
    def cut(cuts: list[int]) -> list[Frame]:
        places = sorted({0, len(whole), *(place for place in cuts if place < len(whole))})
        return [text(whole[start:end]) for start, end in pairwise(places)]

    seen = cut(first)[: data.draw(st.integers(0, len(first)))]
    rest = await behind(Answer(*cut(second), *ENDING), *seen)
    assert rest is not None
    assert text_in(seen) + text_in(rest) == whole
    assert rest[-2:] == ENDING
