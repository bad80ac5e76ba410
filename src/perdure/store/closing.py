"""What must be brought to rest before a store handle closes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Final

_rest: Final[dict[Hashable, set[Callable[[], Awaitable[None]]]]] = {}


def before_close(handle: Hashable, rest: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Have `rest` awaited before the handle closes; return what takes that back."""
    _rest.setdefault(handle, set()).add(rest)

    def forget() -> None:
        waiting = _rest.get(handle, set())
        waiting.discard(rest)
        if not waiting:
            _rest.pop(handle, None)

    return forget


async def bring_to_rest(handle: Hashable) -> None:
    """Await what was registered for the handle. A store calls it first when it is closed."""
    for rest in _rest.pop(handle, set()):
        await rest()
