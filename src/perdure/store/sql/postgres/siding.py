"""Where lists wait for rows that somebody keeps locked, so that their lane goes on without them."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from perdure.core.effects import jittered
from perdure.store.sql.postgres.dialect import is_lost, is_transient
from perdure.store.sql.postgres.line import Job, Line, answer, cut_off, refuse
from perdure.store.sql.postgres.silence import is_silent

_TRIES_MAX: Final = 8
_PAUSE_MS: Final = 5.0


class Siding:
    """Tries lists alone and in turn, each for as long as `line` waits for a lock.

    Lists that begin with the same row stay in order. The connection lives while something waits.
    """

    def __init__(self, line: Line, *, target: str) -> None:
        self._line = line
        self._target = target
        self._jobs: dict[str, deque[Job]] = {}
        self._tries: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    def holds(self, job: Job) -> bool:
        """Return whether the list has to wait here, behind another that begins with its row."""
        return bool(self._jobs) and job.place in self._jobs

    def put(self, job: Job) -> None:
        self._jobs.setdefault(job.place, deque()).append(job)
        if self._task is None or self._task.done():
            self._start()

    async def close(self) -> None:
        """Finish what was accepted, then let go."""
        while self._task is not None and not self._task.done():
            await asyncio.wait((self._task,))

    def _start(self) -> None:
        self._task = asyncio.create_task(self._serve(), name="perdure-postgres-siding")
        self._task.add_done_callback(self._go_on)

    def _go_on(self, over: asyncio.Task[None]) -> None:
        # Somebody has cancelled every task of the loop, but this work is not his.
        if over.cancelled() and self._jobs:
            self._start()

    async def _serve(self) -> None:
        try:
            while self._jobs:
                place = next(iter(self._jobs))
                try:
                    is_over = await self._try(self._jobs[place][0], place)
                except asyncio.CancelledError:
                    refuse(self._jobs[place][0], cut_off(self._target), self._target)
                    self._step_aside(place, is_over=True)
                    raise
                self._step_aside(place, is_over=is_over)
        finally:
            await self._line.close()

    def _step_aside(self, place: str, *, is_over: bool) -> None:
        """Let the next place have its turn."""
        jobs = self._jobs.pop(place)
        if is_over:
            jobs.popleft()
            self._tries.pop(place, None)
        if jobs:
            self._jobs[place] = jobs

    def _give_up(self, error: Exception, place: str) -> None:
        """Refuse all: they would wait as long again, one after the other."""
        for jobs in self._jobs.values():
            for job in jobs:
                refuse(job, error, self._target)
        self._jobs = {place: deque([self._jobs[place][0]])}
        self._tries.clear()

    async def _try(self, job: Job, place: str) -> bool:
        """Return whether the caller has an answer now."""
        tries = self._tries[place] = self._tries.get(place, 0) + 1
        try:
            answer(job, await self._line.run(job.statements))
        except Exception as error:
            if is_transient(error) and tries < _TRIES_MAX:
                await asyncio.sleep(jittered(_PAUSE_MS * 2**tries) / 1_000)
                return False
            if is_lost(error):
                await self._line.close()
            refuse(job, error, self._target)
            if is_silent(error):
                self._give_up(error, place)
        return True
