"""Any function as an execution backend: whatever it returns or yields becomes events."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any, cast

from perdure.agent.backend import (
    AgentBackendContext,
    AgentBackendInput,
    AgentStartContext,
    IterableBackend,
)
from perdure.agent.model_backend import event_of_frame
from perdure.agent.sandbox_backend import event_of_raw
from perdure.agent.sessions import RuntimeSession
from perdure.agent.stream_events import (
    BACKEND_EVENTS,
    BackendStreamEvent,
    LlmCallEvent,
    TextDeltaEvent,
)
from perdure.core.frames import Frame
from perdure.errors import AgentRuntimeError


class CallableBackend(IterableBackend):
    """A backend made of one function, whatever it returns.

    The function gets the AgentBackendInput and, if it takes two arguments, the AgentBackendContext.
    It may be plain or async, and return (or, as a generator, be)

    - an async iterator or iterable, which is closed when it is left, if it has `aclose`,
    - an iterable, such as a list or a generator, whose code runs on the event loop,
    - one item alone.

    An item is a text, an event of a backend, a frame (`perdure.frames`), or a mapping with the
    `type` and members of an event on the wire, of which unknown types are passed over. Anything
    else fails the task. `kind` is the function's name where it is not given.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        kind: str | None = None,
        start: Callable[[AgentBackendInput, AgentStartContext], Any] | None = None,
        resume: Callable[[RuntimeSession, AgentBackendInput, AgentStartContext], Any] | None = None,
        stop: Callable[[RuntimeSession, str], Any] | None = None,
    ) -> None:
        named: str = getattr(function, "__name__", type(function).__name__)
        super().__init__(kind or named, self._tell, start=start, resume=resume, stop=stop)
        self._function = function
        self._takes_context = _takes_two(function)

    async def _tell(
        self, input: AgentBackendInput, context: AgentBackendContext
    ) -> AsyncGenerator[BackendStreamEvent, None]:
        given = (input, context) if self._takes_context else (input,)
        made = self._function(*given)
        if inspect.isawaitable(made):
            made = await made
        said = _Said(self.kind)
        async with aclosing(_items(made)) as items:
            async for item in items:
                if (event := said.event_of(item)) is not None:
                    yield event


class _Said:
    """What a function has said so far, which some of its items build on."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._texts: list[str] = []
        self._tools: dict[str, str] = {}

    def event_of(self, item: object) -> BackendStreamEvent | None:
        """Return the event that an item is; None for one that says nothing."""
        event = self._read(item)
        if isinstance(event, TextDeltaEvent):
            self._texts.append(event.text)
        return event

    def _read(self, item: object) -> BackendStreamEvent | None:
        if isinstance(item, str):
            return TextDeltaEvent(text=item) if item else None
        if isinstance(item, BACKEND_EVENTS):
            return cast("BackendStreamEvent", item)
        if isinstance(item, Frame):
            return self._used(item) if item.kind == "usage" else event_of_frame(item, self._tools)
        if isinstance(item, Mapping):
            return event_of_raw(cast("Mapping[str, Any]", item), told=self._texts)
        raise AgentRuntimeError(
            f"the backend {self._kind!r} gave {type(item).__name__}, which is no text, event, "
            "frame or mapping"
        )

    def _used(self, frame: Frame) -> LlmCallEvent | None:
        counted = frame.data
        if "in" not in counted and "out" not in counted:
            return None
        model = counted.get("model") or self._kind
        return LlmCallEvent(
            model=model,
            tokens_in=counted.get("in"),
            tokens_out=counted.get("out"),
            tokens_cached=counted.get("cached"),
            tokens_reasoning=counted.get("reasoning"),
            provider=counted.get("provider"),
            request_id=counted.get("request"),
            tokens_cache_written=counted.get("cache_written"),
        )


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError):
        return False
    return True


async def _items(made: object) -> AsyncGenerator[object, None]:
    """Yield the items of what a function returned, or that itself where it is one item."""
    if isinstance(made, AsyncIterable):
        iterator = aiter(cast("AsyncIterable[object]", made))
        async with AsyncExitStack() as stack:
            if (close := getattr(iterator, "aclose", None)) is not None:
                stack.push_async_callback(close)
            async for item in iterator:
                yield item
    elif isinstance(made, Iterable) and not isinstance(made, str | bytes | Mapping | Frame):
        for item in cast("Iterable[object]", made):
            yield item
            # An iterable never waits: whoever wants to end it has to get a turn.
            await asyncio.sleep(0)
    else:
        yield made
