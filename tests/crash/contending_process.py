"""One of many workers that contend for runs, are late, die and get frozen; it notes each call.

    python -m tests.crash.contending_process URL LOG SEED FIRST OFFSET_MS

It works from run number FIRST on, with a clock that is wrong by OFFSET_MS. Each call of the store
has two lines of JSON in LOG, one before and one after it, in moments of the machine's monotonic
clock.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Awaitable
from itertools import count
from typing import Any

import perdure
from perdure.core.changes import CompleteStep, EndRun
from perdure.core.records import Lease
from perdure.errors import LeaseHeldError, LeaseLostError, RunNotFoundError, StoreError
from perdure.testing.samples import manifest, row
from tests.crash.wrong_clock import set_clock

LEASE_MS = 300
STEPS = 4
WINDOW = 5
"""So many runs are worked on at a time."""
EVENTS = ("red", "green")


class Log:
    """Calls in a file that survives the process, each line in one write."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._numbers = count()

    async def call(self, run: str, name: str, arguments: list[Any], doing: Awaitable[Any]) -> Any:
        """Note a call and its answer; one that failed has none, since it may have happened."""
        number = f"{os.getpid()}.{next(self._numbers)}"
        self._note(call=number, run=run, name=name, arguments=arguments)
        try:
            answer = await doing
        except StoreError as error:
            self._note(call=number, error=repr(error))
            return None
        self._note(call=number, answer=answer)
        return answer

    def _note(self, **facts: Any) -> None:
        line = json.dumps({"moment": time.monotonic_ns(), **facts}) + "\n"
        os.write(self._file, line.encode())


class Contender:
    """Claims a run, completes steps, ends it; drops it, or comes back too late, now and then."""

    def __init__(self, store: perdure.RunStore, log: Log, seed: int, first: int) -> None:
        self._store = store
        self._log = log
        self._dice = random.Random(seed)
        self._values = count()
        self._first = first

    async def work(self) -> None:
        while True:
            run = f"run-{self._first + self._dice.randrange(WINDOW)}"
            claim = await self._log.call(run, "claim", [], self._claim(run))
            if claim is None or claim[0] == "held":
                await self._look_around(run)
            elif claim[0] == "over":
                self._first += run == f"run-{self._first}"
                await self._pause()
            else:
                await self._hold(run, claim[1])

    async def _hold(self, run: str, epoch: int) -> None:
        for position in range(STEPS):
            await self._dawdle()
            value = f"{os.getpid()}.{next(self._values)}"
            complete = self._complete(position, value)
            if await self._log.call(run, "complete", [epoch, position, value], complete) == "lost":
                return
            if self._dice.random() < 0.1:
                return  # Nobody gives the lease back.
            if self._dice.random() < 0.3:
                await self._look_around(run)
        await self._dawdle()
        notes = f"by {os.getpid()} at {epoch}"
        await self._log.call(run, "end", [epoch, notes], self._end(notes))

    async def _look_around(self, run: str) -> None:
        if self._dice.random() < 0.5:
            await self._log.call(run, "read", [], self._read(run))
        else:
            key, value = self._dice.choice(EVENTS), f"{os.getpid()}.{next(self._values)}"
            await self._log.call(run, "emit", [key, value], self._emit(run, key, value))
        await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(self._dice.uniform(0, 0.04))

    async def _dawdle(self) -> None:
        """Work for a moment; one time in eight for longer than the lease."""
        late = self._dice.random() < 0.12
        await asyncio.sleep(LEASE_MS / 700 if late else self._dice.uniform(0, 0.02))

    # The calls.

    async def _claim(self, run: str) -> list[Any]:
        try:
            claim = await self._store.start_or_resume(
                run, manifest(), worker_id=str(os.getpid()), lease_ms=LEASE_MS
            )
        except LeaseHeldError:
            return ["held"]
        if claim.lease is None:
            return ["over", claim.run.outcome.notes if claim.run.outcome else None]
        self._lease: Lease = claim.lease
        self._seq = claim.next_seq
        return ["mine", claim.lease.epoch, self._results(claim.steps)]

    async def _complete(self, position: int, value: str) -> str:
        step = CompleteStep(position, f"step-{position}", json.dumps(value))
        try:
            written = await self._store.write(self._lease, step, row(self._seq, value))
        except LeaseLostError:
            return "lost"
        self._seq += 1
        return str(written.steps[0].result)

    async def _end(self, notes: str) -> str:
        end = EndRun("completed", json.dumps({"pass": True, "notes": notes}))
        try:
            await self._store.write(self._lease, end)
        except LeaseLostError:
            return "lost"
        return "done"

    async def _emit(self, run: str, key: str, value: str) -> list[Any] | str:
        try:
            won, event = await self._store.emit_event(run, key, value)
        except RunNotFoundError:
            return "unknown"
        return [won, event.payload]

    async def _read(self, run: str) -> list[Any]:
        return self._results(await self._store.read_steps(run))

    @staticmethod
    def _results(steps: Any) -> list[Any]:
        return [[step.step_index, step.result] for step in steps if step.status == "completed"]


async def main(url: str, path: str, seed: int, first: int) -> None:
    store = await perdure.open_store(url)
    await Contender(store, Log(path), seed, first).work()


if __name__ == "__main__":
    set_clock(int(sys.argv[5]))
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
