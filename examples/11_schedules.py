"""Two workers share a schedule: each due time is one run, whoever of them fires it."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from pathlib import Path

from perdure import DurableContext, Worker, open_store

BEATS = 5

beats: Counter[str] = Counter()
enough = asyncio.Event()


async def beat(ctx: DurableContext) -> str:
    """Note the due time, which is the same in every attempt."""

    def note() -> str:
        due_at: str = ctx.input["due_at"]
        beats[due_at] += 1
        if len(beats) == BEATS:
            enough.set()
        return due_at

    return await ctx.step("note", note)


async def main(folder: Path) -> None:
    stores = [await open_store(f"sqlite:{folder / 'runs.db'}") for _ in range(2)]
    workers = [Worker(store, tasks={"beat": beat}) for store in stores]
    for worker in workers:
        # Whichever starts first keeps it; the other finds that nothing is new.
        await worker.schedule("heartbeat", task="beat", every_ms=200, catch_up="all")
    working = [asyncio.create_task(worker.run()) for worker in workers]
    await enough.wait()
    await workers[0].schedules.pause("heartbeat")

    for worker in workers:
        await worker.drain()
    await asyncio.gather(*working)
    (kept,) = await workers[0].schedules.list()
    print(f"{kept.name!r} runs {kept.task!r} every {kept.every_ms} ms; it is paused now")
    for store in stores:
        await store.close()
    assert set(beats.values()) == {1}
    print(f"{BEATS} due times or more, each of them one run")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(main(Path(place)))
