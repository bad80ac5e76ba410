"""A parked run is forked before the step that its new code has replaced; the rest is kept."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from perdure import (
    AgentTaskSpec,
    DurableContext,
    RunManifest,
    RunParkedError,
    fork,
    fork_origin,
    open_store,
    preview_fork,
    run_durable,
)

MANIFEST = RunManifest("examples", AgentTaskSpec(id="digest", intent="read much, say little"))
executed: list[str] = []


def note(name: str) -> str:
    executed.append(name)
    return name


async def digest(ctx: DurableContext) -> None:
    """Read for a long time, then break off: the process dies in the deploy."""
    await ctx.step("collect", lambda: note("collect"), kind="tool")
    await ctx.step("summarize", lambda: note("summarize"))
    raise ConnectionError("deployed in the middle")


async def digest_of_today(ctx: DurableContext) -> str:
    """What was deployed: another step stands where `summarize` was."""
    await ctx.step("collect", lambda: note("collect"), kind="tool")
    await ctx.step("rank", lambda: note("rank"))
    return await ctx.step("summarize", lambda: note("summarize"))


async def main(folder: Path) -> None:
    store = await open_store(f"sqlite:{folder / 'runs.db'}")
    for task in (digest, digest_of_today):
        try:
            await run_durable(store, run_id="digest:1", manifest=MANIFEST, task=task)
        except (ConnectionError, RunParkedError) as error:
            print(f"{type(error).__name__}: {error}".splitlines()[0])

    preview = await preview_fork(store, "digest:1", from_step=1)
    print("replays", [step.intent for step in preview.kept])
    forked = await fork(store, "digest:1", from_step=1, new_run_id="digest:2")
    print("a fork of", fork_origin(forked))
    await run_durable(store, run_id="digest:2", manifest=MANIFEST, task=digest_of_today)
    await store.close()
    print(f"collected {executed.count('collect')} time, then ran {executed[2:]}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(main(Path(place)))
