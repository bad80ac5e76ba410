"""Twelve pages are fetched three at a time; after a crash only those that are missing."""

from __future__ import annotations

import asyncio
import tempfile
from functools import partial
from pathlib import Path

from perdure import AgentTaskSpec, DurableContext, RunManifest, open_store, run_durable

PAGES = 12
MANIFEST = RunManifest("examples", AgentTaskSpec(id="crawl", intent="fetch some pages"))

fetched: list[int] = []
inside: list[int] = []
most = 0
enough = asyncio.Event()


async def fetch(page: int) -> str:
    """Fetch a page, slowly, and count how many are on their way."""
    global most
    inside.append(page)
    most = max(most, len(inside))
    try:
        await asyncio.sleep(0.01)
    finally:
        inside.remove(page)
    fetched.append(page)
    if len(fetched) == PAGES // 2:
        enough.set()
    return f"text of page {page}"


async def crawl(ctx: DurableContext) -> int:
    calls = [(f"fetch {page}", partial(fetch, page)) for page in range(PAGES)]
    texts = await ctx.parallel(*calls, concurrency_max=3)
    return len(texts)


async def main(folder: Path) -> None:
    store = await open_store(f"sqlite:{folder / 'runs.db'}")
    first = asyncio.create_task(run_durable(store, run_id="crawl", manifest=MANIFEST, task=crawl))
    await enough.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    steps = await store.read_steps("crawl")
    print(f"interrupted with {sum(step.status == 'completed' for step in steps)} pages recorded")

    done = await run_durable(store, run_id="crawl", manifest=MANIFEST, task=crawl)
    await store.close()
    assert [step.result for step in done.steps] == [f"text of page {n}" for n in range(PAGES)]
    print(f"{done.result} pages, at most {most} at a time")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(main(Path(place)))
