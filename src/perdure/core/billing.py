"""Where a backend says that a request was lost that may be billed, before it makes another one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

Recorder = Callable[[str], Awaitable[None]]
"""Records that a request to the provider of this name was lost."""

recorder: Recorder | None = None
"""Who records it: the steps, once they are imported. Outside of a step it records nothing."""


async def request_lost(provider: str) -> None:
    """Record that nobody will know what this request has cost; return when that is durable."""
    if recorder is not None:
        await recorder(provider)
