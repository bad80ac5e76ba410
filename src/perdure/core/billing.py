"""Where a backend says what is billed: whom it asks, what an answer used, that one was lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from perdure.core.records import JsonValue

Recorder = Callable[[str], Awaitable[None]]
"""Records that a request to the provider of this name was lost."""

recorder: Recorder | None = None
"""Who records it: the steps, once they are imported. Outside of a step it records nothing."""

Asked = Callable[[], Callable[[Mapping[str, JsonValue]], None]]
"""Is told that a backend is asked, and gives what takes the data of its usage frames."""

Counter = Callable[[str, str | None], Asked | None]
"""Is told the provider and the model of a call, and gives who counts it, if anybody does."""

counter: Counter | None = None
"""Who counts here: the step that is running, if its call is recorded; set by the steps."""


def counted(provider: str, model: str | None) -> Asked | None:
    """Say whom a call that is made here asks; return what counts its use, None where nobody does.

    A call of which nothing else is ever heard has these names in the ledger.
    """
    return None if counter is None else counter(provider, model)


async def request_lost(provider: str) -> None:
    """Record that nobody will know what this request has cost; return when that is durable."""
    if recorder is not None:
        await recorder(provider)
