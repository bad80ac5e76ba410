"""Any function does the work of a streamed task, whatever it returns."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from perdure.agent.backend import AgentBackendContext, AgentBackendInput
from perdure.agent.callable_backend import CallableBackend
from perdure.agent.cancel import CancelSignal
from perdure.agent.stream import run_agent_task_stream
from perdure.agent.stream_events import (
    LlmCallEvent,
    ReasoningDeltaEvent,
    TextDeltaEvent,
    ToolCallEvent,
    ToolResultEvent,
)
from perdure.core import frames
from perdure.core.records import AgentTaskSpec
from tests.agent.streaming import final_of, read, types

TASK = AgentTaskSpec("t-9", "Say hello")


async def told_by(function: Callable[..., Any]) -> list[Any]:
    """Return the events of a backend made of a function, without those of the runtime."""
    events = await read(run_agent_task_stream(TASK, CallableBackend(function)))
    assert final_of(events).status == "completed", final_of(events)
    names = ("text_delta", "reasoning_delta", "tool_call", "tool_result", "llm_call")
    return [event for event in events if event.type in names]


async def text_of(function: Callable[..., Any]) -> str | None:
    return final_of(await read(run_agent_task_stream(TASK, CallableBackend(function)))).text


async def generated(input: AgentBackendInput) -> AsyncIterator[str]:
    yield "Hel"
    yield ""
    yield "lo"


async def returned(input: AgentBackendInput) -> AsyncIterator[str]:
    return generated(input)


def iterated(input: AgentBackendInput) -> Iterator[str]:
    yield from ("Hel", "lo")


class Iterating:
    """An iterable that is no iterator."""

    async def __aiter__(self) -> AsyncIterator[str]:
        yield "Hel"
        yield "lo"


async def alone(input: AgentBackendInput) -> str:
    return "Hello"


@pytest.mark.parametrize(
    "function",
    [
        generated,
        returned,
        iterated,
        alone,
        lambda input: Iterating(),
        lambda input: ["Hel", "lo"],
        lambda input: ("Hel", "lo"),
        lambda input: "Hello",
        lambda input: frames.text("Hello"),
        lambda input: {"type": "text_delta", "text": "Hello"},
        lambda input: [TextDeltaEvent(text="Hello")],
        functools.partial(lambda greeting, input: greeting, "Hello"),
    ],
)
async def test_whatever_a_function_returns_is_told(function: Callable[..., Any]) -> None:
    assert await text_of(function) == "Hello"


async def test_events_frames_and_mappings_may_be_mixed() -> None:
    def mixed(input: AgentBackendInput) -> Iterator[Any]:
        yield ReasoningDeltaEvent(text="Hm.")
        yield frames.tool_call("c", "look", {"at": 2})
        yield frames.tool_result("c", "an onion")
        yield "Hel"
        yield {"type": "result", "data": {"finalText": "Hello"}}
        yield {"type": "of.somebody.else"}
        yield frames.usage(model="m", tokens_in=3)
        yield frames.usage(model="m")
        yield frames.upstream_end("stop")

    told = await told_by(mixed)
    assert types(told) == "reasoning_delta tool_call tool_result text_delta text_delta llm_call"
    assert isinstance(told[1], ToolCallEvent)
    assert isinstance(told[2], ToolResultEvent)
    assert (told[2].tool_name, told[2].result) == ("look", "an onion")
    assert (told[3].text, told[4].text) == ("Hel", "lo")
    assert isinstance(told[5], LlmCallEvent)
    assert (told[5].model, told[5].tokens_in, told[5].tokens_out) == ("m", 3, None)


async def test_a_function_of_two_arguments_gets_the_context_too() -> None:
    async def answer(input: AgentBackendInput, context: AgentBackendContext) -> str:
        return f"{input.last_message}, {context.session.backend}"

    assert await text_of(answer) == "Say hello, answer"


@pytest.mark.parametrize(
    "given", [None, 7, b"Hello", [None], object()], ids=lambda given: type(given).__name__
)
async def test_what_says_nothing_fails_the_task(given: Any) -> None:
    events = await read(run_agent_task_stream(TASK, CallableBackend(lambda input: given)))
    assert final_of(events).status == "failed"
    assert "no text, event, frame or mapping" in final_of(events).reason


async def test_a_failure_of_the_function_is_that_of_the_task() -> None:
    def broken(input: AgentBackendInput) -> Iterator[str]:
        yield "Hel"
        raise ConnectionError("the line is dead")

    final = final_of(await read(run_agent_task_stream(TASK, CallableBackend(broken))))
    assert (final.status, final.reason, final.text) == ("failed", "the line is dead", "Hel")


@pytest.mark.parametrize("iterating", [False, True], ids=["generator", "iterable"])
async def test_an_iterator_is_closed_when_it_is_left(iterating: bool) -> None:
    closed = asyncio.Event()

    async def generate() -> AsyncIterator[str]:
        try:
            yield "Hel"
            await asyncio.Event().wait()
        finally:
            closed.set()

    class Again:
        def __aiter__(self) -> AsyncIterator[str]:
            return generate()

    backend = CallableBackend(lambda input: Again() if iterating else generate(), kind="left")
    async with aclosing(run_agent_task_stream(TASK, backend)) as events:
        async for event in events:
            if event.type == "text_delta":
                break
    assert closed.is_set()


async def test_a_signal_ends_an_iterable_that_never_waits() -> None:
    signal = CancelSignal()

    def forever(input: AgentBackendInput) -> Iterator[str]:
        while True:
            yield "a"

    stream = run_agent_task_stream(TASK, CallableBackend(forever), signal=signal)
    async with asyncio.timeout(10):
        async for event in stream:
            if event.type == "text_delta":
                signal.cancel("enough")
            elif event.type == "final":
                assert event.status == "aborted"


def test_the_kind_is_the_name_of_the_function() -> None:
    assert CallableBackend(generated).kind == "generated"
    assert CallableBackend(functools.partial(generated)).kind == "partial"
    assert CallableBackend(generated, kind="mine").kind == "mine"
