"""What every way of driving a producer shares: how it is opened, asked at its end, and left."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

from perdure.durable.calls import GRACE_MS as GRACE_MS
from perdure.errors import UsageError
from perdure.turn.hooks import call_hook

logger = logging.getLogger("perdure.turn")


async def opened(made: Any) -> tuple[Any, AsyncIterator[Any]]:
    """Return the producer that a `produce` made, perhaps by a coroutine, and its items."""
    producer = await made if inspect.isawaitable(made) else made
    return producer, getattr(producer, "stream", producer)


def closing(items: Any) -> AbstractAsyncContextManager[Any]:
    """Close `items` at the end of the block, where they can be closed."""
    return contextlib.aclosing(items) if hasattr(items, "aclose") else contextlib.nullcontext()


async def final_text_of(producer: Any) -> str | None:
    """Return the producer's own final text; None if it has none. Raises UsageError."""
    final_text = getattr(producer, "final_text", None)
    if not callable(final_text):
        return None
    text = await call_hook(final_text)
    if text is not None and not isinstance(text, str):
        raise UsageError(f"final_text() returned {type(text).__name__}, not str")
    return text


async def time_to_clean_up(work: asyncio.Task[Any]) -> None:
    """Return when a producer that was interrupted is over, or took too long."""
    if not work.done():
        await asyncio.wait((work,), timeout=GRACE_MS / 1_000)


def tell_if_left_behind(work: asyncio.Task[Any], stored_id: str) -> None:
    """Say that a producer goes on although it was interrupted: nobody waits for it any more."""
    if not work.done():
        logger.warning(
            "the producer of turn %r does not let itself be cancelled: it is left behind",
            stored_id,
        )
