"""An alarm rings at the moment that it was last set to."""

from __future__ import annotations

import asyncio

from perdure.durable.alarm import Alarm
from tests.durable.handles import within


class Bell:
    def __init__(self) -> None:
        self.rang = asyncio.Event()
        self.alarm = Alarm(self.rang.set)


async def test_an_alarm_rings_when_its_time_has_come_and_can_be_set_again() -> None:
    bell = Bell()
    for _ in range(2):
        bell.rang.clear()
        bell.alarm.set(1)
        await within(bell.rang.wait())


async def test_an_alarm_that_is_set_to_a_later_moment_rings_only_then() -> None:
    bell = Bell()
    loop = asyncio.get_running_loop()
    bell.alarm.set(1)
    due_s = loop.time() + 0.05
    bell.alarm.set(50)
    await within(bell.rang.wait())
    assert loop.time() >= due_s


async def test_an_alarm_that_is_set_to_an_earlier_moment_rings_then() -> None:
    bell = Bell()
    bell.alarm.set(60_000)
    bell.alarm.set(1)
    await within(bell.rang.wait())


async def test_an_alarm_that_is_cleared_or_closed_does_not_ring() -> None:
    cleared, closed, later = Bell(), Bell(), Bell()
    cleared.alarm.set(1)
    cleared.alarm.clear()
    closed.alarm.set(1)
    closed.alarm.close()
    later.alarm.set(20)
    await within(later.rang.wait())
    assert not cleared.rang.is_set()
    assert not closed.rang.is_set()
