"""Perdure, as a user calls it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import perdure
from bench.sides.asked import WARM_STEPS, Answer, Asked, answer, events, many, result, timed, tokens
from perdure.core.frames import text, upstream_end

MANIFEST = perdure.RunManifest("bench", perdure.AgentTaskSpec("bench", "Measure"))
Task = Callable[[perdure.DurableContext], Awaitable[Any]]


async def opened(asked: Asked) -> perdure.RunStore:
    durability: Any = asked.durability
    if asked.store == "memory":
        return await perdure.open_store("memory:")
    if asked.store == "postgres":
        return await perdure.open_store(asked.place, durability=durability, migrate=True)
    if asked.store == "d1":
        return await perdure.open_store(asked.place)
    return await perdure.open_store(f"{asked.store}:{asked.file('perdure')}", durability=durability)


async def run(store: perdure.RunStore, run_id: str, task: Task) -> None:
    await perdure.run_durable(store, run_id=run_id, manifest=MANIFEST, task=task)


def task_of(count: int) -> Task:
    async def task(context: perdure.DurableContext) -> None:
        for index in range(count):
            await context.step("small", partial(result, index))

    return task


async def steps(asked: Asked) -> Answer:
    store = await opened(asked)
    await run(store, "warm", task_of(WARM_STEPS))
    return await timed(lambda: run(store, "run", task_of(asked.size)), per=asked.size)


async def runs(asked: Asked) -> Answer:
    store = await opened(asked)
    await many(lambda index: run(store, f"warm-{index}", task_of(3)), 64)
    return await many(lambda index: run(store, f"run-{index}", task_of(3)), asked.size)


class Unfinished(Exception):
    """The step that is not done yet was reached."""


async def reach_last(store: perdure.RunStore, steps: int) -> float:
    """Run to the step that is not done, behind `steps` that are; return when it was reached."""
    reached = 0.0

    def last() -> None:
        nonlocal reached
        reached = time.perf_counter()
        raise Unfinished

    async def task(context: perdure.DurableContext) -> None:
        await task_of(steps)(context)
        await context.step("last", last)

    with suppress(Unfinished):
        await run(store, "run", task)
    return reached


async def resume(asked: Asked) -> Answer:
    store = await opened(asked)
    began = reached = 0.0
    for _ in range(2):
        began = time.perf_counter()
        reached = await reach_last(store, asked.size)
    return {"value": (reached - began) * 1e3}


async def stream(asked: Asked) -> Answer:
    async def produce(turn: perdure.Turn) -> AsyncIterator[perdure.Frame]:
        async for token in tokens(int(turn.user_message), asked.pause_ms):
            yield text(token)
        yield upstream_end("stop")

    return await streamed(asked, produce)


async def verbatim(asked: Asked) -> Answer:
    async def produce(turn: perdure.Turn) -> AsyncIterator[Any]:
        async for event in events(int(turn.user_message), asked.pause_ms):
            yield event
        yield upstream_end("stop")

    return await streamed(asked, produce)


async def streamed(asked: Asked, produce: Any) -> Answer:
    """Stream one turn to one reader, behind a short one that warms up."""
    store = await opened(asked)
    engine = perdure.ChatTurnEngine(store, produce=produce, recover=False)

    async def turn(session: str, count: int) -> None:
        turn = perdure.ChatTurnIdentity("", session, "ann", 0)
        submitted = await engine.submit(turn, str(count))
        async for _ in submitted.lines():
            pass

    await turn("warm", WARM_STEPS)
    return await timed(lambda: turn("live", asked.size), per=asked.size)


if __name__ == "__main__":
    works = {"steps": steps, "runs": runs, "resume": resume}
    answer({**works, "stream": stream, "verbatim": verbatim})
