"""One attempt at a chat turn: a leased job of its own, which no reader can end by leaving."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Sequence
from typing import cast

from perdure.core import identity
from perdure.core.changes import BeginStep, Change, IntendUsage
from perdure.core.effects import monotonic_ms
from perdure.core.frames import Frame, cursor_mark, fold_parts, format_cursor, part_frame, text_of
from perdure.core.records import Claim
from perdure.durable.attempt import Attempt
from perdure.durable.journal import Journal, Ring
from perdure.durable.steps import StepScope, StepSpec, inside
from perdure.errors import (
    DivergenceError,
    LeaseLostError,
    PerdureError,
    RunParkedError,
    StoreCorruptError,
    StoreError,
    UnfinishedStepError,
)
from perdure.store.protocol import RunStore
from perdure.turn.closing import Closing, TurnSettings
from perdure.turn.ending import IdleTimeoutError, ProducerLostError
from perdure.turn.handout import AttemptedTurn, Turn, TurnSteps
from perdure.turn.history import history_of
from perdure.turn.hooks import call_hook, flush_trace, has_hook
from perdure.turn.identity import identity_of, intent_of
from perdure.turn.parts import frame_of
from perdure.turn.recovery import (
    Evidence,
    Partial,
    choose_rung,
    gather_evidence,
    last_kept_position,
)
from perdure.turn.wire.events import Addressee, Event, events_of, started

logger = logging.getLogger("perdure.turn")


class LiveTurn:
    """A claimed turn while this process works on it.

    It reads what earlier attempts left, goes on by the ladder, journals what the producer yields,
    and ends the run: completed, stopped, failed, parked, or released when it was drained.
    """

    def __init__(
        self, settings: TurnSettings, store: RunStore, claim: Claim, *, stop: bool = False
    ) -> None:
        assert claim.lease is not None
        self.run = claim.run
        self.identity = identity_of(claim.run)
        self.ring = Ring(claim.next_seq)
        self.task: asyncio.Task[None] | None = None
        self._settings = settings
        self._stop = stop
        self._stored_id = claim.lease.run_id
        self._history = {step.step_index: step for step in claim.steps}
        self._work: asyncio.Task[str | None] | None = None
        self._draining = False
        self._is_idle = False
        self._last_item_ms = monotonic_ms()
        self._swallow_to = 0
        self._attempt = Attempt(store, claim, lease_ms=settings.lease_ms, on_change=self._interrupt)
        self._journal = Journal(
            self._attempt, self.ring, next_seq=claim.next_seq, on_published=self._tell
        )
        self._steps = TurnSteps(self._stored_id, self._attempt, self._journal)
        self._closing = Closing(
            settings,
            self.identity,
            stored_id=self._stored_id,
            journal=self._journal,
            steps=self._steps,
            show=self._show,
        )
        self._follows = has_hook(settings.hooks, "on_event")
        self._addressee = Addressee(
            self.identity.tenant_id, self.identity.session_id, self.identity.turn_index
        )

    # Being told.

    def start(self) -> asyncio.Task[None]:
        """Begin to work; the task never raises."""
        self.task = asyncio.get_running_loop().create_task(self._run())
        return self.task

    def stop(self) -> None:
        """End the turn as stopped, with what there is of it."""
        self._attempt.held.ask_to_stop()

    def drain(self) -> None:
        """Give the lease back; somebody else goes on."""
        self._draining = True
        self._interrupt()

    def _interrupt(self) -> None:
        if self._work is not None:
            self._work.cancel()

    # The attempt, from its claim to its end.

    async def _run(self) -> None:
        try:
            await self._attend()
        except LeaseLostError:
            logger.info("the lease on turn %r was lost: another worker goes on", self._stored_id)
        except StoreError:
            logger.exception("the turn %r is left to the next worker", self._stored_id)
        except Exception:
            logger.exception("the attempt at turn %r broke off", self._stored_id)
        finally:
            self._attempt.end()
            self.ring.close()
            await flush_trace(self._settings.hooks)

    async def _attend(self) -> None:
        closing = self._closing
        evidence = await self._read_evidence()
        if self._stop or self._attempt.stop_requested:
            self._recall(evidence.frames)
            await closing.end("stopped")
            return
        if self.run.strikes >= self._settings.strikes_max:
            await closing.park(
                RunParkedError(f"{self.run.strikes} attempts at the turn crashed"),
                "attempts_exhausted",
            )
            return
        rung = await choose_rung(
            evidence,
            self._settings.on_interrupted,
            identity=self.identity,
            attempt=self._attempt.lease.epoch,
        )
        if rung == "finish":
            await self._finish(evidence)
        elif rung == "fail":
            self._recall(evidence.frames)
            await closing.fail(_lost(evidence))
        else:
            await self._begin(evidence, restart=rung == "rerun")
            await self._work_on(evidence)

    async def _read_evidence(self) -> Evidence:
        frames: list[Frame] = []
        after = max(0, self.run.live_from - 1)
        while self._journal.last_seq > 0:
            page = await self._attempt.store.read_frames(self.run.run_id, after=after)
            if not page:
                break
            frames.extend(page)
            after = page[-1].seq
        self._journal.log_bytes = sum(len(str(frame.data)) for frame in frames)
        known, manifest = self._history.get(0), self.run.manifest
        self._closing.tries = 1 if known is None else known.attempts + 1
        if manifest is not None:
            self._closing.input_hash = identity.canonical_hash(manifest.input)
        is_first = self._attempt.lease.epoch == 1
        return gather_evidence(frames, self._history, is_first=is_first)

    async def _begin(self, evidence: Evidence, *, restart: bool) -> None:
        """Record, before the model may be called, that it may be; and what readers forget."""
        self._attempt.usage_calls = 1
        begin = BeginStep(
            0,
            intent_of(self.identity.turn_index),
            kind="llm",
            input_hash=self._closing.input_hash,
            tries=self._closing.tries,
        )
        model = None if self.run.manifest is None else self.run.manifest.input.get("model")
        intend = IntendUsage(0, step_index=0, model=model)
        self._closing.has_begun = True
        if restart:
            await self._restart(evidence, evidence.kept, begin, intend)
        else:
            await self._journal.write(begin, intend)
            self._recall(evidence.kept)
        self._swallow_to = last_kept_position(self._history)

    async def _restart(self, evidence: Evidence, kept: Sequence[Frame], *changes: Change) -> None:
        compact = [part_frame(part) for part in fold_parts(kept)]
        compact.extend(frame for frame in kept if frame.kind == "upstream_end")
        last = evidence.frames[-1]
        mark = cursor_mark(self._stored_id)
        if evidence.ended_before:
            reason = "retry"
        else:
            reason = "lease_expired" if self.run.strikes else "released"
        await self._journal.restart(
            compact,
            *changes,
            reason=reason,
            discarded_from=format_cursor(last.epoch, last.seq, mark),
        )
        self._recall(compact)

    async def _finish(self, evidence: Evidence) -> None:
        """Nothing is missing but the end: the model is not asked again."""
        if evidence.ended_before:
            kept = [frame for frame in evidence.frames if frame.kind not in ("usage", "failed")]
            await self._restart(evidence, kept)
        else:
            self._recall(evidence.frames)
        await self._closing.end_or_fail(None)

    def _recall(self, frames: Sequence[Frame]) -> None:
        """Count what earlier attempts left as part of the answer."""
        for part in fold_parts(frames):
            self._closing.content.add(part_frame(part))
        self._closing.content.frames = 0

    # Producing.

    async def _work_on(self, evidence: Evidence) -> None:
        history = await history_of(self._attempt.store, self.run)
        kept = fold_parts(evidence.kept)
        turn = AttemptedTurn(
            self.identity,
            self._attempt,
            self._steps,
            history=history,
            partial=Partial(text_of(kept), kept),
        )
        self._follow_start()
        if not (self._draining or self._attempt.stop_requested or self._attempt.held.lost):
            await self._watch_over(asyncio.get_running_loop().create_task(self._produce(turn)))
        await self._settle()

    async def _watch_over(self, work: asyncio.Task[str | None]) -> None:
        """Wait for the producer. A cancelled caller (the loop shuts down) drains."""
        self._work = work
        idleness = asyncio.get_running_loop().create_task(self._cancel_when_idle())
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            self.drain()
            await asyncio.wait([work])
            await self._settle()
            raise
        finally:
            idleness.cancel()

    async def _produce(self, turn: Turn) -> str | None:
        """Journal what the producer yields; return its own final text, if it has one."""
        spec = StepSpec(0, intent_of(self.identity.turn_index), kind="llm")
        scope = StepScope(self._steps, spec, holds_steps=True)
        scope.tries = self._closing.tries
        with inside(scope):
            made = self._settings.produce(turn)
            if inspect.isawaitable(made):
                made = await made
            items = cast(AsyncIterator[object], getattr(made, "stream", made))
            async with contextlib.AsyncExitStack() as stack:
                if hasattr(items, "aclose"):
                    stack.push_async_callback(items.aclose)
                async for item in items:
                    self._last_item_ms = monotonic_ms()
                    self._take(item)
                    if self._journal.is_full:
                        await self._journal.room()
            final_text = getattr(made, "final_text", None)
            return await call_hook(final_text) if callable(final_text) else None

    def _take(self, item: object) -> None:
        frame = frame_of(item)
        if self._swallow_to and not self._is_past_replay():
            return
        for numbered in self._journal.append(frame):
            self._closing.content.add(numbered)

    def _is_past_replay(self) -> bool:
        """While recorded steps replay, readers have already what is yielded between them."""
        if self._steps.answered_position >= self._swallow_to:
            self._swallow_to = 0
        return self._swallow_to == 0

    async def _cancel_when_idle(self) -> None:
        """One timer for the whole turn: a time-out around each item would cost more than it."""
        limit_ms = self._settings.idle_timeout_ms
        self._last_item_ms = monotonic_ms()
        while True:
            remaining_ms = limit_ms - (monotonic_ms() - self._last_item_ms)
            if remaining_ms <= 0:
                self._is_idle = True
                self._interrupt()
                return
            await asyncio.sleep(remaining_ms / 1_000)

    # Settling.

    async def _settle(self) -> None:
        work, attempt, closing = self._work, self._attempt, self._closing
        if work is not None and not work.cancelled() and work.exception() is None:
            await closing.end_or_fail(work.result())
            return
        if attempt.held.lost:
            raise LeaseLostError(f"the lease on turn {self._stored_id!r} is lost")
        error = None if work is None or work.cancelled() else work.exception()
        refusal = self._steps.refusal
        if isinstance(refusal, DivergenceError):
            await closing.park(refusal, refusal.code)
        elif attempt.stop_requested:
            await closing.end("stopped")
        elif self._is_idle:
            limit_ms = self._settings.idle_timeout_ms
            await closing.fail(IdleTimeoutError(f"nothing came for {limit_ms} ms"))
        elif error is None:
            await closing.release("drained")
        elif isinstance(error, LeaseLostError):
            raise error
        elif isinstance(error, StoreError) and not isinstance(error, StoreCorruptError):
            await closing.release("store")
        else:
            await closing.fail(error)

    # Showing.

    def _show(self, frames: Sequence[Frame]) -> None:
        if frames:
            self.ring.publish(frames)
            self._tell(frames)

    def _follow_start(self) -> None:
        if self._follows:
            self._call_on_event((started(self._addressee),))

    def _tell(self, frames: Sequence[Frame]) -> None:
        if self._follows:
            for frame in frames:
                self._call_on_event(events_of(frame, self._addressee))

    def _call_on_event(self, events: Sequence[Event]) -> None:
        for event in events:
            try:
                self._settings.hooks.on_event(event)
            except Exception:
                logger.exception("the hook on_event failed")


def _lost(evidence: Evidence) -> PerdureError:
    tool = evidence.open_tool_call
    if tool is not None:
        return UnfinishedStepError(
            f"the turn was interrupted in the tool call {tool!r}: whether it took effect is unknown"
        )
    return ProducerLostError("the attempt at the turn was lost")
