"""Driving the producer of one attempt at a turn, and interrupting it."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from perdure.core.effects import monotonic_ms
from perdure.core.frames import Frame
from perdure.durable.attempt import Attempt
from perdure.durable.calls import note_failure
from perdure.durable.journal import Journal
from perdure.durable.steps import StepScope, inside
from perdure.errors import DurableRunError, PerdureError
from perdure.turn import driving
from perdure.turn.closing import Produce
from perdure.turn.handout import Turn
from perdure.turn.parts import Content, frame_or_event
from perdure.turn.stepping import TurnSteps

logger = logging.getLogger("perdure.turn")

FAIR_ITEMS: Final = 64
"""After so many items the event loop gets a turn, even if the producer never waits."""
LOOK_MS: Final = 1_000
"""A turn that writes nothing looks this often whether a stop was asked for elsewhere."""


class Producing:
    """Drives a producer to its end: what it yields is journaled and counted as the answer.

    `swallow_to`: up to this position recorded steps replay, and what is yielded between them is
    with the readers already.
    """

    def __init__(
        self,
        scope: StepScope,
        *,
        attempt: Attempt,
        journal: Journal,
        steps: TurnSteps,
        content: Content,
        idle_timeout_ms: int,
    ) -> None:
        self.swallow_to = 0
        self.is_idle = False
        """Nothing came for too long."""
        self.was_interrupted = False
        self._scope = scope
        self._attempt = attempt
        self._journal = journal
        self._steps = steps
        self._content = content
        self._idle_timeout_ms = idle_timeout_ms
        self._interrupted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._work: asyncio.Task[str | None] | None = None
        self._taken = 0
        self._is_held_back = False
        self._unheard_to = 0

    async def run(self, produce: Produce, turn: Turn) -> None:
        """Return when the producer is over, or was interrupted and had time to clean up.

        Cancelling this interrupts the producer too.
        """
        if self.was_interrupted:
            return
        loop = asyncio.get_running_loop()
        self._steps.attendant = asyncio.current_task()
        self._unheard_to = self._journal.last_seq
        self._work = work = loop.create_task(self._drive(produce, turn))
        work.add_done_callback(note_failure)
        watching = loop.create_task(self._watch())
        try:
            await asyncio.wait((work, self._interrupted), return_when=asyncio.FIRST_COMPLETED)
            await self._clean_up(work)
        except asyncio.CancelledError:
            self.interrupt()
            await self._clean_up(work)
            raise
        finally:
            watching.cancel()

    def interrupt(self) -> None:
        """Cancel the producer, once: it may need the time to clean up."""
        if not self.was_interrupted:
            self.was_interrupted = True
            self._interrupted.set_result(None)
            if not self._attempt.held.lost:
                self._steps.refuse(asyncio.CancelledError("the turn is interrupted"))
            if self._work is not None:
                self._work.cancel()

    @property
    def has_finished(self) -> bool:
        """Whether the producer came to its own end."""
        work = self._work
        return (
            work is not None and work.done() and not work.cancelled() and work.exception() is None
        )

    @property
    def final_text(self) -> str | None:
        """The producer's own final text, if it has one."""
        return self._work.result() if self._work is not None and self.has_finished else None

    @property
    def error(self) -> BaseException | None:
        """What the producer raised; None while nobody knows, or when it was interrupted."""
        work = self._work
        if work is None or not work.done():
            return None
        if not work.cancelled():
            return work.exception()
        return None if self.was_interrupted else DurableRunError("the producer cancelled itself")

    async def _clean_up(self, work: asyncio.Task[str | None]) -> None:
        await driving.time_to_clean_up(work)
        try:
            async with asyncio.timeout(driving.GRACE_MS / 1_000):
                await self._steps.close()
        except TimeoutError:
            logger.debug("steps of turn %r are left behind", self._attempt.lease.run_id)
        driving.tell_if_left_behind(work, self._attempt.lease.run_id)

    # The producer.

    async def _drive(self, produce: Produce, turn: Turn) -> str | None:
        with inside(self._scope):
            producer, items = await driving.opened(produce(turn))
            async with driving.closing(items):
                async for item in items:
                    if isinstance(item, Frame) and item.kind == "upstream_begin":
                        await turn.save_handle(item.data["handle"])
                        continue
                    self._take(item)
                    if self._taken % FAIR_ITEMS == 0:
                        # A producer that never waits must not keep others waiting.
                        await self._let_others_go_on()
                    if self._journal.is_full:
                        await self._journal.room()
            if self.was_interrupted:
                # It made a normal end of the interruption, but its answer is not whole.
                raise asyncio.CancelledError
            return await driving.final_text_of(producer)

    async def _let_others_go_on(self) -> None:
        """Wait, once, until something of what was said is with the readers.

        The thread that stores it gets hardly any time of the interpreter from a producer that never
        waits: readers would have nothing until that one is over.
        """
        journal, ring = self._journal, self._journal.ring
        if ring.last_seq <= self._unheard_to < journal.last_seq and not ring.closed:
            self._is_held_back = True
            await ring.news()
            self._is_held_back = False
        else:
            await asyncio.sleep(0)

    def _take(self, item: object) -> None:
        if self.was_interrupted:
            raise asyncio.CancelledError
        self._taken += 1
        taken = frame_or_event(item)
        if self.swallow_to and not self._is_past_replay() and not self._steps.is_streamed(item):
            return
        if not isinstance(taken, Frame):
            self._content.add_event(taken, self._journal.append_event(taken))
            return
        if taken.kind == "upstream_end":
            self._steps.finish_reason = taken.data["finish"]
        for numbered in self._journal.append(taken):
            self._content.add(numbered, self._journal.element_text)

    def _is_past_replay(self) -> bool:
        if self._steps.answered_position >= self.swallow_to:
            self.swallow_to = 0
        return self.swallow_to == 0

    # Watching over it.

    async def _watch(self) -> None:
        """One timer for the whole turn: a time-out around each item would cost more than it."""
        taken, active_ms = -1, 0.0
        while True:
            is_busy = self._steps.executing or self._journal.is_full or self._is_held_back
            # Whoever yields a token does not ask for the time: this looks often enough.
            if is_busy or taken != self._taken:
                taken, active_ms = self._taken, monotonic_ms()
            silent_ms = monotonic_ms() - max(active_ms, self._steps.active_ms)
            remaining_ms = self._idle_timeout_ms - silent_ms
            if remaining_ms <= 0:
                self.is_idle = True
                self.interrupt()
                return
            await asyncio.sleep(min(remaining_ms, self._look_in_ms()) / 1_000)
            await self._listen()

    def _look_in_ms(self) -> float:
        """Return how long no look is due: as long after a write as after another look."""
        since_ms = monotonic_ms() - self._journal.written_ms
        return LOOK_MS if since_ms >= LOOK_MS else LOOK_MS - since_ms

    async def _listen(self) -> None:
        """A write hears of a stop, and a beat does; without a write, look in between."""
        if monotonic_ms() - self._journal.written_ms < LOOK_MS:
            return
        try:
            run = await self._attempt.store.read_run(self._attempt.run.run_id)
        except PerdureError as error:
            logger.debug("a turn could not look whether it should stop: %s", error)
            return
        if run is not None and run.stop_requested_at is not None:
            self._attempt.held.ask_to_stop()
