"""How the cases of backends ask: by a whole stream, or the backend alone; and what they look at."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from typing import Any, Final, NamedTuple, cast

from perdure.agent.backend import (
    AgentBackendContext,
    AgentBackendInput,
    AgentExecutionBackend,
    AgentStartContext,
)
from perdure.agent.cancel import CancelSignal
from perdure.agent.readiness import score_knowledge_readiness
from perdure.agent.session_life import SessionChoice
from perdure.agent.sessions import RuntimeSession, new_session
from perdure.agent.stream import run_agent_task_stream
from perdure.agent.stream_events import (
    FinalEvent,
    LlmCallEvent,
    ReasoningDeltaEvent,
    TextDeltaEvent,
    ToolCallEvent,
    ToolResultEvent,
    event_to_wire,
)
from perdure.core.records import AgentTaskSpec
from perdure.testing.conforming import in_time
from perdure.testing.lab import check

TASK: Final = AgentTaskSpec("conformance", "Answer a question")
HELLO: Final = AgentBackendInput(task=TASK, message="Hello")

SILENCE_S: Final = 0.1
"""What is not told so long behind a piece of text will not be told."""

_BEGUN: Final = (
    "task_start readiness_start readiness_end session_(created|resumed) backend_start"
    "( text_delta| reasoning_delta| tool_call| tool_result| llm_call| artifact| proposal_created)*"
)
WHOLE: Final = re.compile(f"{_BEGUN} backend_end task_end final")
FAILED: Final = re.compile(f"{_BEGUN} backend_error task_end final")


class Gist(NamedTuple):
    """What an answer comes to, however its text was cut: without ids and times."""

    text: str
    reasoning: str
    tools: list[tuple[str, Any]]
    """Each call with its arguments, and each result, in order."""
    usage: list[tuple[str, int | None, int | None]]
    """Model and tokens of each call."""


async def told(
    backend: AgentExecutionBackend,
    *,
    asked: AgentBackendInput = HELLO,
    session: SessionChoice | None = None,
) -> list[Any]:
    """Return the events of a streamed task."""

    async def read() -> list[Any]:
        stream = run_agent_task_stream(asked.task, backend, input=asked, session=session)
        return [event async for event in stream]

    return await in_time(read(), f"an answer of the backend {backend.kind!r:.60}")


async def said(backend: AgentExecutionBackend, asked: AgentBackendInput = HELLO) -> list[Any]:
    """Return what the backend alone yields, in a session that it has begun."""
    session = await begun(backend, asked)

    async def read() -> list[Any]:
        async with closing(streamed(backend, session, asked)) as events:
            return [event async for event in events]

    return await in_time(read(), f"an answer of the backend {backend.kind!r:.60}")


def streamed(
    backend: AgentExecutionBackend, session: RuntimeSession, asked: AgentBackendInput = HELLO
) -> Any:
    """Return what the backend gives as its stream, in this session."""
    known = start_context(asked.task)
    context = AgentBackendContext(
        task=known.task, knowledge=known.knowledge, signal=known.signal, session=session
    )
    return backend.stream(asked, context)


async def begun(backend: AgentExecutionBackend, asked: AgentBackendInput = HELLO) -> RuntimeSession:
    """Return a session as the backend begins it."""
    start = getattr(backend, "start", None)
    if start is None:
        return new_session(backend.kind)
    begin = awaited(start(asked, start_context(asked.task)))
    return cast("RuntimeSession", await in_time(begin, "the begin of a session"))


def start_context(task: AgentTaskSpec = TASK) -> AgentStartContext:
    """Return what a backend knows when a session is to be begun."""
    report = score_knowledge_readiness(task.id, ())
    return AgentStartContext(task=task, knowledge=report, signal=CancelSignal())


def closing(events: Any) -> AbstractAsyncContextManager[Any]:
    """Close an iterator that can be closed."""
    return aclosing(events) if hasattr(events, "aclose") else nullcontext(events)


async def awaited(value: Any) -> Any:
    """Return what a plain or async hook returned."""
    return await value if inspect.isawaitable(value) else value


async def read_to_silence(events: AsyncIterator[Any]) -> tuple[list[Any], asyncio.Task[None]]:
    """Return what came until there was text and then silence, and the task that reads on."""
    came: list[Any] = []
    has_text = asyncio.Event()

    async def read() -> None:
        async for event in events:
            came.append(event)
            if event.type == "text_delta":
                has_text.set()

    reading = asyncio.create_task(read())
    texts = asyncio.ensure_future(has_text.wait())

    async def wait() -> None:
        await asyncio.wait({reading, texts}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({reading}, timeout=SILENCE_S)

    try:
        await in_time(wait(), "the first text of an answer that is to hang")
        check(not reading.done(), f"an answer that is to hang has ended: {_shown(came)}")
    except AssertionError:
        reading.cancel()
        raise
    finally:
        texts.cancel()
    return came, reading


def grammatical(events: Sequence[Any], grammar: re.Pattern[str]) -> None:
    """Fail unless the types of the events, in order, fit the grammar."""
    check(
        grammar.fullmatch(" ".join(event.type for event in events)),
        f"these events fit no grammar: {_shown(events)}",
    )


def _shown(events: Sequence[Any]) -> str:
    types = " ".join(event.type for event in events)
    reasons = [event.reason for event in events if isinstance(event, FinalEvent)]
    return f"{types} ({reasons[-1]})" if reasons else types


def text(events: Sequence[Any]) -> str:
    """Return the text of an answer."""
    return "".join(event.text for event in events if isinstance(event, TextDeltaEvent))


def gist(events: Sequence[Any]) -> Gist:
    """Return what an answer comes to."""
    tools: list[tuple[str, Any]] = []
    for event in events:
        if isinstance(event, ToolCallEvent | ToolResultEvent):
            wire = event_to_wire(event)
            tools.append((f"{event.type} {event.tool_name}", wire.get("args", wire.get("result"))))
    calls = [event for event in events if isinstance(event, LlmCallEvent)]
    return Gist(
        text=text(events),
        reasoning="".join(each.text for each in events if isinstance(each, ReasoningDeltaEvent)),
        tools=tools,
        usage=[(call.model, call.tokens_in, call.tokens_out) for call in calls],
    )


def final(events: Sequence[Any]) -> FinalEvent:
    """Return the last event of a stream."""
    return cast("FinalEvent", events[-1])


def session_of(events: Sequence[Any]) -> RuntimeSession:
    """Return the session that a stream worked in; fail if it had none."""
    end = final(events)
    if end.session is None:
        raise AssertionError(f"no session was begun: {end.reason}")
    return end.session


class Watched:
    """A backend, and whether every call of it is over."""

    def __init__(self, backend: AgentExecutionBackend) -> None:
        self.kind = backend.kind
        self._backend = backend
        self._open = 0
        for name in ("start", "resume", "stop"):
            if getattr(backend, name, None) is not None:
                setattr(self, name, getattr(backend, name))

    @property
    def is_over(self) -> bool:
        return self._open == 0

    async def stream(
        self, input: AgentBackendInput, context: AgentBackendContext, /
    ) -> AsyncIterator[Any]:
        self._open += 1
        try:
            async with closing(self._backend.stream(input, context)) as events:
                async for event in events:
                    yield event
        finally:
            self._open -= 1
