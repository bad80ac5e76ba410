"""Time limits for what happens token by token, which cost no timer each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """Calls `ring` once the moment that it was last set to has come.

    Setting it to a later moment, and clearing it, touch no timer: one that is too early looks what
    is due by then. Timers of the loop, one for each token, cost as much as the token itself.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._due_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0
        """When the timer goes off: in Pyodide it cannot be asked."""

    def set(self, delay_ms: float) -> None:
        """Ring in `delay_ms`, and not before, whatever it was set to."""
        due_s = self._due_s = self._loop.time() + delay_ms / 1_000
        if self._timer is not None and self._timer_s > due_s:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._start(due_s)

    def clear(self) -> None:
        """Do not ring."""
        self._due_s = None

    def close(self) -> None:
        """Do not ring, and leave no timer behind."""
        self._due_s = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        due_s, self._timer = self._due_s, None
        if due_s is None:
            return
        if due_s > self._loop.time():
            self._start(due_s)
            return
        self._due_s = None
        self._ring()

    def _start(self, due_s: float) -> None:
        self._timer_s = due_s
        self._timer = self._loop.call_at(due_s, self._look)
