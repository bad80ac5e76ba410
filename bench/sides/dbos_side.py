"""DBOS Transact for Python: workflows and steps, and its streams.

It sets no journal mode for SQLite, where its figures are a third better with a write-ahead log: so
the file has one before DBOS sees it, like those of all other sides.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from contextlib import closing
from typing import Any, Final

from dbos import DBOS, SetWorkflowID

from bench.sides.asked import WARM_STEPS, Answer, Asked, answer, many, result, timed, tokens


@DBOS.step()
async def small(index: int) -> dict[str, Any]:
    return result(index)


CRASH: Final = "crash"
PATIENCE_S: Final = 300
reached: dict[str, float] = {}
is_reached = threading.Event()


@DBOS.step()
async def last() -> None:
    if os.environ.get(CRASH):
        os._exit(0)
    reached["last"] = time.perf_counter()
    is_reached.set()


@DBOS.workflow()
async def unfinished(count: int) -> None:
    reached["first"] = time.perf_counter()
    for index in range(count):
        await small(index)
    await last()


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
        file = asked.file("dbos.db")
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        url = f"sqlite:///{file}"
    # The version is of the program's text else, and a process that goes on has to have the same.
    DBOS(
        config={
            "name": "bench",
            "system_database_url": url,
            "log_level": "CRITICAL",
            "application_version": "1",
        }
    )
    DBOS.launch()


async def steps(asked: Asked) -> Answer:
    launch(asked)
    await loop(WARM_STEPS)
    return await timed(lambda: loop(asked.size), per=asked.size)


async def runs(asked: Asked) -> Answer:
    launch(asked)
    await many(lambda _: loop(3), 64)
    return await many(lambda _: loop(3), asked.size)


async def crash(asked: Asked) -> Answer:
    """Do the steps, and break off at the last one."""
    launch(asked)
    await unfinished(asked.size)
    raise RuntimeError("it should have broken off")


async def resume(asked: Asked) -> Answer:
    """Go on with what a process broke off: from where the workflow begins again, within it."""
    command = [sys.executable, "-m", "bench.sides.dbos_side", CRASH, *sys.argv[2:]]
    broken = {**os.environ, CRASH: "1"}
    await asyncio.to_thread(subprocess.run, command, check=True, env=broken)
    launch(asked)
    if not await asyncio.to_thread(is_reached.wait, PATIENCE_S):
        raise RuntimeError("nobody goes on")
    return {"value": (reached["last"] - reached["first"]) * 1e3}


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
    answer({"steps": steps, "runs": runs, CRASH: crash, "resume": resume, "stream": stream})
