"""A turn that is produced once, without a journal: the machine behind run_durable_turn."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final, NamedTuple

from perdure.core import identity
from perdure.core.changes import (
    BeginStep,
    Change,
    CompleteStep,
    EndRun,
    FailStep,
    IntendUsage,
    Release,
    SettleUsage,
    Suspend,
)
from perdure.core.jsonvalue import encode_value
from perdure.core.limits import STRIKES_MAX_TURN
from perdure.core.recordjson import outcome_text, step_error_of
from perdure.core.records import Claim, RunManifest, RunOutcome, RunRecord, StepError
from perdure.durable.attempt import Attempt, error_text
from perdure.durable.calls import note_failure
from perdure.durable.claiming import Claiming
from perdure.durable.live import LiveRun, LiveRuns
from perdure.durable.untorn import finish_even_if_cancelled
from perdure.durable.watched import watched
from perdure.errors import (
    DivergenceError,
    DurableRunError,
    LeaseLostError,
    PerdureError,
    RunInputMismatchError,
    RunParkedError,
    RunStoppedError,
    StoreClosedError,
    StoreError,
    UsageError,
)
from perdure.store.closing import CLOSED, before_close, keeping_open
from perdure.store.protocol import RunStore
from perdure.turn import driving
from perdure.turn.ending import ANSWER_BYTES_MAX, final_text_of
from perdure.turn.hooks import call_hook

logger = logging.getLogger("perdure.turn")

STALL_MS: Final = 30_000
"""A consumer that takes nothing for this long is cut off; its turn goes on."""
_BEHIND_MAX: Final = 1_024
"""Events that may wait for the consumer before the producer does."""


class TurnCall(NamedTuple):
    """The arguments of one call of run_durable_turn."""

    store: RunStore
    run_id: str
    manifest: RunManifest
    produce: Callable[[], Any]
    replay_event: Callable[[str], Any]
    accumulate: Callable[[Any, str], str | None] | None
    intent: str
    worker_id: str
    lease_ms: int


class Pipe:
    """Carries events from a detached turn to its one consumer, who may be slow, or leave."""

    def __init__(self) -> None:
        self._events: deque[Any] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._is_open = True
        self._is_cut = False
        self._is_finished = False

    async def put(self, event: Any) -> None:
        """Hand over an event; wait for a consumer who is behind, but not for ever."""
        if self._is_open and len(self._events) >= _BEHIND_MAX:
            await self._wait_for_room()
        if self._is_open:
            self._events.append(event)
            self._news.set()

    async def _wait_for_room(self) -> None:
        self._room.clear()
        try:
            async with asyncio.timeout(STALL_MS / 1_000):
                await self._room.wait()
        except TimeoutError:
            logger.warning("the consumer of a turn took nothing for %d ms: cut off", STALL_MS)
            self._is_cut = True
            self.leave()

    def finish(self) -> None:
        """Say that no more events come; those of a producer that was left behind go nowhere."""
        self._is_finished, self._is_open = True, False
        self._news.set()

    def leave(self) -> None:
        """Take nothing any more; a producer who waits for room goes on."""
        self._is_open = False
        self._events.clear()
        self._room.set()

    async def events(self) -> AsyncGenerator[Any, None]:
        """Yield events until `finish`. Raises UsageError when the consumer was cut off."""
        while True:
            while self._events:
                yield self._events.popleft()
                self._room.set()
            if self._is_cut:
                raise UsageError("this consumer was too slow for its turn, which goes on")
            if self._is_finished:
                return
            self._news.clear()
            await self._news.wait()


live_turns: Final[LiveRuns[ProducedTurn]] = LiveRuns()


class ProducedTurn:
    """One turn: opened at the first pull, detached from then on, settled by itself."""

    def __init__(self, call: TurnCall) -> None:
        self.was_replayed = False
        self._call = call
        self._manifest_hash = identity.manifest_hash(call.manifest)
        self._input_hash = identity.canonical_hash(call.manifest.input)
        self._stored_id = identity.stored_id(call.store.tenant, call.run_id)
        self._claiming = Claiming(
            call.store,
            call.run_id,
            call.manifest,
            worker_id=call.worker_id,
            lease_ms=call.lease_ms,
            retry=True,
        )
        self._pipe = Pipe()
        self._work: asyncio.Task[str] | None = None
        self._interrupted = asyncio.Event()
        self._attempt: Attempt | None = None
        self._draining = False
        self._is_left_behind = False
        """The producer goes on although it was interrupted."""
        self._tries = 1
        self._text = ""
        self._record: RunRecord | None = None

    def outcome(self) -> tuple[str, RunRecord]:
        """Return the final text and record. Raises UsageError before the stream has drained."""
        if self._record is None:
            raise UsageError("a turn has its text and record once its stream has drained")
        return self._text, self._record

    async def events(self) -> AsyncGenerator[Any, None]:
        """Open the turn and yield its events; leaving does not end it."""
        live = await self._enter()
        handle = self._call.store.handle
        try:
            with keeping_open(handle):
                claim = await self._claim()
                settled = None if claim.lease is None else self._start(live, claim)
            if settled is None:
                live_turns.leave(handle, self._stored_id)
                yield await self._replay(claim)
                return
        except BaseException:
            if live.work is None:
                live_turns.leave(handle, self._stored_id)
            raise
        try:
            async for event in self._pipe.events():
                yield event
        finally:
            self._pipe.leave()
        await settled

    # Opening.

    async def _enter(self) -> LiveRun[ProducedTurn]:
        """Register the turn; a call for one that is live here waits for its end first."""
        handle = self._call.store.handle
        while (live := live_turns.find(handle, self._stored_id)) is not None:
            if live.manifest_hash != self._manifest_hash:
                raise RunInputMismatchError(f"the run {self._call.run_id!r} has another input")
            await live.gone.wait()
        return live_turns.enter(handle, self._stored_id, self._manifest_hash)

    async def _claim(self) -> Claim:
        call = self._call
        claim = await self._claiming.claim()
        known = claim.steps[0] if claim.steps else None
        if known is not None and known.intent != call.intent:
            error = DivergenceError(
                f"step 0 of run {call.run_id!r} is recorded as {known.intent!r}, not as "
                f"{call.intent!r}"
            )
            if claim.lease is not None:
                await finish_even_if_cancelled(self._attempt_at(claim).park(error.code, error))
            raise error
        return claim

    def _attempt_at(self, claim: Claim) -> Attempt:
        call, asked_ms = self._call, self._claiming.asked_ms
        return Attempt(call.store, claim, lease_ms=call.lease_ms, asked_ms=asked_ms)

    async def _replay(self, claim: Claim) -> Any:
        self.was_replayed = True
        self._text = final_text_of(claim.steps[0].result if claim.steps else None)
        event = await call_hook(self._call.replay_event, self._text)
        self._record = claim.run
        return event

    def _start(self, live: LiveRun[ProducedTurn], claim: Claim) -> asyncio.Task[None]:
        call = self._call
        self._attempt = self._attempt_at(claim)
        self._attempt.on_change = self._interrupt
        self._tries = claim.steps[0].attempts + 1 if claim.steps else 1
        live.work = self
        forget = before_close(call.store.handle, self._drain)
        work = watched(self._attempt, self._run(claim), agent=claim.run.project_id)
        settled = asyncio.get_running_loop().create_task(work)

        def over(task: asyncio.Task[None]) -> None:
            forget()
            self._pipe.finish()
            live_turns.leave(call.store.handle, self._stored_id)
            if not task.cancelled():
                task.exception()  # Its consumer may have left: then nobody else asks for it.

        settled.add_done_callback(over)
        self._settled = settled
        return settled

    # Working.

    async def _run(self, claim: Claim) -> None:
        attempt = self._working
        try:
            if attempt.stop_requested:
                await self._stop()
            if claim.run.strikes >= STRIKES_MAX_TURN:
                error = RunParkedError(f"{claim.run.strikes} attempts at the turn crashed")
                await attempt.park("attempts_exhausted", error)
                raise error
            await attempt.write(
                BeginStep(0, self._call.intent, "llm", self._input_hash, self._tries),
                IntendUsage(0, step_index=0),
            )
            await self._produce_and_settle()
        except asyncio.CancelledError:
            # The event loop shuts down: somebody else goes on at once.
            if not attempt.is_over and not attempt.held.lost:
                await self._leave(Release("drained"))
            raise
        finally:
            attempt.end()

    async def _produce_and_settle(self) -> None:
        attempt = self._working
        loop = asyncio.get_running_loop()
        self._work = work = loop.create_task(self._produce())
        work.add_done_callback(note_failure)
        interrupted = loop.create_task(self._interrupted.wait())
        if self._draining or attempt.stop_requested or attempt.held.lost:
            self._interrupt()
        try:
            await asyncio.wait((work, interrupted), return_when=asyncio.FIRST_COMPLETED)
            await driving.time_to_clean_up(work)
        except asyncio.CancelledError:
            work.cancel()
            await driving.time_to_clean_up(work)
            raise
        finally:
            interrupted.cancel()
            self._is_left_behind = not work.done()
            driving.tell_if_left_behind(work, self._stored_id)
        error = work.exception() if work.done() and not work.cancelled() else None
        if attempt.held.lost:
            raise LeaseLostError(f"the lease on turn {self._stored_id!r} is lost")
        if attempt.stop_requested:
            # A producer may make an end of the interruption: its text is a part of the answer.
            await self._stop()
        elif self._draining:
            await self._leave(Release("drained"))
            raise StoreClosedError(f"the turn {self._call.run_id!r} was given back: {CLOSED}")
        elif work.cancelled():
            await self._fail(DurableRunError("the producer cancelled itself"))
        elif error is not None:
            await self._fail(error)
        else:
            await self._complete_or_fail(work.result())

    async def _produce(self) -> str:
        """Drive the producer to its end and return the turn's text."""
        call = self._call
        producer, events = await driving.opened(call.produce())
        async with driving.closing(events):
            async for event in events:
                if self._is_left_behind:
                    # What the turn came to is recorded without it.
                    raise asyncio.CancelledError
                if call.accumulate is not None:
                    text = await call_hook(call.accumulate, event, self._text)
                    self._text = text if isinstance(text, str) else self._text
                await self._pipe.put(event)
        return await driving.final_text_of(producer) or self._text

    # Settling.

    async def _complete_or_fail(self, text: str) -> None:
        """Complete the turn; an answer that cannot be stored fails it."""
        try:
            self._answer({"finalText": text})
        except PerdureError as error:
            await self._fail(error)
        await self._complete(text)

    async def _complete(self, text: str) -> None:
        self._text = text
        chars = len(text.encode("utf-16-le", "surrogatepass")) // 2
        outcome = RunOutcome(notes=self._call.intent, metadata={"chars": chars})
        end = EndRun("completed", outcome_text(outcome))
        await self._leave(self._answer({"finalText": text}), end)
        await self._read_record()

    async def _stop(self) -> None:
        answer = self._answer({"finalText": self._text, "stopped": True})
        await self._leave(answer, EndRun("stopped"))
        await self._read_record()
        raise RunStoppedError(f"the turn {self._call.run_id!r} was stopped")

    async def _fail(self, error: BaseException | None) -> None:
        assert error is not None
        if isinstance(error, LeaseLostError | StoreError):
            raise error
        recorded = step_error_of(error)
        failed = FailStep(
            0,
            self._call.intent,
            error_text(StepError(recorded.message)),
            kind="llm",
            input_hash=self._input_hash,
            tries=self._tries,
        )
        await self._leave(failed, EndRun("failed", error_text=error_text(recorded)))
        await self._read_record()
        raise error

    def _answer(self, answer: dict[str, Any]) -> CompleteStep:
        return CompleteStep(
            0,
            self._call.intent,
            encode_value(answer, name="the turn's answer", bytes_max=ANSWER_BYTES_MAX),
            kind="llm",
            input_hash=self._input_hash,
            tries=self._tries,
        )

    async def _leave(self, *changes: Change) -> None:
        usage = SettleUsage(0, state="unknown")
        *first, last = changes
        assert isinstance(last, EndRun | Release | Suspend)
        await finish_even_if_cancelled(self._working.leave(*first, usage, last))

    async def _read_record(self) -> None:
        self._record = await self._call.store.read_run(self._call.run_id)

    # Being told.

    @property
    def _working(self) -> Attempt:
        assert self._attempt is not None
        return self._attempt

    def _interrupt(self) -> None:
        self._interrupted.set()
        if self._work is not None:
            self._work.cancel()

    async def _drain(self) -> None:
        self._draining = True
        self._interrupt()
        await asyncio.wait([self._settled])
