"""What a step and a kill cost on other engines, beside `run_durable`: `python -m bench.engines`.

Cloudflare's is its local engine, and its workflow asks Python over HTTP, as in the tests.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from dbos import DBOS, SetWorkflowID

from perdure import AgentTaskSpec, DurableContext, RunManifest, open_store, run_durable
from perdure.engines.cloudflare import WorkflowStep, run_on_workflow
from perdure.engines.dbos import task_workflow
from perdure.testing import HostLab
from tests.engines.dbos_lab import DbosLab
from tests.engines.workflow_engine import WorkflowEngine
from tests.engines.workflow_lab import WorkflowLab
from tests.node_packages import need_node_packages

STEPS = 100
ROUNDS = 7
KILLS = 3
DEADLINE_S = 60
OURS = "run_durable on SQLite"
Side = Callable[[int], Awaitable[Any]]
"""What runs the steps once, in the run of this number."""


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


async def on_dbos(workflow: Any, name: str, number: int) -> None:
    """Run a workflow to its end in this process."""
    with SetWorkflowID(f"{name} {number}"):
        run = await DBOS.start_workflow_async(workflow, {})
    await run.get_result(polling_interval_sec=0.005)


async def on_cloudflare(engine: WorkflowEngine, _: int) -> None:
    """Run the steps to their end in an instance of the local engine."""

    async def main(step: WorkflowStep, instance: str) -> Any:
        return await run_on_workflow(step, workflow_name="bench", instance_id=instance, task=steps)

    await asyncio.to_thread(engine.run, main)


async def compare(sides: dict[str, Side]) -> None:
    """Print the median cost of a step on each side, and of the ratios of neighbouring runs."""
    costs: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS):
        for name, side in sides.items():
            began = time.perf_counter()
            await side(number)
            costs[name].append(time.perf_counter() - began)
    for name, taken in costs.items():
        ratio = statistics.median(a / b for a, b in zip(taken, costs[OURS], strict=True))
        cost_ms = statistics.median(taken) * 1_000 / STEPS
        print(f"{name}: {cost_ms:.1f} ms per step, {ratio:.1f} times run_durable")


async def kill(name: str, lab: HostLab, folder: Path) -> None:
    """Print how long it took from kills in a step to the step behind it, and what was executed."""
    for number in range(KILLS):
        log = folder / f"{name} {number}.log"
        log.touch()
        await lab.start("killed", f"killed-{number}", {"log": str(log)})
        await noted(log, "hang")
        began = time.perf_counter()
        await lab.kill_worker()
        await lab.start_worker()
        ready_s = time.perf_counter() - began
        await noted(log, "last")
        taken_s = time.perf_counter() - began
        counts = ", ".join(f"{word} {count}" for word, count in Counter(words(log)).items())
        print(f"{name}: {taken_s:.2f} s to the next step, {ready_s:.2f} s of it to be up; {counts}")


async def noted(log: Path, word: str) -> None:
    """Return once a step has noted the word."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if word in words(log):
                return
            await asyncio.sleep(0.01)


def words(log: Path) -> list[str]:
    """Return what the bodies of steps have noted, without what they noted of chance and keys."""
    return [line for line in log.read_text("ascii").splitlines() if " " not in line]


async def compare_steps(folder: Path) -> None:
    """Run the steps on every side."""
    url = f"sqlite:///{folder / 'dbos.db'}"
    DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR"})
    adapted, alone = task_workflow("steps", steps), DBOS.workflow(name="bare")(bare)
    DBOS.launch()
    store = await open_store(f"sqlite:///{folder / 'perdure.db'}")
    manifest = RunManifest("bench", AgentTaskSpec("steps", "do nothing"))

    async def ours(number: int) -> None:
        await run_durable(store, run_id=f"run-{number}", manifest=manifest, task=steps)

    with WorkflowEngine(folder).running() as engine:
        await compare(
            {
                OURS: ours,
                "DBOS with Perdure on SQLite": partial(on_dbos, adapted, "adapted"),
                "DBOS alone on SQLite": partial(on_dbos, alone, "alone"),
                "Cloudflare's local engine through the bridge": partial(on_cloudflare, engine),
            }
        )
    await store.close()
    DBOS.destroy()


async def kill_workers(folder: Path) -> None:
    """Kill the worker of each engine in the middle of a step."""
    with closing(DbosLab(f"sqlite:///{folder / 'killed.db'}", folder)) as lab:
        await kill("DBOS on SQLite", lab, folder)
    with WorkflowEngine(folder).running() as engine:
        await kill("Cloudflare's local engine", WorkflowLab(engine, folder), folder)


if __name__ == "__main__":
    need_node_packages()
    with tempfile.TemporaryDirectory() as name:
        # A loop for each: DBOS takes the threads of the loop that it ran on with it.
        asyncio.run(compare_steps(Path(name)))
        asyncio.run(kill_workers(Path(name)))
