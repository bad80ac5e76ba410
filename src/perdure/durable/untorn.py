"""Awaiting a write that a cancellation must not tear."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

logger = logging.getLogger("perdure.attempt")

T = TypeVar("T")


async def finish_even_if_cancelled(writing: Coroutine[Any, Any, T]) -> T:
    """Await a write; a caller who is cancelled, however often, still waits for its end."""
    task = asyncio.get_running_loop().create_task(writing)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _end_of(task)
        if not task.cancelled() and task.exception() is not None:
            logger.debug("a write failed while its caller was cancelled: %r", task.exception())
        raise


async def finish_regardless(writing: Coroutine[Any, Any, T]) -> T:
    """Await a write whose caller was cancelled already: no further cancellation is heard."""
    task = asyncio.get_running_loop().create_task(writing)
    await _end_of(task)
    return task.result()


async def _end_of(task: asyncio.Task[Any]) -> None:
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            continue  # The caller raises the first one.
