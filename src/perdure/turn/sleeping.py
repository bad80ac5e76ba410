"""Turns that wait for an event: each frees its worker, and memory where too many of them wait."""

from __future__ import annotations

import asyncio

from perdure.core.limits import SLEEPERS_MAX
from perdure.turn.live import LiveTurn


class Sleepers:
    """The turns of one engine that wait for an event in this process, and those attended to.

    `is_swept`: a worker of this process looks for turns that may go on. Then one that waits need
    not be kept: of more than SLEEPERS_MAX the one that has waited longest is let go.
    """

    def __init__(self, *, is_swept: bool) -> None:
        self.is_swept = is_swept
        self._turns: dict[LiveTurn, None] = {}
        self._attended: dict[LiveTurn, asyncio.Future[None]] = {}

    def add(self, turn: LiveTurn) -> None:
        """Take note of a turn that has just begun to wait."""
        attended = self._attended.pop(turn, None)
        if attended is not None and not attended.done():
            attended.set_result(None)
        self.discard(turn)
        self._turns[turn] = None
        if self.is_swept and len(self._turns) > SLEEPERS_MAX:
            self._let_go()

    def discard(self, turn: LiveTurn) -> None:
        """Forget a turn that is over."""
        self._turns.pop(turn, None)

    def _let_go(self) -> None:
        """Let the turn go that has waited longest, if still too many wait."""
        # Some went on since they were noted, and have not waited again.
        self._turns = {turn: None for turn in self._turns if turn.is_asleep}
        if len(self._turns) > SLEEPERS_MAX:
            # Whoever sees its event replays it; its readers follow the store.
            oldest = next(iter(self._turns))
            self.discard(oldest)
            oldest.drain()

    async def attend(self, turn: LiveTurn) -> None:
        """Return when the turn is over, or waits: then nobody need hold a place for it.

        Cancelling this drains the turn.
        """
        assert turn.task is not None
        asleep = self._attended[turn] = asyncio.get_running_loop().create_future()
        try:
            if not turn.is_asleep:
                await asyncio.wait((turn.task, asleep), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            turn.drain()
            await asyncio.wait((turn.task,))
            raise
        finally:
            if self._attended.get(turn) is asleep:
                del self._attended[turn]
