"""LangGraph's functional API with its checkpointers: an entrypoint that calls tasks."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.func import entrypoint, task

from bench.sides.asked import WARM_STEPS, Answer, Asked, answer, many, result, timed

reached: dict[str, float] = {}


class Unfinished(Exception):
    """The task that is not done yet was reached."""


@task
async def small(index: int) -> dict[str, Any]:
    return result(index)


@task
async def last() -> None:
    reached["last"] = time.perf_counter()
    raise Unfinished


@asynccontextmanager
async def saver(asked: Asked) -> AsyncIterator[Any]:
    if asked.store == "sqlite":
        opened = AsyncSqliteSaver.from_conn_string(asked.file("langgraph.db"))
    else:
        opened = AsyncPostgresSaver.from_conn_string(asked.place)
    async with opened as saver:
        await saver.setup()
        yield saver


def workflow(checkpointer: Any) -> Any:
    @entrypoint(checkpointer=checkpointer)
    async def loop(asked: dict[str, Any]) -> bool:
        for index in range(asked["count"]):
            await small(index)
        if asked["stays_open"]:
            await last()
        return True

    return loop


def settings(thread: str) -> dict[str, Any]:
    return {"configurable": {"thread_id": thread}, "recursion_limit": 20_000}


async def run(app: Any, count: int) -> None:
    what = {"count": count, "stays_open": False}
    # "sync" is the durability of the others: what is done is stored before the next step begins.
    await app.ainvoke(what, settings(str(uuid.uuid4())), durability="sync")


async def steps(asked: Asked) -> Answer:
    async with saver(asked) as checkpointer:
        app = workflow(checkpointer)
        await run(app, WARM_STEPS)
        return await timed(lambda: run(app, asked.size), per=asked.size)


async def runs(asked: Asked) -> Answer:
    async with saver(asked) as checkpointer:
        app = workflow(checkpointer)
        await many(lambda _: run(app, 3), 64)
        return await many(lambda _: run(app, 3), asked.size)


async def resume(asked: Asked) -> Answer:
    async with saver(asked) as checkpointer:
        app = workflow(checkpointer)
        what: dict[str, Any] | None = {"count": asked.size, "stays_open": True}
        began = 0.0
        for _ in range(2):
            began = time.perf_counter()
            try:
                await app.ainvoke(what, settings("one"), durability="sync")
            except Unfinished:
                what = None
        return {"value": (reached["last"] - began) * 1e3}


if __name__ == "__main__":
    answer({"steps": steps, "runs": runs, "resume": resume})
