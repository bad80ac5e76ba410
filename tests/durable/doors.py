"""A store that answers its first claim late, so that a test can do something meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from perdure.store.protocol import RunStore
from perdure.testing.crashing import Process, crashing

T = TypeVar("T")

CLAIMS = frozenset({"start_or_resume", "claim_due"})


class Doors(Process):
    """A process whose first claim is granted, and answered when `answer` is set.

    `late_ms`: or so much later, by itself.
    """

    def __init__(self, *, late_ms: int | None = None) -> None:
        super().__init__()
        self.granted = asyncio.Event()
        self.answer = asyncio.Event()
        self._late_ms = late_ms

    async def write(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        granted = await super().write(name, call)
        if name in CLAIMS and not self.granted.is_set():
            self.granted.set()
            if self._late_ms is None:
                await self.answer.wait()
            else:
                await asyncio.sleep(self._late_ms / 1_000)
        return granted

    def before(self, store: RunStore) -> RunStore:
        """Return `store` behind these doors."""
        return crashing(store, self)
