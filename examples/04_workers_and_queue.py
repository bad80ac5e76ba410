"""Two workers on one store share a queue of runs; each run is worked on by one of them."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from pathlib import Path

from perdure import AgentTaskSpec, DurableContext, RunManifest, RunStore, Worker, open_store

RUNS = 12


def worker(store: RunStore, name: str, share: Counter[str]) -> Worker:
    """Return a worker that knows one task, and counts what it does of it."""

    async def thumbnail(ctx: DurableContext) -> str:
        async def resize() -> str:
            await asyncio.sleep(0.02)
            share[name] += 1
            return f"{ctx.run_id} by {name}"

        return await ctx.step("resize", resize)

    return Worker(store, tasks={"thumbnail": thumbnail}, concurrency_max=2)


async def main(folder: Path) -> None:
    share: Counter[str] = Counter()
    stores = [await open_store(f"sqlite:{folder / 'queue.db'}") for _ in range(2)]
    workers = [worker(stores[0], "one", share), worker(stores[1], "two", share)]
    for number in range(RUNS):
        run_id = f"thumbnail:{number}"
        task = AgentTaskSpec(id="thumbnail", intent="make a thumbnail")
        manifest = RunManifest("examples", task, input={"image": number})
        await workers[0].submit("thumbnail", run_id=run_id, manifest=manifest)
    print(f"{RUNS} runs are queued; nobody works yet: {sum(share.values())} done")

    working = [asyncio.create_task(each.run()) for each in workers]
    while len(await stores[0].list_runs(state="completed")) < RUNS:
        await stores[0].wait_for_change(None, timeout_ms=50)
    for each in workers:
        await each.drain()
    await asyncio.gather(*working)
    for store in stores:
        await store.close()
    print("shared out as", dict(sorted(share.items())))
    print(f"{sum(share.values())} runs, each executed once")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(main(Path(place)))
