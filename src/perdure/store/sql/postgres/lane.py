"""The lists that wait for one connection, and the transactions that they share."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Final

from perdure.core.effects import monotonic_ms
from perdure.store.sql.postgres.dialect import is_lost, is_taken, is_transient
from perdure.store.sql.postgres.line import Job, Line, answer, cut_off, meaning, refuse
from perdure.store.sql.postgres.pipe import Connection, Outcome, Sent
from perdure.store.sql.postgres.siding import Siding
from perdure.store.sql.postgres.silence import is_silent, takes_long
from perdure.store.sql.postgres.texts import Rows, rows_of_each

LISTS_MAX: Final = 128
"""How many lists share one transaction at most."""
LATE_MS: Final = 20
"""A lane that has waited so long for its connection is not asked for what may go elsewhere."""


class Lane:
    """Runs what is put into it, in order; what piled up meanwhile shares a transaction.

    Everything of a transaction travels in one piece: whether it holds is decided in the database.
    As long as all goes well, nothing but callbacks lie between a list and its answer. A task is
    needed to connect, and where a shared transaction fails: then each list is run alone, and what
    still meets a locked row waits in the siding, behind which the lane goes on. What was sent on a
    connection that was lost is answered with StoreUnavailableError, since nobody can say whether
    it happened.
    """

    def __init__(self, line: Line, siding: Siding, *, target: str) -> None:
        self._line = line
        self._siding = siding
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._jobs: deque[Job] = deque()
        self._is_busy = False
        self._sent_ms = 0.0
        self._rested: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_late(self) -> bool:
        return self._is_busy and monotonic_ms() - self._sent_ms > LATE_MS

    def put(self, job: Job) -> None:
        self._jobs.append(job)
        if not self._is_busy:
            self._is_busy = True
            self._sent_ms = monotonic_ms()
            # Not at once: whoever else is woken with this caller may share the transaction.
            self._loop.call_soon(self._next)

    def adopt(self, connection: Connection) -> None:
        """Use a connection that was made for this lane, before anything was put into it."""
        self._line.adopt(connection)

    async def close(self) -> None:
        """Finish what was accepted, then let go."""
        while self._is_busy:
            self._rested = asyncio.Event()
            await self._rested.wait()
        await self._siding.close()
        await self._line.close()

    def _next(self) -> None:
        """Send what waits by now; runs behind those who were just answered."""
        jobs = self._take()
        self._sent_ms = monotonic_ms()
        if not jobs:
            self._is_busy = False
            if self._rested is not None:
                self._rested.set()
        elif self._line.is_open:
            self._send(jobs)
        else:
            self._start(jobs, is_open=False)

    def _take(self) -> list[Job]:
        waiting, jobs = self._jobs, list[Job]()
        while waiting and len(jobs) < LISTS_MAX:
            job = waiting.popleft()
            if self._siding.holds(job):
                self._siding.put(job)
            else:
                jobs.append(job)
        return jobs

    def _send(self, jobs: list[Job]) -> None:
        if len(jobs) > 1:
            # Whoever locks rows does it in one order, so that groups of two processes never
            # deadlock.
            jobs.sort(key=lambda job: job.place)
        ready: list[Job] = []
        lengths: list[int] = []
        sent: list[Sent] = []
        is_patient = False
        for job in jobs:
            try:
                rendered = self._line.render(job.statements)
            except Exception as error:
                refuse(job, error, self._target)
            else:
                ready.append(job)
                lengths.append(len(rendered))
                sent += rendered
                is_patient = is_patient or takes_long(job.statements)
        if sent:
            self._line.send(sent, partial(self._over, ready, lengths), is_patient=is_patient)
            return
        for job in ready:
            answer(job, [])
        self._loop.call_soon(self._next)

    def _over(self, jobs: Sequence[Job], lengths: Sequence[int], outcome: Outcome) -> None:
        if isinstance(outcome, list):
            undecided = self._tell(jobs, lengths, outcome)
            if undecided:
                self._start(undecided, is_open=True)
                return
        elif is_lost(outcome):
            self._lose(jobs, outcome)
        elif len(jobs) == 1 and not is_taken(outcome):
            self._refuse_alone(jobs[0], meaning(outcome))
        else:
            self._start(jobs, is_open=True)
            return
        self._loop.call_soon(self._next)

    def _tell(self, jobs: Sequence[Job], lengths: Sequence[int], rows: Rows) -> list[Job]:
        """Answer all lists of a transaction but those that have to be run as they stand."""
        at, undecided = 0, list[Job]()
        for job, length in zip(jobs, lengths, strict=True):
            try:
                found = rows_of_each(job.statements, rows[at : at + length])
            except Exception as error:
                refuse(job, error, self._target)
            else:
                if found is None:
                    undecided.append(job)
                else:
                    answer(job, found)
            at += length
        return undecided

    # Where something is in the way.

    def _lose(self, jobs: Sequence[Job], error: Exception) -> None:
        for job in jobs:
            refuse(job, error, self._target)
        if is_silent(error):
            # They would wait as long again, one transaction after the other.
            while self._jobs:
                refuse(self._jobs.popleft(), error, self._target)

    def _start(self, jobs: Sequence[Job], *, is_open: bool) -> None:
        work = self._run_each(jobs) if is_open else self._open_and_send(list(jobs))
        self._task = self._loop.create_task(work, name="perdure-postgres")
        self._task.add_done_callback(partial(self._go_on, jobs))

    def _go_on(self, jobs: Sequence[Job], over: asyncio.Task[None]) -> None:
        if over.cancelled():
            # Somebody has cancelled every task of the loop, but this work is not his.
            for job in jobs:
                refuse(job, cut_off(self._target), self._target)
            self._next()

    async def _open_and_send(self, jobs: list[Job]) -> None:
        try:
            await self._line.open()
        except Exception as error:
            self._lose(jobs, error)
            self._next()
        else:
            self._send(jobs)

    async def _run_each(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            await self._run_alone(job)
        self._next()

    async def _run_alone(self, job: Job) -> None:
        if self._siding.holds(job):
            self._siding.put(job)
            return
        try:
            answer(job, await self._line.run(job.statements))
        except Exception as error:
            if is_lost(error):
                await self._line.close()
            self._refuse_alone(job, error)

    def _refuse_alone(self, job: Job, error: Exception) -> None:
        if is_transient(error):
            self._siding.put(job)
        else:
            refuse(job, error, self._target)
