"""How the cases of backends ask: by a whole stream, or the backend alone; and what they look at."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from typing import Any, Final, cast

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
from perdure.agent.stream_events import FinalEvent, TextDeltaEvent
from perdure.core.records import AgentTaskSpec
from perdure.testing.lab import check

TASK: Final = AgentTaskSpec("conformance", "Answer a question")
HELLO: Final = AgentBackendInput(task=TASK, message="Hello")

_BEGUN: Final = (
    "task_start readiness_start readiness_end session_(created|resumed) backend_start"
    "( text_delta| reasoning_delta| tool_call| tool_result| llm_call| artifact| proposal_created)*"
)
WHOLE: Final = re.compile(f"{_BEGUN} backend_end task_end final")
FAILED: Final = re.compile(f"{_BEGUN} backend_error task_end final")


async def told(
    backend: AgentExecutionBackend,
    *,
    asked: AgentBackendInput = HELLO,
    session: SessionChoice | None = None,
) -> list[Any]:
    """Return the events of a streamed task."""
    stream = run_agent_task_stream(asked.task, backend, input=asked, session=session)
    return [event async for event in stream]


async def said(backend: AgentExecutionBackend, asked: AgentBackendInput = HELLO) -> list[Any]:
    """Return what the backend alone yields, in a session that it has begun."""
    session = await begun(backend, asked)
    known = start_context(asked.task)
    context = AgentBackendContext(
        task=known.task, knowledge=known.knowledge, signal=known.signal, session=session
    )
    events: Any = backend.stream(asked, context)
    async with closing(events):
        return [event async for event in events]


async def begun(backend: AgentExecutionBackend, asked: AgentBackendInput = HELLO) -> RuntimeSession:
    """Return a session as the backend begins it."""
    start = getattr(backend, "start", None)
    if start is None:
        return new_session(backend.kind)
    return cast("RuntimeSession", await awaited(start(asked, start_context(asked.task))))


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


def grammatical(events: Sequence[Any], grammar: re.Pattern[str]) -> None:
    """Fail unless the types of the events, in order, fit the grammar."""
    types = " ".join(event.type for event in events)
    check(grammar.fullmatch(types), f"these events fit no grammar: {types}")


def text(events: Sequence[Any]) -> str:
    """Return the text of an answer."""
    return "".join(event.text for event in events if isinstance(event, TextDeltaEvent))


def final(events: Sequence[Any]) -> FinalEvent:
    """Return the last event of a stream."""
    return cast("FinalEvent", events[-1])


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
            events: Any = self._backend.stream(input, context)
            async with closing(events):
                async for event in events:
                    yield event
        finally:
            self._open -= 1
