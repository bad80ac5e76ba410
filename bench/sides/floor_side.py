"""The floor: the smallest programs that keep the same promise on the disk, and nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from bench.file_floor import FileFloor
from bench.floor import Floor
from bench.sides.asked import WARM_STEPS, Answer, Asked, answer, events, many, timed, tokens


class AnyFloor(Protocol):
    """What all floors do."""

    async def run_steps(self, run_id: str, count: int) -> None: ...
    async def replay(self, run_id: str) -> list[Any]: ...
    async def close(self) -> None: ...


Opener = Callable[[Asked], Awaitable[AnyFloor]]


async def opened(asked: Asked) -> AnyFloor:
    # Each driver is a package of its own, which only its store needs.
    if asked.store == "postgres":
        from bench.postgres_floor import PostgresFloor

        return await PostgresFloor.open(asked.place, synchronous=asked.durability)
    if asked.store == "d1":
        from bench.d1_floor import D1Floor

        return await D1Floor.open(asked.place)
    if asked.store == "file":
        return FileFloor(asked.file("floor"), synchronous=asked.durability)
    return Floor(asked.file("floor.db"), synchronous=asked.durability)


async def steps(asked: Asked, open_floor: Opener = opened) -> Answer:
    floor = await open_floor(asked)
    await floor.run_steps("warm", WARM_STEPS)
    return await timed(lambda: floor.run_steps("run", asked.size), per=asked.size)


async def runs(asked: Asked, open_floor: Opener = opened) -> Answer:
    floor = await open_floor(asked)
    await many(lambda index: floor.run_steps(f"warm-{index}", 3), 64)
    return await many(lambda index: floor.run_steps(f"run-{index}", 3), asked.size)


async def resume(asked: Asked) -> Answer:
    floor = await opened(asked)
    await floor.run_steps("run", asked.size)
    began = time.perf_counter()
    await floor.replay("run")
    return {"value": (time.perf_counter() - began) * 1e3}


async def stream(asked: Asked) -> Answer:
    """The generator alone, each token made a line as a server does, and stored nowhere."""

    async def said() -> None:
        async for token in tokens(asked.size, asked.pause_ms):
            json.dumps({"delta": token})

    await said()
    return await timed(said, per=asked.size)


async def verbatim(asked: Asked) -> Answer:
    async def said() -> None:
        async for event in events(asked.size, asked.pause_ms):
            json.dumps(event)

    await said()
    return await timed(said, per=asked.size)


if __name__ == "__main__":
    works = {"steps": steps, "runs": runs, "resume": resume}
    answer({**works, "stream": stream, "verbatim": verbatim})
