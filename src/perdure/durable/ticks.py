"""The moments at which all live turns of a loop write what lingers, with one timer for them all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final
from weakref import WeakValueDictionary

from perdure.core.limits import LINGER_MS


class Ticks:
    """Calls back at moments that are the same for everybody on a loop.

    Turns that write at the same moments share a commit and a round of the loop; a hundred of them
    would else have a hundred of each, and a hundred timers.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._due: dict[int, list[Callable[[int], None]]] = {}

    def after_next(self, call: Callable[[int], None]) -> int:
        """Call `call` with the number of the tick behind the next one, which is returned.

        That is after half of LINGER_MS at least, and after the whole of it at most.
        """
        tick_s = LINGER_MS / 2_000
        tick = int(self.loop.time() // tick_s) + 2
        calls = self._due.get(tick)
        if calls is None:
            calls = self._due[tick] = []
            self.loop.call_at(tick * tick_s, self._come, tick)
        calls.append(call)
        return tick

    def _come(self, tick: int) -> None:
        for call in self._due.pop(tick):
            call(tick)


_known: Final[WeakValueDictionary[int, Ticks]] = WeakValueDictionary()


def ticks_here() -> Ticks:
    """Return the ticks of the running loop, which live as long as somebody has them."""
    loop = asyncio.get_running_loop()
    ticks = _known.get(id(loop))
    if ticks is None:
        # It keeps its loop, so no other one can have that id while it is known.
        ticks = _known[id(loop)] = Ticks(loop)
    return ticks
