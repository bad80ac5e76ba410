"""A run whose process is killed in the middle, and goes on in the next process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

from perdure import AgentTaskSpec, DurableContext, RunManifest, open_store, run_durable

LEASE_MS = 500
"""A killed process gives no lease back: the next one may go on when it has lapsed."""


async def build(ctx: DurableContext, log: Path, *, dies: bool) -> str:
    """Fetch, compile, publish; with `dies` the process is gone before it publishes."""

    def do(name: str) -> str:
        with log.open("a") as lines:
            lines.write(f"{name} in process {'one' if dies else 'two'}\n")
        return name

    done = [await ctx.step(name, partial(do, name)) for name in ("fetch", "compile")]
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(await ctx.step("publish", partial(do, "publish")))
    return ", ".join(done)


async def work(folder: Path, *, dies: bool) -> None:
    store = await open_store(f"sqlite:{folder / 'runs.db'}")
    done = await run_durable(
        store,
        run_id="build:1",
        manifest=RunManifest("examples", AgentTaskSpec(id="build", intent="build the site")),
        task=lambda ctx: build(ctx, folder / "log.txt", dies=dies),
        lease_ms=LEASE_MS,
    )
    await store.close()
    print(f"the run came to {done.result!r} in attempt {done.record.epoch}")


async def main(folder: Path) -> None:
    child = await asyncio.create_subprocess_exec(sys.executable, __file__, str(folder))
    print(f"process one ended with {signal.Signals(-await child.wait()).name}")
    await asyncio.sleep(LEASE_MS / 1_000)
    await work(folder, dies=False)
    executed = (folder / "log.txt").read_text().splitlines()
    print("\n".join(executed))
    print(f"{len(executed)} steps were executed, each of them once")


if __name__ == "__main__":
    if sys.argv[1:]:
        asyncio.run(work(Path(sys.argv[1]), dies=True))
    else:
        with tempfile.TemporaryDirectory() as place:
            asyncio.run(main(Path(place)))
