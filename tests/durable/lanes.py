"""Bodies of steps that run side by side, and what is seen of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any


class Lanes:
    """Bodies that wait to be let go, and count how many of them are inside at one time."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.inside = 0
        self.most = 0
        self.interrupted: list[str] = []
        self.go_on = asyncio.Event()

    def body(self, name: str) -> tuple[str, Callable[[], Any]]:
        return name, partial(self._pass, name)

    def bodies(self, count: int) -> list[tuple[str, Callable[[], Any]]]:
        return [self.body(f"branch {number}") for number in range(count)]

    async def _pass(self, name: str) -> str:
        self.begun.append(name)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await self.go_on.wait()
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.interrupted.append(name)
            raise
        finally:
            self.inside -= 1
        return name.upper()
