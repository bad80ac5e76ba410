"""DBOS Transact for Python: workflows and steps, and its streams."""

from __future__ import annotations

import uuid
from typing import Any

from dbos import DBOS, SetWorkflowID

from bench.sides.asked import WARM_STEPS, Answer, Asked, answer, many, result, timed, tokens


@DBOS.step()
async def small(index: int) -> dict[str, Any]:
    return result(index)


@DBOS.workflow()
async def loop(count: int) -> None:
    for index in range(count):
        await small(index)


@DBOS.step()
async def said(count: int, pause_ms: float) -> None:
    async for token in tokens(count, pause_ms):
        await DBOS.write_stream_async("out", token)


@DBOS.workflow()
async def chat(count: int, pause_ms: float) -> None:
    await said(count, pause_ms)
    await DBOS.close_stream_async("out")


def launch(asked: Asked) -> None:
    url = asked.place
    if asked.store == "sqlite":
        url = f"sqlite:///{asked.file('dbos.db')}"
    DBOS(config={"name": "bench", "system_database_url": url, "log_level": "CRITICAL"})
    DBOS.launch()


async def steps(asked: Asked) -> Answer:
    launch(asked)
    await loop(WARM_STEPS)
    return await timed(lambda: loop(asked.size), per=asked.size)


async def runs(asked: Asked) -> Answer:
    launch(asked)
    await many(lambda _: loop(3), 64)
    return await many(lambda _: loop(3), asked.size)


async def stream(asked: Asked) -> Answer:
    launch(asked)

    async def turn(count: int) -> None:
        name = str(uuid.uuid4())
        with SetWorkflowID(name):
            handle = await DBOS.start_workflow_async(chat, count, asked.pause_ms)
        async for _ in DBOS.read_stream_async(name, "out"):
            pass
        await handle.get_result()

    await turn(WARM_STEPS)
    return await timed(lambda: turn(asked.size), per=asked.size)


if __name__ == "__main__":
    answer({"steps": steps, "runs": runs, "stream": stream})
