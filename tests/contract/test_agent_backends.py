"""Every execution backend passes every case of its contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any

import pytest

from perdure.agent.backend import AgentExecutionBackend, IterableBackend
from perdure.agent.callable_backend import CallableBackend
from perdure.agent.model_backend import ModelBackend, create_openai_compatible_backend
from perdure.agent.sandbox_backend import SandboxPromptBackend
from perdure.agent.stream_events import TextDeltaEvent
from perdure.backends.anthropic import AnthropicBackend
from perdure.backends.responses import OpenAIResponsesBackend
from perdure.backends.retry import BackendRetry
from perdure.backends.scripted import ScriptedBackend
from perdure.core import frames
from perdure.testing import (
    BACKEND_CASES,
    BackendLab,
    OpenBackend,
    Plan,
    PlannedAnswer,
    backend_conformance,
)
from perdure.testing.backends import BackendCase
from tests.backends import messaging
from tests.backends.model_server import Cut, Hang, ModelServer, Reply, Step, chunk, reply, sse
from tests.backends.responding import BEGUN, DONE, delta

ONCE = BackendRetry(tries_max=1, backoff_ms=0)
PIECES = sse(chunk(content="Hel"), chunk(content="lo"))
CALLED = sse(
    chunk(tool_calls=[{"index": 0, "id": "c-1", "function": {"name": "f", "arguments": "{}"}}])
)
USAGE = {
    "id": "chatcmpl-1",
    "model": "model-1-0613",
    "choices": [],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2},
}
COMPLETED = sse(chunk("tool_calls"), USAGE, "[DONE]")
RESPONDING = sse(BEGUN, delta(1, "Hel"), delta(2, "lo"))


class Again(list[Reply]):
    """Gives one reply again and again."""

    def pop(self, index: Any = 0) -> Reply:
        return self[0]


@asynccontextmanager
async def serving(plan: Plan, said: bytes, end: bytes) -> AsyncIterator[ModelServer]:
    rest: dict[Plan, Step] = {"answers": end, "fails": Cut(), "hangs": Hang()}
    async with ModelServer() as server:
        server.replies = Again([reply(said, rest[plan])])
        yield server


@asynccontextmanager
async def completions(plan: Plan) -> AsyncIterator[AgentExecutionBackend]:
    async with serving(plan, PIECES, CALLED + COMPLETED) as server:
        backend = create_openai_compatible_backend(
            api_key="sk-1", base_url=server.base_url, model="model-1", retry=ONCE
        )
        yield backend
        await backend.aclose()


@asynccontextmanager
async def responses(plan: Plan) -> AsyncIterator[AgentExecutionBackend]:
    async with serving(plan, RESPONDING, sse(DONE)) as server:
        model = OpenAIResponsesBackend(
            "sk-1", base_url=server.base_url, model="model-1", retry=ONCE
        )
        yield ModelBackend(model)
        await model.aclose()


@asynccontextmanager
async def messages(plan: Plan) -> AsyncIterator[AgentExecutionBackend]:
    said = messaging.wire(
        messaging.begun(),
        messaging.block(0, "text", text="Hel"),
        messaging.delta(0, "text_delta", text="lo"),
    )
    called = messaging.block(1, "tool_use", id="c-1", name="f", input={})
    end = messaging.wire(called, messaging.end(1), *messaging.ENDING)
    async with serving(plan, said, end) as server:
        model = AnthropicBackend("sk-1", base_url=server.base_url, model="model-1", retry=ONCE)
        yield ModelBackend(model)
        await model.aclose()


def rest_of(plan: Plan) -> Any:
    """Return what a script ends with."""
    return {
        "answers": frames.upstream_end("stop"),
        "fails": ConnectionError("the line is dead"),
        "hangs": asyncio.Event(),
    }[plan]


def scripted(plan: Plan) -> AbstractAsyncContextManager[AgentExecutionBackend]:
    script = [frames.text("Hel"), frames.reasoning("hm"), frames.text("lo"), rest_of(plan)]
    return nullcontext(ModelBackend(ScriptedBackend(script)))


def canned(plan: Plan) -> AbstractAsyncContextManager[AgentExecutionBackend]:
    if plan == "answers":
        return nullcontext(ModelBackend(ScriptedBackend()))
    return scripted(plan)


async def pieces(plan: Plan) -> AsyncIterator[str]:
    yield "Hel"
    yield "lo"
    rest = rest_of(plan)
    if isinstance(rest, Exception):
        raise rest
    if isinstance(rest, asyncio.Event):
        await rest.wait()


def iterable(plan: Plan) -> AbstractAsyncContextManager[AgentExecutionBackend]:
    async def stream(input: Any, context: Any) -> AsyncIterator[TextDeltaEvent]:
        async for piece in pieces(plan):
            yield TextDeltaEvent(text=piece)

    return nullcontext(IterableBackend("iterable", stream))


def function(plan: Plan) -> AbstractAsyncContextManager[AgentExecutionBackend]:
    return nullcontext(CallableBackend(lambda input: pieces(plan), kind="function"))


def sandbox(plan: Plan) -> AbstractAsyncContextManager[AgentExecutionBackend]:
    async def prompted(box: Any, message: str, context: Any) -> AsyncIterator[Any]:
        async for piece in pieces(plan):
            yield {"type": "message.part.updated", "data": {"text": piece}}
        yield {"type": "tool_call", "data": {"name": "find", "id": "c", "args": {}}}
        yield {"type": "tool_result", "data": {"name": "find", "id": "c", "result": 1}}
        yield {"type": "result", "data": {"finalText": "Hello"}}

    return nullcontext(SandboxPromptBackend(lambda input, context: {}, prompted))


BACKENDS: dict[str, OpenBackend] = {
    "canned": canned,
    "completions": completions,
    "function": function,
    "iterable": iterable,
    "messages": messages,
    "responses": responses,
    "sandbox": sandbox,
    "scripted": scripted,
}

PLANNED: dict[str, PlannedAnswer] = {
    "completions": PlannedAnswer(text="Hello", tools=("f",), tokens_in=9, tokens_out=2),
    "function": PlannedAnswer(text="Hello", tools=()),
    "iterable": PlannedAnswer(text="Hello", tools=()),
    "messages": PlannedAnswer(text="Hello", tools=("f",), tokens_in=15, tokens_out=7),
    "responses": PlannedAnswer(text="Hello", tools=(), tokens_in=9, tokens_out=2),
    "sandbox": PlannedAnswer(text="Hello", tools=("find",)),
    "scripted": PlannedAnswer(text="Hello", tools=()),
}
"""What each of them answers; what a canned backend says is its own affair."""


@pytest.mark.parametrize("case", BACKEND_CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("name", BACKENDS)
async def test_backend_contract(name: str, case: BackendCase) -> None:
    await case(BackendLab(BACKENDS[name], answer=PLANNED.get(name)))


@pytest.mark.parametrize("open_backend", [scripted, sandbox], ids=lambda each: each.__name__)
async def test_no_backend_skips_a_case(open_backend: Callable[[Plan], Any]) -> None:
    assert await backend_conformance(open_backend) == len(BACKEND_CASES)


def test_the_cases_are_sentences_of_their_own() -> None:
    names = [case.__name__ for case in BACKEND_CASES]
    assert len(set(names)) == len(names) > 20
    assert all(name.count("_") >= 3 for name in names)
