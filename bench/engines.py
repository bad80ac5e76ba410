"""What a step costs on another engine, beside `run_durable`, in turn: `python -m bench.engines`."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from dbos import DBOS, SetWorkflowID

from perdure import AgentTaskSpec, DurableContext, RunManifest, open_store, run_durable
from perdure.engines.dbos import task_workflow

STEPS = 200
ROUNDS = 7


async def steps(ctx: DurableContext) -> int:
    """Return how many steps were done, none of which does anything."""
    for number in range(STEPS):
        await ctx.step("nothing", partial(int, number))
    return STEPS


async def nothing(number: int) -> int:
    """Be a step of DBOS without Perdure."""
    return number


async def bare(_: dict[str, object]) -> int:
    """Do the same with DBOS alone."""
    for number in range(STEPS):
        await DBOS.run_step_async({"name": "nothing"}, nothing, number)
    return STEPS


async def main(folder: Path) -> None:
    """Print the median cost of a step on each side, and of the ratios of neighbouring runs."""
    DBOS(
        config={
            "name": "bench",
            "system_database_url": f"sqlite:///{folder / 'dbos.db'}",
            "log_level": "ERROR",
        }
    )
    workflows = {"DBOS with Perdure": task_workflow("steps", steps)}
    workflows["DBOS alone"] = DBOS.workflow(name="bare")(bare)
    DBOS.launch()
    store = await open_store(f"sqlite:///{folder / 'perdure.db'}")
    manifest = RunManifest("bench", AgentTaskSpec("steps", "do nothing"))
    costs: dict[str, list[float]] = {}
    for number in range(ROUNDS):
        began = time.perf_counter()
        await run_durable(store, run_id=f"run-{number}", manifest=manifest, task=steps)
        costs.setdefault("run_durable", []).append(time.perf_counter() - began)
        for name, workflow in workflows.items():
            began = time.perf_counter()
            with SetWorkflowID(f"{name} {number}"):
                run = await DBOS.start_workflow_async(workflow, {})
            await run.get_result(polling_interval_sec=0.005)
            costs.setdefault(name, []).append(time.perf_counter() - began)
    await store.close()
    DBOS.destroy()
    for name, taken in costs.items():
        pairs = zip(taken, costs["run_durable"], strict=True)
        ratio = statistics.median(one / ours for one, ours in pairs)
        cost_ms = statistics.median(taken) * 1_000 / STEPS
        print(f"{name} on SQLite: {cost_ms:.2f} ms per step, {ratio:.1f} times run_durable")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(main(Path(name)))
