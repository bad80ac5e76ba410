"""The floor of our own promise: leases, fences and the whole journal, by hand and nothing else."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Protocol

from bench import fenced_stream
from bench.sides import floor_side
from bench.sides.asked import WARM_STEPS, Answer, Asked, answer, events, timed, tokens
from bench.sides.floor_side import AnyFloor


class Fenced(AnyFloor, Protocol):
    """What both floors of our promise do."""

    async def interrupt(self, run_id: str, count: int) -> None: ...
    async def go_on(self, run_id: str, count: int) -> list[Any]: ...


async def opened(asked: Asked) -> Fenced:
    # The driver is a package of its own, which only its store needs.
    if asked.store == "postgres":
        from bench.fenced_postgres import FencedPostgres

        return await FencedPostgres.open(asked.place, synchronous=asked.durability)
    from bench.fenced_sqlite import FencedSqlite

    durability: Any = asked.durability
    return FencedSqlite(asked.file("fenced.db"), synchronous=durability)


async def resume(asked: Asked) -> Answer:
    floor = await opened(asked)
    await floor.interrupt("run", asked.size)
    began = time.perf_counter()
    await floor.go_on("run", asked.size)
    return {"value": (time.perf_counter() - began) * 1e3}


async def stream(asked: Asked) -> Answer:
    return await streamed(asked, tokens)


async def verbatim(asked: Asked) -> Answer:
    return await streamed(asked, events)


async def streamed(asked: Asked, said: Callable[[int, float], AsyncIterator[Any]]) -> Answer:
    """Stream one turn to one reader, behind a short one that warms up."""
    journal = await journal_of(asked)

    async def turn(run_id: str, count: int) -> None:
        await fenced_stream.stream(journal, run_id, said(count, asked.pause_ms))

    await turn("warm", WARM_STEPS)
    return await timed(lambda: turn("live", asked.size), per=asked.size)


async def journal_of(asked: Asked) -> fenced_stream.Journal:
    if asked.store == "postgres":
        from bench.fenced_postgres import FencedPostgres

        return await FencedPostgres.open(asked.place, synchronous=asked.durability)
    durability: Any = asked.durability
    return fenced_stream.FencedStreams(asked.file("fenced.db"), synchronous=durability)


if __name__ == "__main__":
    works = {"steps": floor_side.steps, "runs": floor_side.runs}
    opening = {name: partial(work, open_floor=opened) for name, work in works.items()}
    answer({**opening, "resume": resume, "stream": stream, "verbatim": verbatim})
