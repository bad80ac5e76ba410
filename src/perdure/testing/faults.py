"""`crash_everywhere`: a scenario must come to the same end wherever its process dies."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final, Generic, NamedTuple, TypeVar

from perdure.core.limits import DELIVERY_CLAIM_MS
from perdure.errors import PerdureError
from perdure.store.protocol import RunStore
from perdure.testing.contract import NewLab
from perdure.testing.crashing import Crash, CrashingStore, Process, When, crashing
from perdure.testing.lab import StoreLab

__all__ = ["Crash", "CrashPoint", "CrashReport", "CrashingStore", "Scenario", "crash_everywhere"]

T = TypeVar("T")

Scenario = Callable[[RunStore], Awaitable[T]]
"""Does its work on the store it is given, goes on where an earlier call left off, and returns."""

DOWNTIME_MS: Final = DELIVERY_CLAIM_MS
"""By default a process is dead for as long as its longest claim lives: that of a delivery."""
ATTEMPTS_MAX: Final = 20
_GRACE_S: Final = 1.0
"""How long the tasks of a dead process may take to notice."""


class CrashPoint(NamedTuple):
    """What came of one crash.

    `call` counts the writing calls from 1, `name` is the method. `attempts` counts the calls of
    the scenario, the one that crashed included; 1: the scenario returned before it got there.
    """

    call: int
    name: str
    when: When
    attempts: int
    outcome: Any


class CrashReport(NamedTuple, Generic[T]):
    """The undisturbed outcome, its writing calls, and two crash points for each of them."""

    outcome: T
    calls: tuple[str, ...]
    points: tuple[CrashPoint, ...]


async def crash_everywhere(
    scenario: Scenario[T],
    new_lab: NewLab,
    *,
    is_same: Callable[[T, T], object] = operator.eq,
    downtime_ms: int = DOWNTIME_MS,
) -> CrashReport[T]:
    """Let the process of `scenario` die before and after each of its writing calls.

    After a crash every call on its store raises Crash and the tasks that it started are
    cancelled. The clock moves on by `downtime_ms`, and the scenario is called again on a fresh
    handle, until it returns; a retryable PerdureError only costs another `downtime_ms`. The
    outcome must be the undisturbed one by `is_same(outcome, undisturbed)`, else AssertionError.
    Whatever else the scenario raises goes to the caller, with the crash point as a note. Run it
    alone on its event loop: it takes every task that begins meanwhile for the scenario's.
    """
    async with new_lab() as lab:
        process = Process()
        undisturbed = await scenario(crashing(await lab.open(), process))
    calls = tuple(process.calls)
    points: list[CrashPoint] = []
    moments: tuple[When, ...] = ("before", "after")
    for index, name in enumerate(calls):
        for when in moments:
            try:
                async with new_lab() as lab:
                    process = Process(index, when)
                    attempts, outcome = await _survive(scenario, lab, process, downtime_ms)
                if not is_same(outcome, undisturbed):
                    raise AssertionError(f"the outcome is {outcome!r}, not {undisturbed!r}")
            except BaseException as error:
                error.add_note(f"crash {when} call {index + 1} of {len(calls)}, {name}")
                raise
            points.append(CrashPoint(index + 1, name, when, attempts, outcome))
    return CrashReport(undisturbed, calls, tuple(points))


async def _survive(
    scenario: Scenario[T], lab: StoreLab, process: Process, downtime_ms: int
) -> tuple[int, T]:
    """Return how often the scenario had to be called until it returned, and what it returned."""
    first = await lab.open()
    before = asyncio.all_tasks()
    work = asyncio.ensure_future(scenario(crashing(first, process)))
    death = asyncio.ensure_future(process.dead.wait())
    try:
        await asyncio.wait({work, death}, return_when=asyncio.FIRST_COMPLETED)
        if not process.dead.is_set():
            return 1, work.result()
    finally:
        death.cancel()
        if not work.done() or process.dead.is_set():
            await _kill(asyncio.all_tasks() - before | {work})
    await first.close()
    trouble: PerdureError | None = None
    for attempts in range(2, ATTEMPTS_MAX + 1):
        lab.clock.advance(downtime_ms)
        try:
            return attempts, await scenario(await lab.open())
        except PerdureError as error:
            if not error.retryable:
                raise
            trouble = error
    raise AssertionError(f"{ATTEMPTS_MAX} attempts did not get through: {trouble!r}") from trouble


async def _kill(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel what a dead process left behind; a task that will not go cannot write anyway."""
    for task in tasks:
        task.cancel()
    done, _ = await asyncio.wait(tasks, timeout=_GRACE_S)
    for task in done:
        if not task.cancelled():
            task.exception()
