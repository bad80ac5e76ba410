"""Absurd (PostgreSQL): tasks of a queue that one worker drains."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from absurd_sdk import AsyncAbsurd

from bench.sides.asked import AT_ONCE, WARM_STEPS, Answer, Asked, answer, result


class Queue:
    """A queue in an empty database."""

    def __init__(self, place: str) -> None:
        command = str(Path(sys.executable).parent / "absurdctl")
        known = {**os.environ, "PGDATABASE": place, "ABSURD_DATABASE_URL": place}
        subprocess.run([command, "init"], check=True, env=known, stdout=subprocess.DEVNULL)
        self.app = AsyncAbsurd(place, queue_name="bench")
        self.lengths_s: dict[str, float] = {}
        self.missing: set[str] = set()
        self.all_done = asyncio.Event()
        self.reached = self.began = 0.0

        @self.app.register_task("loop")
        async def loop(asked: dict[str, Any], context: Any) -> dict[str, bool]:
            self.began = time.perf_counter()
            for index in range(asked["count"]):
                await context.step("small", lambda i=index: _later(i))
            self.reached = time.perf_counter()
            if asked.get("stays_open"):
                raise RuntimeError("not done yet")
            self.lengths_s[asked["name"]] = self.reached - self.began
            self.missing.discard(asked["name"])
            if not self.missing:
                self.all_done.set()
            return {"ok": True}

        self.loop = loop


async def _later(index: int) -> dict[str, Any]:
    return result(index)


async def opened(asked: Asked) -> Queue:
    queue = Queue(asked.place)
    await queue.app.create_queue()
    await queue.app.spawn("loop", {"count": WARM_STEPS, "name": "warm"})
    await queue.app.work_batch()
    return queue


async def steps(asked: Asked) -> Answer:
    queue = await opened(asked)
    await queue.app.spawn("loop", {"count": asked.size, "name": "run"})
    cpu = time.process_time()
    await queue.app.work_batch()
    cpu = time.process_time() - cpu
    each = 1e6 / asked.size
    return {"value": queue.lengths_s["run"] * each, "cpu_us": cpu * each}


async def runs(asked: Asked) -> Answer:
    """All are queued first, which counts; then one worker drains them."""
    queue = await opened(asked)
    names = [str(number) for number in range(asked.size)]
    queue.missing.update(names)
    queue.all_done.clear()
    began = time.perf_counter()
    for name in names:
        await queue.app.spawn("loop", {"count": 3, "name": name})
    working = asyncio.create_task(queue.app.start_worker(concurrency=AT_ONCE, poll_interval=0.01))
    await queue.all_done.wait()
    took_s = time.perf_counter() - began
    queue.app.stop_worker()
    await working
    lengths = sorted(queue.lengths_s[name] for name in names)
    return {"value": asked.size / took_s, "p99_ms": lengths[int(len(lengths) * 0.99)] * 1e3}


async def resume(asked: Asked) -> Answer:
    queue = await opened(asked)
    open_forever = {"count": asked.size, "name": "run", "stays_open": True}
    await queue.app.spawn("loop", open_forever, retry_strategy={"kind": "none"}, max_attempts=2)
    await queue.app.work_batch()
    first = queue.reached
    while queue.reached == first:
        began = time.perf_counter()
        await queue.app.work_batch()
        await asyncio.sleep(0.02)
    return {"value": (queue.reached - began) * 1e3}


if __name__ == "__main__":
    answer({"steps": steps, "runs": runs, "resume": resume})
