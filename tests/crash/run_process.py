"""A process that works on one run until it is finished, to be killed from outside or by itself.

    python run_process.py URL NOTES [--step-ms N] [--lease-ms N] [--die-at N --when before|after]

Each body notes `run INTENT` when it begins, the task `done INTENT` once the step is committed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from typing import NoReturn

from perdure.core.limits import LEASE_MS
from perdure.core.records import AgentTaskSpec, RunManifest
from perdure.durable.context import DurableContext
from perdure.durable.runner import run_durable
from perdure.errors import LeaseHeldError, LeaseLostError, RunParkedError
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.testing.crashing import Process, When, crashing

LEASE_LOST, PARKED = 42, 43
INTENTS = ("draw", "left", "right", "wait", "seal")
MANIFEST = RunManifest(project_id="crash", task=AgentTaskSpec(id="story", intent="Tell a story"))


class KilledProcess(Process):
    """Dies by SIGKILL, as a process does that gets no chance to say goodbye."""

    def _die(self, name: str) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise SystemExit(name)


class Notes:
    """Lines that survive the process."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, what: str, intent: str) -> None:
        os.write(self._file, f"{what} {intent}\n".encode())


async def story(context: DurableContext, notes: Notes, step_ms: int) -> list[str]:
    async def step(intent: str) -> str:
        async def body() -> str:
            notes.note("run", intent)
            await asyncio.sleep(step_ms / 1_000)
            return f"{intent} by {os.getpid()}"

        answer = await context.step(intent, body)
        notes.note("done", intent)
        return answer

    first = await step("draw")
    both = await asyncio.gather(step("left"), step("right"))
    return [first, *both, await step("wait"), await step("seal")]


async def work(store: RunStore, notes: Notes, step_ms: int, lease_ms: int) -> None:
    while True:
        try:
            await run_durable(
                store,
                run_id="run",
                manifest=MANIFEST,
                task=lambda context: story(context, notes, step_ms),
                lease_ms=lease_ms,
            )
        except LeaseHeldError:
            await asyncio.sleep(0.02)
        else:
            return


async def main(arguments: argparse.Namespace) -> int:
    store = await open_store(arguments.url)
    when: When = arguments.when
    process = KilledProcess(arguments.die_at, when)
    try:
        notes = Notes(arguments.notes)
        await work(crashing(store, process), notes, arguments.step_ms, arguments.lease_ms)
    except LeaseLostError:
        return LEASE_LOST
    except RunParkedError:
        return PARKED
    finally:
        await store.close()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("notes")
    parser.add_argument("--step-ms", type=int, default=5)
    # So long that a busy machine takes it from nobody; from the dead it is taken at once.
    parser.add_argument("--lease-ms", type=int, default=LEASE_MS)
    parser.add_argument("--die-at", type=int)
    parser.add_argument("--when", default="before")
    raise SystemExit(asyncio.run(main(parser.parse_args())))
