"""The ticks: one moment, and one timer, for all who wait on a loop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.core.limits import LINGER_MS
from perdure.durable.ticks import Ticks, ticks_here
from tests.durable.handles import within


async def test_whoever_waits_on_a_loop_is_called_at_the_same_tick_by_one_timer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks, loop = ticks_here(), asyncio.get_running_loop()
    timers: list[float] = []
    called: list[int] = []
    came = loop.create_future()
    with monkeypatch.context() as still:
        # Both ask at one moment, so that no tick comes between them.
        now, call_at = loop.time(), loop.call_at

        def noted(when_s: float, *called_then: Any) -> asyncio.TimerHandle:
            timers.append(when_s)
            return call_at(when_s, *called_then)

        still.setattr(loop, "time", lambda: now)
        still.setattr(loop, "call_at", noted)
        first = ticks.after_next(called.append)
        assert ticks.after_next(called.append) == ticks.after_next(came.set_result) == first
    assert len(timers) == 1
    assert LINGER_MS / 2_000 <= timers[0] - now <= LINGER_MS / 1_000
    await within(came)
    assert called == [first, first]


async def test_a_tick_comes_after_half_of_the_time_that_frames_linger() -> None:
    ticks, loop = ticks_here(), asyncio.get_running_loop()
    came: asyncio.Future[int] = loop.create_future()
    asked = loop.time()
    tick = ticks.after_next(came.set_result)
    assert await within(came) == tick
    assert loop.time() - asked >= LINGER_MS / 2_000


async def test_a_loop_has_the_same_ticks_for_everybody_and_no_other_loop_has_them() -> None:
    ticks = ticks_here()
    assert ticks_here() is ticks

    async def elsewhere() -> Ticks:
        return ticks_here()

    assert await asyncio.to_thread(lambda: asyncio.run(elsewhere())) is not ticks
