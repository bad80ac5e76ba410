"""The chat turns that are alive in this process."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from perdure.durable.live import LiveRuns
from perdure.durable.ring import Ring
from perdure.turn.live import LiveTurn

live_turns: Final[LiveRuns[LiveTurn]] = LiveRuns()


def turns_at_work(handle: Hashable) -> set[str]:
    """Return the stored ids of the turns that are being opened or worked on over a store handle.

    One whose end is recorded is none of them, though its hooks may still be running.
    """
    return {
        stored_id
        for stored_id, live in live_turns.of(handle)
        if live.work is None or not live.work.left.is_set()
    }


def ring_of(handle: Hashable, stored_id: str) -> Ring | None:
    """Return the ring of a turn's newest frames, if the turn is alive here."""
    live = live_turns.find(handle, stored_id)
    return None if live is None or live.work is None else live.work.ring
