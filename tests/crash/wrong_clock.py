"""A process whose clock is wrong, and which holds a run until it is told to go on.

    python -m tests.crash.wrong_clock URL RUN OFFSET_MS LEASE_MS

It says "holds" when it works on the run, and at the end what became of it: "completed", or the
name of the error.
"""

from __future__ import annotations

import asyncio
import sys
import time

import perdure
from perdure.durable.context import DurableContext
from perdure.errors import PerdureError
from perdure.testing.samples import manifest


def set_clock(offset_ms: int) -> None:
    """Let this process take the time for another one; lengths, which are monotonic, stay right."""
    right = time.time_ns
    time.time_ns = lambda: right() + offset_ms * 1_000_000


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def told() -> str:
    say("holds")
    await asyncio.to_thread(sys.stdin.readline)
    return "by the holder"


async def task(context: DurableContext) -> str:
    return await context.step("only", told)


async def main(url: str, run_id: str, lease_ms: int) -> None:
    store = await perdure.open_store(url)
    try:
        await perdure.run_durable(
            store, run_id=run_id, manifest=manifest(), task=task, lease_ms=lease_ms
        )
        say("completed")
    except PerdureError as error:
        say(type(error).__name__)
    finally:
        await store.close()


if __name__ == "__main__":
    set_clock(int(sys.argv[3]))
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[4])))
