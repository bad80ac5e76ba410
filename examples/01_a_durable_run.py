"""A durable run: each step happens once, and a second call of the run only replays it."""

from __future__ import annotations

import asyncio
import tempfile
from functools import partial
from pathlib import Path

from perdure import AgentTaskSpec, DurableContext, RunManifest, open_store, run_durable

emails: list[str] = []


def write_email(name: str) -> str:
    emails.append(name)
    return f"sent to {name}"


async def welcome(ctx: DurableContext) -> list[str]:
    """Three steps: the results are recorded one by one, as each of them ends."""
    names = await ctx.step("load names", lambda: ["Ada", "Grace"])
    return [await ctx.step(f"email {name}", partial(write_email, name)) for name in names]


async def main(folder: Path) -> None:
    store = await open_store(f"sqlite:{folder / 'runs.db'}")
    manifest = RunManifest("examples", AgentTaskSpec(id="welcome", intent="welcome new people"))
    first = await run_durable(store, run_id="welcome:1", manifest=manifest, task=welcome)
    again = await run_durable(store, run_id="welcome:1", manifest=manifest, task=welcome)
    for step in again.steps:
        print(f"step {step.step_index} {step.intent!r}: {step.result!r}")
    assert first.result == again.result
    await store.close()
    print(f"called twice, {len(emails)} emails written, state {again.record.state}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(main(Path(place)))
