"""Where a backend says what is billed: what an answer used, and that a request was lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from perdure.core.records import JsonValue

Recorder = Callable[[str], Awaitable[None]]
"""Records that a request to the provider of this name was lost."""

recorder: Recorder | None = None
"""Who records it: the steps, once they are imported. Outside of a step it records nothing."""

Asked = Callable[[], Callable[[Mapping[str, JsonValue]], None]]
"""Is told that a backend is asked, and gives what takes the data of its usage frames."""

counter: Callable[[], Asked | None] | None = None
"""Who counts here: the step that is running, if its call is recorded; set by the steps."""


def counted() -> Asked | None:
    """Return what counts the use of a call that is made here; None where nobody does."""
    return None if counter is None else counter()


async def request_lost(provider: str) -> None:
    """Record that nobody will know what this request has cost; return when that is durable."""
    if recorder is not None:
        await recorder(provider)
