"""Leaving a backend: by a signal, early, cancelled or stopped; nothing of a call goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

from perdure.agent.backend import AgentExecutionBackend
from perdure.agent.cancel import CancelSignal
from perdure.agent.stream import run_agent_task_stream
from perdure.core.effects import monotonic_ms
from perdure.testing.asking import (
    HELLO,
    TASK,
    Watched,
    awaited,
    begun,
    final,
    gist,
    read_to_silence,
    said,
    streamed,
    text,
    told,
)
from perdure.testing.backend_lab import BackendLab
from perdure.testing.conforming import in_time
from perdure.testing.lab import check, same

TICK_S: Final = 0.005
STALL_MS: Final = 200
"""A loop that nobody else gets for so long, in each of several answers, is blocked."""
LAST_STEPS_S: Final = 1.0
"""So long the tasks of a call may take to end behind it."""


async def a_signal_ends_an_answer_that_hangs(lab: BackendLab) -> None:
    signal = CancelSignal()
    async with lab.backend("hangs") as backend:
        watched = Watched(backend)
        stream = run_agent_task_stream(TASK, watched, input=HELLO, signal=signal)
        events, reading = await read_to_silence(stream)
        signal.cancel("enough")
        await in_time(reading, "an answer that was cancelled by its signal")
        same(final(events).status, "aborted", "the status of an answer that was cancelled")
        check(watched.is_over, "the call goes on although nobody wants its answer")


async def who_leaves_early_ends_the_call(lab: BackendLab) -> None:
    async with lab.backend("hangs") as backend:
        check(await _left(backend), "the call goes on although nobody reads its answer")


async def _left(backend: AgentExecutionBackend) -> bool:
    """Leave an answer in its middle; return whether the call is over then."""
    watched = Watched(backend)

    async def leave() -> None:
        async with aclosing(run_agent_task_stream(TASK, watched, input=HELLO)) as stream:
            _, reading = await read_to_silence(stream)
            reading.cancel()
            await asyncio.wait({reading})

    await in_time(leave(), "an answer that was left early")
    return watched.is_over


async def a_call_that_is_cancelled_ends_cancelled(lab: BackendLab) -> None:
    async with lab.backend("hangs") as backend:
        _, reading = await read_to_silence(streamed(backend, await begun(backend)))
        reading.cancel()
        await in_time(asyncio.wait({reading}), "a call that was cancelled")
        if not reading.cancelled():
            error = reading.exception()
            ended = "as if it were whole" if error is None else f"with {error!r:.200}"
            raise AssertionError(f"a call that was cancelled has ended {ended}")


async def an_answer_that_is_closed_early_says_nothing_more(lab: BackendLab) -> None:
    async with lab.backend() as backend:
        events: Any = streamed(backend, await begun(backend))
        if not hasattr(events, "aclose"):
            return

        async def leave() -> None:
            await anext(events)
            try:
                await events.aclose()
            except Exception as error:
                raise AssertionError(f"to close an answer early raises {error!r:.200}") from error

        await in_time(leave(), "to close an answer early")
        check(
            text(await said(backend)), "behind an answer that was closed early, the next is empty"
        )


async def a_call_that_is_over_leaves_no_task_behind(lab: BackendLab) -> None:
    before = asyncio.all_tasks()
    async with lab.backend() as backend:
        await told(backend)
    async with lab.backend("hangs") as backend:
        await _left(backend)
    if left := asyncio.all_tasks() - before:
        _, left = await asyncio.wait(left, timeout=LAST_STEPS_S)
    names = ", ".join(sorted(str(task.get_coro()) for task in left))
    check(not left, f"tasks go on behind their call: {names}")


async def an_answer_leaves_the_loop_to_others(lab: BackendLab) -> None:
    stalls_ms: list[float] = []
    async with lab.backend() as backend:
        for _ in range(3):
            async with _ticking() as gaps_ms:
                await told(backend)
            stalls_ms.append(max(gaps_ms))
    check(
        min(stalls_ms) < STALL_MS,
        f"each answer stops the event loop for {min(stalls_ms):.0f} ms or more: it waits, or "
        "works, without an await",
    )


@asynccontextmanager
async def _ticking() -> AsyncGenerator[list[float]]:
    """Note how long the loop did not come round, again and again."""
    gaps_ms: list[float] = []

    async def tick() -> None:
        while True:
            since_ms = monotonic_ms()
            await asyncio.sleep(TICK_S)
            gaps_ms.append(monotonic_ms() - since_ms)

    ticking = asyncio.create_task(tick())
    try:
        await asyncio.sleep(2 * TICK_S)
        yield gaps_ms
        await asyncio.sleep(2 * TICK_S)
    finally:
        ticking.cancel()


async def to_stop_is_harmless_however_often(lab: BackendLab) -> None:
    async with lab.backend() as backend:
        stop = getattr(backend, "stop", None)
        if stop is None:
            return
        session = await begun(backend)
        for _ in range(2):
            await in_time(awaited(stop(session, "enough")), "to stop a session")
        check(text(await said(backend)), "behind a stop, another session has no answer")


async def to_stop_one_session_leaves_another_its_answer(lab: BackendLab) -> None:
    async with lab.backend() as backend:
        stop = getattr(backend, "stop", None)
        if stop is None:
            return
        stopped = await begun(backend)
        alone = gist(await told(backend))

        async def read() -> list[Any]:
            events: list[Any] = []
            async for event in run_agent_task_stream(TASK, backend, input=HELLO):
                events.append(event)
                if event.type == "text_delta":
                    await awaited(stop(stopped, "enough"))
            return events

        events = await in_time(read(), "an answer while another session was stopped")
        same(gist(events), alone, "the answer while another session was stopped")
