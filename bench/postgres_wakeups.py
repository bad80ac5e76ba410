"""How soon another process hears of what happens on PostgreSQL, with notifications and without.

    python -m bench.postgres_wakeups [--rounds 40] [--writers 0] [--url postgresql://…]

Starts a server of its own unless it is given the address of one. A worker waits on one handle, and
everything else happens on another: an event is emitted, a sleep ends, a stop is asked for, a frame
is written for a reader. Without notifications the handles are as behind a pooler, `pooled=1`.
`--writers` other runs take a step after the other meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import perdure
from perdure.core.changes import AppendFrames
from perdure.core.frames import encode_row, text
from tests.store.postgres_server import running_server

MANIFEST = perdure.RunManifest("bench", perdure.AgentTaskSpec("bench", "Measure"))
SLEEP_MS = 120


class Stage:
    """A worker on one handle, and the handle on which everything else happens."""

    def __init__(self, near: perdure.RunStore, far: perdure.RunStore) -> None:
        self.near = near
        self.worker = perdure.Worker(far, tasks={"wait": self._wait, "nap": self._nap})
        self.far = far
        self.woken: asyncio.Queue[float] = asyncio.Queue()
        self.asleep: asyncio.Queue[float] = asyncio.Queue()

    async def _wait(self, context: perdure.DurableContext) -> None:
        try:
            await context.await_event("go")
        finally:
            self.woken.put_nowait(time.perf_counter())

    async def _nap(self, context: perdure.DurableContext) -> None:
        await context.step("note", lambda: self.asleep.put_nowait(time.perf_counter()))
        await context.sleep(SLEEP_MS)
        self.woken.put_nowait(time.perf_counter())

    async def in_state(self, run_id: str, *states: str) -> None:
        while True:
            run = await self.near.read_run(run_id)
            if run is not None and run.state in states:
                return
            await asyncio.sleep(0.002)

    async def waiting(self, run_id: str) -> None:
        """Bring a run so far that it waits, and nobody holds it."""
        await self.worker.submit("wait", run_id=run_id, manifest=MANIFEST)
        await self.in_state(run_id, "waiting")
        while not self.woken.empty():
            self.woken.get_nowait()


async def event(stage: Stage, run_id: str) -> float:
    await stage.waiting(run_id)
    began = time.perf_counter()
    await perdure.emit_event(stage.near, run_id, "go", None)
    return await stage.woken.get() - began


async def sleep(stage: Stage, run_id: str) -> float:
    while not stage.woken.empty():
        stage.woken.get_nowait()
    await stage.worker.submit("nap", run_id=run_id, manifest=MANIFEST)
    began = await stage.asleep.get()
    return await stage.woken.get() - began - SLEEP_MS / 1_000


async def stop(stage: Stage, run_id: str) -> float:
    await stage.waiting(run_id)
    began = time.perf_counter()
    await stage.near.request_stop(run_id)
    await stage.in_state(run_id, "stopped")
    return time.perf_counter() - began


async def frame(stage: Stage, run_id: str) -> float:
    claim = await stage.near.start_or_resume(run_id, MANIFEST, worker_id="bench")
    assert claim.lease is not None

    async def read() -> float:
        while not await stage.far.read_frames(run_id):
            await stage.far.wait_for_change(run_id, timeout_ms=10_000)
        return time.perf_counter()

    reading = asyncio.create_task(read())
    await asyncio.sleep(0.1)
    began = time.perf_counter()
    await stage.near.write(claim.lease, AppendFrames(1, 1, encode_row([text("a", part="0")])))
    return await reading - began


Measure = Callable[[Stage, str], Awaitable[float]]
EVENT = "an event is emitted"
MEASURES: dict[str, Measure] = {
    EVENT: event,
    "a sleep ends (late by)": sleep,
    "a stop of a waiting run": stop,
    "a reader gets a frame": frame,
}


@asynccontextmanager
async def busy(store: perdure.RunStore, writers: int) -> AsyncIterator[None]:
    """Let other runs take steps meanwhile."""

    async def task(context: perdure.DurableContext) -> None:
        while True:
            await context.step("small", lambda: 1)
            await asyncio.sleep(0.01)

    async def write(number: int) -> None:
        await perdure.run_durable(
            store, run_id=f"other-{time.time_ns()}-{number}", manifest=MANIFEST, task=task
        )

    writing = [asyncio.create_task(write(number)) for number in range(writers)]
    try:
        yield
    finally:
        for each in writing:
            each.cancel()
        await asyncio.gather(*writing, return_exceptions=True)


@asynccontextmanager
async def working(url: str, writers: int = 0) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        stores = []
        for _ in range(3):
            store = await perdure.open_store(url)
            stack.push_async_callback(store.close)
            stores.append(store)
        near, far, others = stores
        stage = Stage(near, far)
        worker = asyncio.create_task(stage.worker.run())
        async with busy(others, writers):
            yield stage
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)


async def took(stage: Stage, name: str, rounds: int) -> tuple[float, float]:
    """Return the median and the worst, in milliseconds."""
    mark, one = time.time_ns(), MEASURES[name]
    figures = [1e3 * await one(stage, f"{mark}-{name}-{index}") for index in range(rounds)]
    return statistics.median(figures), max(figures)


async def event_alone(url: str, rounds: int) -> tuple[float, float]:
    """Return how soon an event is noticed, median and worst in milliseconds, on any store."""
    async with working(url) as stage:
        return await took(stage, EVENT, rounds)


async def measure(url: str, rounds: int, writers: int) -> None:
    async with working(url, writers) as stage:
        for name in MEASURES:
            median, worst = await took(stage, name, rounds)
            print(f"  {name:<26}{median:7.1f} ms median {worst:7.1f} worst")


async def both(url: str, options: argparse.Namespace) -> None:
    print("with notifications")
    await measure(url, options.rounds, options.writers)
    print("without, as behind a pooler")
    await measure(f"{url}&pooled=1", options.rounds, options.writers)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--writers", type=int, default=0)
    parser.add_argument("--url")
    options = parser.parse_args()
    if options.url:
        asyncio.run(both(options.url, options))
        return
    with running_server(flushes=True) as server:
        asyncio.run(both(server.new_store(), options))


if __name__ == "__main__":
    main()
