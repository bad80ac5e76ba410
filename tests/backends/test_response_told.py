"""Responses whose events may not all have come: the end of the whole one is the measure."""

from __future__ import annotations

from typing import Any

from perdure.core.frames import (
    fold_parts,
    text,
    text_of,
    tool_call,
    upstream_begin,
    upstream_end,
)
from tests.backends.model_server import Cut, ModelServer, reply, sse, tiny
from tests.backends.responding import (
    BEGUN,
    COUNTED,
    DONE,
    HANDLE,
    HELLO_FRAMES,
    USED,
    ask,
    ask_in_vain,
    backend_of,
    delta,
    event,
    response,
)


def output(*items: dict[str, Any]) -> dict[str, Any]:
    """Return the end of a response that repeats its whole output."""
    return event("response.completed", 9, response=response(usage=COUNTED, output=list(items)))


def message(written: str, **part: Any) -> dict[str, Any]:
    return {"type": "message", "content": [{"type": "output_text", "text": written, **part}]}


CALL = {"type": "function_call", "call_id": "c1", "name": "search", "arguments": '{"q": 1}'}


async def test_what_fell_into_a_gap_of_the_numbers_is_told_from_the_end(
    server: ModelServer,
) -> None:
    server.will(reply(sse(BEGUN, delta(1, "Hel"), output(message("Hello"), CALL))))
    assert await ask(backend_of(server)) == [
        upstream_begin(HANDLE),
        text("Hel"),
        text("lo"),
        tool_call("c1", "search", {"q": 1}),
        USED,
        upstream_end("tool_calls"),
    ]


async def test_a_gap_within_what_was_told_is_a_failure(server: ModelServer) -> None:
    told = [BEGUN, delta(1, "Hel"), delta(5, " you"), output(message("Hello you"))]
    server.will(reply(sse(*told)))
    frames, failure = await ask_in_vain(backend_of(server))
    assert frames == [upstream_begin(HANDLE), text("Hel"), text(" you"), USED]
    assert "left out a part" in str(failure)
    assert failure.retryable


async def test_a_gap_of_nothing_but_signs_of_life_is_harmless(server: ModelServer) -> None:
    told = [BEGUN, delta(1, "Hel"), delta(5, "lo"), output(message("Hello"))]
    server.will(reply(sse(*told)))
    assert await ask(backend_of(server)) == HELLO_FRAMES


async def test_what_a_joined_connection_leaves_out_is_told_from_the_end(
    server: ModelServer,
) -> None:
    server.will(
        reply(sse(BEGUN, delta(1, "Hel")), Cut()),
        reply(sse(delta(2, "l"), output(message("Hello")))),
    )
    frames = await ask(backend_of(server))
    assert text_of(fold_parts(frames)) == "Hello"


async def test_what_a_joined_connection_leaves_out_in_between_is_a_failure(
    server: ModelServer,
) -> None:
    end = {**output(message("Hello you")), "sequence_number": 3}
    server.will(reply(sse(BEGUN, delta(1, "Hel")), Cut()), reply(sse(delta(2, " you"), end)))
    _, failure = await ask_in_vain(backend_of(server))
    assert "left out a part" in str(failure)


async def test_where_nothing_is_missing_the_end_is_not_compared(server: ModelServer) -> None:
    told = [
        BEGUN,
        delta(1, "Hel"),
        delta(2, "lo"),
        {**output(message("HELLO")), "sequence_number": 3},
    ]
    server.will(reply(sse(*told)))
    assert await ask(backend_of(server)) == HELLO_FRAMES


async def test_an_image_of_some_megabytes_is_no_reason_to_lose_the_answer(
    server: ModelServer,
) -> None:
    drawn = {"type": "image_generation_call", "id": "ig_1", "result": "A" * 3_000_000}
    items = event("response.output_item.done", 2, item=drawn)
    told = sse(BEGUN, delta(1, "There."), items, DONE)
    server.will(reply(*tiny(told, 500_000)))
    assert (await ask(backend_of(server)))[1:] == [text("There."), USED, upstream_end("stop")]
