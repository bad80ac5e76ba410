"""Pumping a backend's events: in a task of its own, so that a signal ends even one that hangs."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Any, Final, TypeVar, cast

from perdure.agent.calls import GRACE_MS, CutShort
from perdure.agent.cancel import CancelSignal
from perdure.errors import AgentRuntimeError, UsageError

T = TypeVar("T")

_END: Final = object()


async def pumped(
    iterate: Callable[[], AsyncIterator[T]], signal: CancelSignal, *, grace_ms: int = GRACE_MS
) -> AsyncGenerator[T, None]:
    """Yield what the iterator yields, in order; raise what it raises, and CutShort on a signal.

    The iterator lives in one task from its first item to its end, and is closed there: however
    this generator ends, the iterator has had `grace_ms` to clean up.
    """
    queue: asyncio.Queue[object] = asyncio.Queue(maxsize=1)

    async def pump() -> None:
        await _drain(_checked(iterate()), queue)

    work = asyncio.ensure_future(pump())
    fired = asyncio.ensure_future(signal.wait())
    try:
        while True:
            item = await _next(queue, work, fired)
            if item is _END:
                return
            yield cast("T", item)
    finally:
        fired.cancel()
        await _leave(work, grace_ms)


def _checked(events: object) -> AsyncIterator[object]:
    """Return what a backend's `stream` gave, if one can iterate over it. Raises UsageError."""
    if isinstance(events, AsyncIterable):
        return cast("AsyncIterator[object]", events)
    if inspect.iscoroutine(events):
        events.close()
    raise UsageError(
        f"stream must return an async iterator, not {type(events).__qualname__!r:.60}: let it "
        "`yield` its events, or make a backend of it by CallableBackend"
    )


async def _drain(events: AsyncIterator[object], queue: asyncio.Queue[object]) -> None:
    if hasattr(events, "aclose"):
        async with aclosing(cast("AsyncGenerator[object, None]", events)) as closing:
            async for event in closing:
                await queue.put(event)
    else:
        async for event in events:
            await queue.put(event)


async def _next(
    queue: asyncio.Queue[object], work: asyncio.Future[Any], fired: asyncio.Future[Any]
) -> object:
    """Return the next item, or the end. What was yielded before a failure comes before it."""
    if fired.done():
        raise CutShort
    if queue.empty() and not work.done():
        getting = asyncio.ensure_future(queue.get())
        try:
            await asyncio.wait({getting, work, fired}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not getting.done():
                getting.cancel()
        if fired.done():
            raise CutShort
        if getting.done() and not getting.cancelled():
            return getting.result()
    if not queue.empty():
        return queue.get_nowait()
    if work.cancelled():
        raise AgentRuntimeError("the backend cancelled itself")
    work.result()
    return _END


async def _leave(work: asyncio.Future[Any], grace_ms: int) -> None:
    """End the pump, and give it time to clean up; what it still does is nobody's concern."""
    if work.done():
        with suppress(Exception, asyncio.CancelledError):
            work.result()
        return
    work.cancel()
    work.add_done_callback(lambda over: over.cancelled() or over.exception())
    await asyncio.wait({work}, timeout=grace_ms / 1_000)
