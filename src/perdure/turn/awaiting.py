"""Waiting for an event inside a turn, which stays in flight meanwhile."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from perdure.core.effects import monotonic_ms
from perdure.core.records import JsonValue
from perdure.durable.attempt import Attempt, patiently
from perdure.errors import AwaitEventTimeoutError, StoreError

logger = logging.getLogger("perdure.turn")

LOOK_MS: Final = 1_000
"""Hints may be lost, so whoever waits looks by himself at least this often."""


def intent_of(key: str) -> str:
    """Return the label of the step that waits for the event `key`."""
    return f"event:{key}"


async def arrival(attempt: Attempt, key: str, *, timeout_ms: int | None) -> JsonValue:
    """Return the payload of the event once it is there; raise AwaitEventTimeoutError else."""
    run_id, begun_ms = attempt.run.run_id, monotonic_ms()
    while True:
        event = await patiently(
            lambda: attempt.store.load_event(run_id, key), for_ms=attempt.held.remaining_ms
        )
        if event is not None:
            return event.payload
        left_ms = LOOK_MS
        if timeout_ms is not None:
            left_ms = round(timeout_ms - (monotonic_ms() - begun_ms))
            if left_ms <= 0:
                told = f"no event {key!r} arrived within {timeout_ms} ms"
                raise AwaitEventTimeoutError(told, intent=intent_of(key))
        await _pause(attempt, run_id, max(1, min(LOOK_MS, left_ms)))


async def _pause(attempt: Attempt, run_id: str, pause_ms: int) -> None:
    try:
        await attempt.store.wait_for_change(run_id, timeout_ms=pause_ms)
    except StoreError as error:
        logger.info("the turn %r waits without hints: %s", run_id, error)
        await asyncio.sleep(pause_ms / 1_000)
