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

    None of them is one whose end is recorded, though its hooks may still be running, or one that
    waits for an event.
    """
    return {
        stored_id
        for stored_id, live in live_turns.of(handle)
        if live.work is None or not (live.work.left.is_set() or live.work.is_asleep)
    }


def ring_of(handle: Hashable, stored_id: str) -> Ring | None:
    """Return the ring of a turn's newest frames, if the turn is alive here."""
    live = live_turns.find(handle, stored_id)
    return None if live is None or live.work is None else live.work.ring
