"""The calls of a run that took a position and have not returned."""

from __future__ import annotations

import asyncio
import inspect
import logging
import weakref
from collections.abc import Coroutine
from typing import Any, Final, TypeVar, cast

logger = logging.getLogger("perdure.calls")

T = TypeVar("T")

GRACE_MS: Final = 5_000
"""How long work that is interrupted may take to clean up before it is left behind."""


class OpenCalls:
    """Which positions of a run are waited for, and by which asyncio tasks."""

    def __init__(self) -> None:
        self._calls: dict[int, weakref.ref[Coroutine[Any, Any, Any]] | None] = {}
        self._tasks: dict[int, asyncio.Task[object] | None] = {}
        self._owed: set[asyncio.Task[Any]] = set()

    def opened(self, position: int) -> None:
        """Note that a call took this position."""
        self._calls[position] = None

    def watch(self, call: Coroutine[Any, Any, object], position: int) -> None:
        """Note the call that answers for this position, which may be dropped unbegun."""
        self._calls[position] = weakref.ref(call)

    def watched(self, call: Coroutine[Any, Any, T], *positions: int) -> Coroutine[Any, Any, T]:
        """Return the call that answers for these positions, which may be dropped unbegun."""
        for position in positions:
            self.watch(call, position)
        return call

    def works(self, position: int) -> None:
        """Note that the current asyncio task works for this position.

        Raises the CancelledError that it is owed: a step whose result was recorded already has
        kept it back, but the time limit around it still holds.
        """
        self._tasks[position] = task = asyncio.current_task()
        if task is not None and task in self._owed:
            self._owed.discard(task)
            if is_cancelled():
                raise asyncio.CancelledError

    def owe_cancellation(self) -> None:
        """Note that the current asyncio task was cancelled, and goes on for now."""
        task = asyncio.current_task()
        if task is not None:
            self._owed.add(task)

    def answered(self, position: int) -> None:
        """Note that the call which took this position returns."""
        self._calls.pop(position, None)
        if self._tasks:  # A replayed step has none.
            self._tasks.pop(position, None)

    @property
    def count(self) -> int:
        """How many calls have not returned.

        One that was cancelled, or forgotten, before it began does not count: it never returns.
        """
        for position, call in list(self._calls.items()):
            if call is not None and _is_dropped(call()):
                del self._calls[position]
        return len(self._calls)

    async def close(self) -> None:
        """Cancel the asyncio tasks that still work, but for the current one, and wait for them.

        One that does not let itself be cancelled is left behind after a while.
        """
        stragglers = {task for task in self._tasks.values() if task is not None}
        stragglers.discard(cast("asyncio.Task[object]", asyncio.current_task()))
        for task in stragglers:
            task.cancel()
        if stragglers:
            await asyncio.wait(stragglers, timeout=GRACE_MS / 1_000)


def note_failure(work: asyncio.Task[Any]) -> None:
    """Retrieve what an asyncio task raised that was left behind: nobody else asks how it ended."""
    if not work.cancelled() and work.exception() is not None:
        logger.debug("what was left behind has ended: %r", work.exception())


def is_cancelled() -> bool:
    """Return whether somebody cancels this asyncio task: a body may raise the error by itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _is_dropped(call: Coroutine[Any, Any, Any] | None) -> bool:
    return call is None or inspect.getcoroutinestate(call) == inspect.CORO_CLOSED
